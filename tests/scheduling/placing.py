"""Placement as whoever asks the default does it: the machines, and pools changed for them."""

from functools import partial

from splitwise.scheduling.cluster_state import ClusterState
from splitwise.scheduling.decision import PlacementRequest, PlacementRules
from splitwise.scheduling.enacting import has_to_wait, pull
from splitwise.scheduling.policies import default
from splitwise.scheduling.ranking import NOBODY


def place(
    cluster: ClusterState,
    prompt_tokens: int,
    kv_tokens: int,
    threshold: int,
    may_pull: bool,
    one_token: bool = False,
    may_wait: bool = False,
) -> tuple[int, int]:
    """As the simulator does with a promised cache."""
    request = PlacementRequest(1, 0, 0, prompt_tokens, kv_tokens, one_token)
    placement = default.place(cluster, request, PlacementRules(threshold, may_pull, may_wait))
    waits = has_to_wait(cluster, request, placement) if may_wait else placement.prompt == NOBODY
    if waits:
        return NOBODY, NOBODY
    pull(cluster, placement, not one_token)
    return placement.prompt, placement.prompt if one_token else placement.token


place_if_room = partial(place, may_wait=True)
"""As a server does, and the simulator with a grown cache."""
