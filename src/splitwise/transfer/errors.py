"""Why a link between two machines ended."""


class LinkError(Exception):
    """The link cannot go on: the peer broke the protocol, refused, or does not take our data."""


class Closing(LinkError):
    """This machine is being closed in good order."""


class LinkLost(LinkError):
    """The peer has closed its end, or its process or host is gone."""
