"""The default decisions, and what each is asked: a policy's are named and called like these."""

import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.cluster_state import ClusterState
from splitwise.scheduling.decision import (
    NextBatch,
    Placement,
    PlacementRequest,
    PlacementRules,
    RunningRequest,
    WaitingRequest,
)
from splitwise.scheduling.placement import choose, choose_with_room
from splitwise.scheduling.shared import shared


@shared
def place(cluster: ClusterState, request: PlacementRequest, rules: PlacementRules) -> Placement:
    """The machines that compute the request's prompt and its tokens; see ``placement``.

    ``cluster`` is to be read only: whoever asked charges the machines and moves them.
    """
    if rules.may_wait:
        prompt, token, pulls = choose_with_room(
            cluster,
            request.prompt_tokens,
            request.kv_tokens,
            request.one_token,
            rules.queue_threshold_tokens,
            rules.change_roles,
        )
    else:
        prompt, token, pulls = choose(
            cluster,
            request.prompt_tokens,
            request.kv_tokens,
            rules.queue_threshold_tokens,
            rules.change_roles,
        )
    return Placement(prompt, token, pulls)


@shared
def order(request: WaitingRequest) -> float:
    """When the request goes, of those of its priority that wait and never had machines: the least
    goes first, of equals the one that came first. Any number, asked once as it begins to wait.

    The default's is no order of its own: in a server clients share (``fair_queue``), and in the
    simulator, which knows of no clients, who came first goes first.
    """
    return 0.0


@shared
def compose(batch: NextBatch, prompt_tokens: NDArray[np.int64]) -> int:
    """How many of the prompts that wait on a machine go into its next iteration, in order.

    ``prompt_tokens`` is what the iteration would compute of each that the limits let in
    (``batching.compose``), to be read only. A policy may take fewer, 0 included. It is asked before
    each iteration for which prompts wait, and one goes in whatever it says where nothing else runs
    or ``skips`` has come to ``batching.MAX_PROMPT_SKIPS``. What has no room in the cache waits.
    """
    return len(prompt_tokens)


@shared
def victim(request: RunningRequest) -> int:
    """How soon the request gives its cache up where those that run on its machine cannot all grow:
    the highest goes first, of equals the one that came last. At most 2**31 either way."""
    return request.priority
