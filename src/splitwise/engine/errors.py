"""What an engine says when a model cannot be served."""


class ModelError(Exception):
    """The model cannot be served; the message gives the reason and the remedy."""
