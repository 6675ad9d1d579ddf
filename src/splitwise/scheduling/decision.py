"""What a policy is told of a request, and what it says."""

from typing import NamedTuple


class PlacementRequest(NamedTuple):
    """A request that is to be placed.

    ``number``: in order of arrival, from 1. ``attempt``: how often it had machines before.
    ``priority``: less goes first; 0 is usual. ``prompt_tokens``: of this attempt, with the tokens
    of those before. ``kv_tokens``: cache that its token machine is to hold, as far as it is known.
    ``one_token``: it ends with its first token and so has no token phase.
    """

    number: int
    attempt: int
    priority: int
    prompt_tokens: int
    kv_tokens: int
    one_token: bool


class PlacementRules(NamedTuple):
    """How the cluster is run.

    ``change_roles``: whether a machine may be pulled into the mixed pool. ``may_wait``: whether the
    request may wait outside the machines until one has room; else it is placed now if any machine
    could ever hold it.
    """

    queue_threshold_tokens: int
    change_roles: bool
    may_wait: bool


class Placement(NamedTuple):
    """Who computes the prompt and who the tokens; ``NOBODY`` for both if the request has to wait.

    ``pulls``: a machine that stands in the pool of the other phase moves into the mixed pool for
    it, until it is idle. A machine that does so for a single request in need stays.
    """

    prompt: int
    token: int
    pulls: bool


class WaitingRequest(NamedTuple):
    """A request that waits for its first machines; its numbers as in ``PlacementRequest``."""

    number: int
    priority: int
    prompt_tokens: int


class NextBatch(NamedTuple):
    """A machine's next iteration, for which prompts wait.

    ``number`` and ``priority`` are those of the first prompt that waits, as in
    ``PlacementRequest``; ``waited_s`` is how long ago it came to the machine. ``skips`` counts the
    iterations in a row that ran without any prompt while some waited. ``decodes`` are in their
    token phase here, and ``decode_skips`` is how many iterations in a row went without the one of
    them that was left out longest. ``free_tokens`` is the cache that prompts may take. The rest are
    the machine's limits of an iteration, decodes included.
    """

    number: int
    priority: int
    waited_s: float
    skips: int
    decodes: int
    decode_skips: int
    free_tokens: int
    batch_requests: int
    batch_tokens: int


class RunningRequest(NamedTuple):
    """A request that runs on a machine whose cache is full; its numbers as in ``PlacementRequest``.

    ``held_tokens`` is the cache that it has there, ``needed_tokens`` what it must have for its next
    token, both in whole blocks.
    """

    number: int
    priority: int
    held_tokens: int
    needed_tokens: int
