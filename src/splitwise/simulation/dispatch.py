"""A request is sent to its two machines, and may be called back from them.

``dispatch`` chooses the machines, charges them with what is to come and queues the prompt;
``recall`` undoes all of that, whatever became of the request meanwhile, and makes the tokens so
far a part of its prompt, for the next attempt.
"""

from typing import Any

import numpy as np

from splitwise.scheduling.placement import place, rank
from splitwise.scheduling.ranking import NOBODY
from splitwise.simulation.compiled import inlined
from splitwise.simulation.links import drop
from splitwise.simulation.machine import kick, note_pool
from splitwise.simulation.memory import early_memory, prompt_memory, reserved_memory, take_memory
from splitwise.simulation.queues import append_prompt, unlink_prompt
from splitwise.simulation.state import Phase


@inlined
def dispatch(state: Any, request: int, now: float) -> None:
    """Place a request and queue its prompt; it stays away while no machine can take it."""
    one = state.requests[request]
    rules = state.rules
    prompt, token = place(
        state.cluster,
        one.prompt_tokens,
        one.prompt_tokens + one.output_tokens,
        rules.queue_threshold_tokens,
        rules.change_roles,
    )
    if prompt != NOBODY:
        note_pool(state, prompt, now)
        note_pool(state, token, now)
    if one.output_tokens == 1:
        token = prompt
    one.prompt_machine = prompt
    one.token_machine = token
    if prompt == NOBODY:
        state.outages.progress[1] += 1
        return
    one.attempts += 1
    charge(state, one)
    append_prompt(state, prompt, request)
    kick(state, prompt, now)


@inlined
def charge(state: Any, one: Any) -> None:
    """Book what a request brings to its machines."""
    cluster = state.cluster
    prompt, token = one.prompt_machine, one.token_machine
    cluster.pending_tokens[prompt] += one.prompt_tokens
    cluster.pending_tokens[token] += 1
    cluster.kv_tokens[token] += one.prompt_tokens + one.output_tokens
    if prompt != token:
        cluster.kv_tokens[prompt] += one.prompt_tokens + 1
        rank(cluster, token)
    rank(cluster, prompt)


@inlined
def recall(state: Any, request: int, generated: int) -> None:
    """Take a request that has not finished off both its machines, with its memory.

    ``generated`` tokens came out in this attempt. Its slot, if it has one, is the caller's.
    """
    one = state.requests[request]
    is_split = one.prompt_machine != one.token_machine
    if one.phase <= Phase.PROMPT:
        unlink_prompt(state, one.prompt_machine, request)
    if one.phase == Phase.SENDING:
        drop(state.transfers, request)
    if one.phase == Phase.PROMPT or one.phase == Phase.SENDING:
        take_memory(state, one.prompt_machine, -prompt_memory(state, one))
        has_begun = one.phase == Phase.SENDING and not np.isnan(one.transfer_end_s)
        if is_split and (reserved_memory(state, one) > 0 or has_begun):
            take_memory(state, one.token_machine, -early_memory(state, one))
    if one.phase == Phase.READY:
        take_memory(state, one.token_machine, -early_memory(state, one))
    if one.phase == Phase.DECODE:
        take_memory(state, one.token_machine, -(one.prompt_tokens + one.output_tokens))
    uncharge(state, one)
    one.phase = Phase.AWAY
    one.prompt_tokens += generated
    one.output_tokens -= generated
    one.done_tokens = 0
    one.transfer_start_s = np.nan
    one.transfer_end_s = np.nan


@inlined
def uncharge(state: Any, one: Any) -> None:
    """Undo of ``charge`` what has not been undone as the request went on."""
    cluster = state.cluster
    prompt, token = one.prompt_machine, one.token_machine
    if one.phase <= Phase.PROMPT:
        cluster.pending_tokens[prompt] -= one.prompt_tokens
    cluster.pending_tokens[token] -= 1
    cluster.kv_tokens[token] -= one.prompt_tokens + one.output_tokens
    if prompt != token and one.phase <= Phase.SENDING:
        cluster.kv_tokens[prompt] -= one.prompt_tokens + 1
    rank(cluster, prompt)
    rank(cluster, token)
