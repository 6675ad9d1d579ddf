"""A request is called back from its machines: one of them failed, or its memory is needed."""

from typing import Any

import numpy as np

from splitwise.simulation.charges import uncharge
from splitwise.simulation.compiled import inlined
from splitwise.simulation.line import join_line
from splitwise.simulation.links import drop
from splitwise.simulation.memory import take_memory
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
    if one.is_expected:
        unlink_expected(state, one.token_machine, request)
    take_memory(state, one.prompt_machine, -one.prompt_held_tokens)
    take_memory(state, one.token_machine, -one.held_tokens)
    one.prompt_held_tokens = 0
    one.held_tokens = 0
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
