"""A request is sent to its two machines.

``dispatch`` places a request at once, with all its cache promised. ``serve_line`` goes by the
server's rules: who stands in the cluster's line is placed in its turn, as soon as there is room for
what is known.
"""

from typing import Any

from splitwise.scheduling.cluster_state import rank
from splitwise.scheduling.decision import Placement, PlacementRequest, PlacementRules
from splitwise.scheduling.enacting import has_to_wait, pull
from splitwise.scheduling.placement import is_beyond_all
from splitwise.scheduling.ranking import NOBODY
from splitwise.simulation.charges import charge
from splitwise.simulation.compiled import inlined
from splitwise.simulation.grown import expect
from splitwise.simulation.line import (
    first_in_line,
    leave_line,
    may_go_before,
    needed_to_begin,
    park,
    stand,
    step_out,
)
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
    """Place waiting requests, in order, as far as there is room (``waiting`` has the rules)."""
    progress = state.progress[0]
    aside = state.scratch.aside
    count = 0
    while progress.in_line > 0 and count < len(aside):
        request = first_in_line(state)
        tokens = needed_to_begin(state, request)
        if not may_pass_all(state, tokens, aside[:count]):
            break
        if start_if_room(state, request, now):
            for other in aside[:count]:
                state.requests[other].passed_tokens += tokens
        elif is_beyond_all(state.cluster, tokens):
            park(state)
        elif may_go_before(state, 1, request):
            step_out(state)
            aside[count] = request
            count += 1
        else:  # nobody may pass it
            break
    for request in aside[:count]:
        stand(state, request)


@inlined
def may_pass_all(state: Any, tokens: int, aside: Any) -> bool:
    """Whether one that needs so many tokens may pass those that found no room."""
    may_all = True
    for other in aside:
        may_all = may_all and may_go_before(state, tokens, other)
    return may_all


@inlined
def start_if_room(state: Any, request: int, now: float) -> bool:
    """Place the first in line, if there is room for it."""
    one = state.requests[request]
    asked = as_asked(state, request, needed_to_begin(state, request))
    placement = place_by(state.policy, state.cluster, asked, placement_rules(state, True))
    if has_to_wait(state.cluster, asked, placement):
        return False
    leave_line(state)
    pull(state.cluster, placement, one.output_tokens > 1)
    send_to_machines(state, request, placement, now)
    return True
