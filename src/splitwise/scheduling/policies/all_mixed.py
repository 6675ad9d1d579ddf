"""Every machine computes both phases of its requests, whatever pool it lives in.

The baseline of the paper, without the transfers: the least pending machine takes the request.
"""

from splitwise.scheduling.cluster_state import ClusterState, has_room, takes_requests
from splitwise.scheduling.decision import Placement, PlacementRequest, PlacementRules
from splitwise.scheduling.ranking import NOBODY
from splitwise.scheduling.shared import shared


@shared
def place(cluster: ClusterState, request: PlacementRequest, rules: PlacementRules) -> Placement:
    """One machine: the least pending of those with room, else of those that could ever hold it."""
    best, best_has_room = NOBODY, False
    for machine in range(len(cluster.up)):
        fits = request.kv_tokens <= cluster.kv_capacity_tokens[machine]
        if not (fits and takes_requests(cluster, machine)):
            continue
        is_roomy = has_room(cluster, machine, request.kv_tokens)
        is_better = best == NOBODY or is_roomy > best_has_room
        if is_roomy == best_has_room and best != NOBODY:
            is_better = cluster.pending_tokens[machine] < cluster.pending_tokens[best]
        if is_better:
            best, best_has_room = machine, is_roomy
    return Placement(best, best, False)
