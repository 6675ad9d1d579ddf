"""A request is called back from its machines: one of them failed, or its memory is needed."""

from typing import Any

import numpy as np

from splitwise.simulation.charges import in_blocks, uncharge
from splitwise.simulation.compiled import inlined
from splitwise.simulation.line import join_line
from splitwise.simulation.links import drop
from splitwise.simulation.memory import early_memory, prompt_memory, reserved_memory, take_memory
from splitwise.simulation.queues import unlink_expected, unlink_prompt
from splitwise.simulation.roles import settle
from splitwise.simulation.state import Phase


@inlined
def recall(state: Any, request: int, generated: int, now: float) -> None:
    """Take a request that has not finished off both its machines, with its memory, and make the
    tokens so far a part of its prompt, for the next attempt.

    ``generated`` tokens came out in this attempt. Its slot, if it has one, is the caller's.
    """
    one = state.requests[request]
    if one.phase <= Phase.PROMPT:
        unlink_prompt(state, one.prompt_machine, request)
    if one.phase == Phase.SENDING:
        drop(state.transfers, request)
    if state.rules.cache_grows:
        free_grown(state, request)
    else:
        free_promised(state, one)
    uncharge(state, one, generated)
    one.phase = Phase.AWAY
    one.prompt_tokens += generated
    one.output_tokens -= generated
    one.done_tokens = 0
    one.transfer_start_s = np.nan
    one.transfer_end_s = np.nan
    if state.rules.cache_grows:
        settle(state, one.prompt_machine, now)
        settle(state, one.token_machine, now)
        join_line(state, request)


@inlined
def free_promised(state: Any, one: Any) -> None:
    """Give back memory that was taken for a whole request."""
    is_split = one.prompt_machine != one.token_machine
    if one.phase == Phase.PROMPT or one.phase == Phase.SENDING:
        take_memory(state, one.prompt_machine, -prompt_memory(state, one))
        has_begun = one.phase == Phase.SENDING and not np.isnan(one.transfer_end_s)
        if is_split and (reserved_memory(state, one) > 0 or has_begun):
            take_memory(state, one.token_machine, -early_memory(state, one))
    if one.phase == Phase.READY:
        take_memory(state, one.token_machine, -early_memory(state, one))
    if one.phase == Phase.DECODE:
        take_memory(state, one.token_machine, -(one.prompt_tokens + one.output_tokens))


@inlined
def free_grown(state: Any, request: int) -> None:
    """Give back the blocks a request has, or its place among those that wait for some."""
    one = state.requests[request]
    if one.prompt_machine != one.token_machine:
        if one.phase == Phase.PROMPT or one.phase == Phase.SENDING:
            take_memory(state, one.prompt_machine, -in_blocks(state, one.prompt_tokens))
        if one.held_tokens == 0:
            unlink_expected(state, one.token_machine, request)
    take_memory(state, one.token_machine, -one.held_tokens)
    one.held_tokens = 0
