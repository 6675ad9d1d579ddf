"""A request is sent to its two machines.

``dispatch`` places a request at once, with all its cache promised. ``serve_line`` goes by the
server's rules: who is first in the cluster's line is placed as soon as there is room for what is
known.
"""

from typing import Any

from splitwise.scheduling.cluster_state import rank
from splitwise.scheduling.placement import place, place_if_room
from splitwise.scheduling.ranking import NOBODY
from splitwise.simulation.charges import charge, in_blocks
from splitwise.simulation.compiled import inlined
from splitwise.simulation.grown import expect
from splitwise.simulation.line import leave_line
from splitwise.simulation.machine import kick
from splitwise.simulation.queues import append_prompt
from splitwise.simulation.roles import note_pool
from splitwise.simulation.state import NONE


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
        state.progress[0].waiting += 1
        return
    send_to_machines(state, request, now)


@inlined
def send_to_machines(state: Any, request: int, now: float) -> None:
    """An attempt begins on the machines that were chosen for it."""
    one = state.requests[request]
    prompt, token = one.prompt_machine, one.token_machine
    one.attempts += 1
    append_prompt(state, prompt, request)
    charge(state, one)
    if state.rules.cache_grows and prompt != token:
        expect(state, request)
        kick(state, token, now)
    kick(state, prompt, now)


@inlined
def serve_line(state: Any, now: float) -> None:
    """Place who waits, and again each time that the cluster is told of prompts that began.

    The word that a prompt waits no more comes after what it could have changed: requests that are
    placed in one go see each other's prompts wait.
    """
    hand_out(state, now)
    progress = state.progress[0]
    while progress.starting > 0:
        progress.starting = 0
        for machine in range(len(state.machines)):
            here = state.machines[machine]
            if here.starting > 0:
                state.cluster.waiting[machine] -= here.starting
                here.starting = 0
                rank(state.cluster, machine)
        hand_out(state, now)


@inlined
def hand_out(state: Any, now: float) -> None:
    """Place waiting requests, in order, until one has to go on waiting."""
    progress = state.progress[0]
    rules = state.rules
    while progress.line_head != NONE:
        request = progress.line_head
        one = state.requests[request]
        prompt, token = place_if_room(
            state.cluster,
            one.prompt_tokens,
            in_blocks(state, one.prompt_tokens + 1),
            one.output_tokens == 1,
            rules.queue_threshold_tokens,
            rules.change_roles,
        )
        if prompt == NOBODY:
            return
        leave_line(state)
        note_pool(state, prompt, now)
        note_pool(state, token, now)
        one.prompt_machine = prompt
        one.token_machine = token
        send_to_machines(state, request, now)
