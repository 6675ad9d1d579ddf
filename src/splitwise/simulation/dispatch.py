"""A request is sent to its two machines.

``dispatch`` places a request at once, with all its cache promised. ``serve_line`` goes by the
server's rules: who is first in the cluster's line is placed as soon as there is room for what is
known.
"""

from typing import Any

from splitwise.scheduling.cluster_state import rank
from splitwise.scheduling.decision import Placement, PlacementRequest, PlacementRules
from splitwise.scheduling.enacting import has_to_wait, pull
from splitwise.scheduling.ranking import NOBODY
from splitwise.simulation.charges import charge, in_blocks
from splitwise.simulation.compiled import inlined
from splitwise.simulation.grown import expect
from splitwise.simulation.line import first_in_line, leave_line
from splitwise.simulation.machine import kick
from splitwise.simulation.policy_calls import place_by
from splitwise.simulation.queues import append_prompt
from splitwise.simulation.roles import note_pool


@inlined
def dispatch(state: Any, request: int, now: float) -> None:
    """Place a request and queue its prompt; it stays away while no machine can take it."""
    one = state.requests[request]
    asked = as_asked(state, request, one.prompt_tokens + one.output_tokens)
    placement = place_by(state.policy, state.cluster, asked, placement_rules(state, False))
    if placement.prompt == NOBODY:
        one.prompt_machine = NOBODY
        one.token_machine = NOBODY
        state.progress[0].waiting += 1
        return
    pull(state.cluster, placement, one.output_tokens > 1)
    send_to_machines(state, request, placement, now)


@inlined
def as_asked(state: Any, request: int, kv_tokens: int) -> PlacementRequest:
    """A request as a policy is told of it; numbers begin with 1, as in a server."""
    one = state.requests[request]
    return PlacementRequest(
        request + 1,
        one.attempts,
        0,
        one.prompt_tokens,
        kv_tokens,
        one.output_tokens == 1,
    )


@inlined
def placement_rules(state: Any, may_wait: bool) -> PlacementRules:
    """The simulation's, as a policy is told of them."""
    return PlacementRules(state.rules.queue_threshold_tokens, state.rules.change_roles, may_wait)


@inlined
def send_to_machines(state: Any, request: int, placement: Placement, now: float) -> None:
    """An attempt begins on the machines that were chosen for it."""
    one = state.requests[request]
    note_pool(state, placement.prompt, now)
    note_pool(state, placement.token, now)
    prompt = placement.prompt
    token = prompt if one.output_tokens == 1 else placement.token
    one.prompt_machine = prompt
    one.token_machine = token
    one.attempts += 1
    one.queued_s = now
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
    while progress.in_line > 0:
        request = first_in_line(state)
        one = state.requests[request]
        asked = as_asked(state, request, in_blocks(state, one.prompt_tokens + 1))
        placement = place_by(state.policy, state.cluster, asked, placement_rules(state, True))
        if has_to_wait(state.cluster, asked, placement):
            return
        leave_line(state)
        pull(state.cluster, placement, one.output_tokens > 1)
        send_to_machines(state, request, placement, now)
