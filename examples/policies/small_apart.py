"""Short prompts never wait behind long ones: a third of the prompt machines is theirs alone.

The default sends a prompt to the machine with the fewest tokens pending, whatever its length, so a
short question may find nothing but queues of long documents. Here the first machines of the prompt
pool take no prompt longer than SHORT_TOKENS; who is long goes to the others. All else, the token
machine among it, is the default's.
"""

from splitwise.scheduling.cluster_state import takes_requests
from splitwise.scheduling.decision import Placement
from splitwise.scheduling.policies import default

PROMPT_POOL = 0
SHORT_TOKENS = 1024


def place(cluster, request, rules):
    usual = default.place(cluster, request, rules)
    if usual.prompt < 0 or cluster.pool[usual.prompt] != PROMPT_POOL:
        return usual  # it waits, or a machine of another pool helps out
    prompt = least_pending(cluster, request)
    return Placement(prompt if prompt >= 0 else usual.prompt, usual.token, usual.pulls)


def least_pending(cluster, request):
    """Of the prompt machines that this length may go to, or -1."""
    homes = 0
    for machine in range(len(cluster.up)):
        homes += cluster.pool[machine] == PROMPT_POOL
    best, seen = -1, 0
    for machine in range(len(cluster.up)):
        if cluster.pool[machine] != PROMPT_POOL:
            continue
        seen += 1
        is_for_short = 3 * seen <= homes
        if is_for_short and request.prompt_tokens > SHORT_TOKENS:
            continue
        fits = request.prompt_tokens + 1 <= cluster.kv_capacity_tokens[machine]
        if not (fits and takes_requests(cluster, machine)):
            continue
        if best < 0 or cluster.pending_tokens[machine] < cluster.pending_tokens[best]:
            best = machine
    return best
