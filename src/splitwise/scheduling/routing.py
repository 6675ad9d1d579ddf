"""Cluster-level scheduling: the prompt and the token machine of a request, chosen together.

Join the shortest queue, as in Splitwise section IV.B:

1. The prompt goes to the prompt machine with the fewest pending prompt tokens.
2. If that queue would pass the threshold, the mixed pool is asked; a mixed machine that takes the
   prompt keeps the request for its token phase, so that nothing is transferred.
3. The tokens go to the token machine with the least cache in use that has room for the prompt,
   else to such a mixed machine.
4. Nobody has room: the request waits at the cluster scheduler.
"""

from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.pools import Machines, Pool

NOBODY: Final = -1
PROMPT_QUEUE_THRESHOLD_TOKENS: Final = 8192
"""Pending prompt tokens past which a prompt queue counts as full (the public simulator's value)."""

_FULL: Final = np.iinfo(np.int64).max


def least(load: NDArray[np.int64], eligible: NDArray[np.bool_]) -> int:
    """The eligible machine with the least load, the first of equals; NOBODY if none is."""
    if not eligible.any():
        return NOBODY
    return int(np.argmin(np.where(eligible, load, _FULL)))


def pick_machines(
    machines: Machines,
    prompt_tokens: int,
    one_token: bool,
    threshold_tokens: int = PROMPT_QUEUE_THRESHOLD_TOKENS,
) -> tuple[int, int]:
    """Choose (prompt machine, token machine); (NOBODY, NOBODY) when the request has to wait.

    ``one_token`` says that the request ends with its first token and so has no token phase.
    Equal indices mean one machine for both phases.
    """
    room = machines.ready & (machines.kv_tokens + prompt_tokens < machines.kv_capacity_tokens)
    mixed = least(
        machines.pending_prompt_tokens + machines.token_requests,
        room & (machines.pool == Pool.MIXED),
    )
    prompt = least(machines.pending_prompt_tokens, machines.ready & (machines.pool == Pool.PROMPT))
    if prompt == NOBODY:
        return mixed, mixed
    if mixed != NOBODY and _is_over(machines, prompt, prompt_tokens, threshold_tokens):
        return mixed, mixed
    if one_token:
        return prompt, prompt
    token = least(machines.kv_tokens, room & (machines.pool == Pool.TOKEN))
    if token == NOBODY:
        token = mixed
    if token == NOBODY:
        return NOBODY, NOBODY
    return prompt, token


def _is_over(machines: Machines, machine: int, prompt_tokens: int, threshold_tokens: int) -> bool:
    """Whether a prompt would push a busy machine's queue past the threshold.

    An idle machine takes any prompt, however long.
    """
    pending = int(machines.pending_prompt_tokens[machine])
    return pending > 0 and pending + prompt_tokens > threshold_tokens


def can_serve(machines: Machines) -> bool:
    """Whether the ready machines cover both phases."""
    ready = machines.pool[machines.ready]
    has_pair = bool((ready == Pool.PROMPT).any() and (ready == Pool.TOKEN).any())
    return has_pair or bool((ready == Pool.MIXED).any())
