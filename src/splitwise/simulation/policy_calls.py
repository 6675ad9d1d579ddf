"""How the compiled loop asks a policy.

1. The loop is compiled once for all policies: it calls each decision by its address
   (``policy_call``).
2. ``calls_of`` has a policy's decisions compiled (``policy_compiling``).
3. Every answer is checked. Of one that cannot be ``asked`` keeps what it was, and
   ``WrongDecision`` ends the loop; ``policy_error`` tells of both.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numba import types
from numba.extending import intrinsic
from numpy.typing import NDArray

from splitwise.scheduling.cluster_state import ClusterState, read_only
from splitwise.scheduling.decision import (
    NextBatch,
    Placement,
    PlacementRequest,
    PlacementRules,
    RunningRequest,
    WaitingRequest,
)
from splitwise.scheduling.enacting import (
    EXPLAINED,
    Fault,
    as_order,
    as_rank,
    fault_of,
    in_one_place,
    is_count,
    read_count,
    read_order,
    read_placement,
    read_rank,
    uncountable,
)
from splitwise.scheduling.policies.policy import DEFAULT, HOOKS, Policy, PolicyError
from splitwise.simulation.by_reference import Reference
from splitwise.simulation.compiled import inlined
from splitwise.simulation.policy_call import Call, by_address, read_only_type
from splitwise.simulation.policy_compiling import (
    BATCH,
    PLACEMENT,
    PROMPT_TOKENS,
    REQUEST,
    RULES,
    RUNNING,
    WAITING,
    compiled_compose,
    compiled_order,
    compiled_place,
    compiled_victim,
)

ASKED: Final = np.dtype(
    [
        ("decision", np.int64),  # that is asked for, by its place in ``HOOKS``
        ("number", np.int64),  # of the request that it is asked for; 0: of none
        ("fault", np.int64),  # of a placement, and the two machines
        ("prompt", np.int64),
        ("token", np.int64),
        ("count", np.int64),  # of prompts, and how many there were
        ("prompts", np.int64),
    ]
)
_NO_FAULT: Final = int(Fault.NONE)
_PLACE: Final = HOOKS.index("place")
_ORDER: Final = HOOKS.index("order")
_COMPOSE: Final = HOOKS.index("compose")
_VICTIM: Final = HOOKS.index("victim")


class WrongDecision(Exception):
    """A policy decided what cannot be; ``Calls.asked`` says what."""


class Calls(NamedTuple):
    """A policy's decisions, for one simulation."""

    place: Call
    order: Call
    compose: Call
    victim: Call
    asked: NDArray[np.void]


@intrinsic  # type: ignore[untyped-decorator]
def _call_place(context: Any, call: Any, cluster: Any, request: Any, rules: Any) -> Any:
    if (request, rules) != (REQUEST, RULES):
        raise numba.TypingError(f"place is asked of {request}, {rules}")
    kinds = (call, read_only_type(cluster), request, rules)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return by_address(builder, context, PLACEMENT, kinds, values)

    return PLACEMENT(call, cluster, request, rules), generate


@intrinsic  # type: ignore[untyped-decorator]
def _call_compose(context: Any, call: Any, batch: Any, prompt_tokens: Any) -> Any:
    kinds = (call, batch, read_only_type(prompt_tokens))
    if kinds[1:] != (BATCH, PROMPT_TOKENS):
        raise numba.TypingError(f"compose is asked of {batch}, {prompt_tokens}")

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return by_address(builder, context, types.int64, kinds, values)

    return types.int64(call, batch, prompt_tokens), generate


def _call_of(name: str, asked: Any, said: Any) -> Any:
    """How a decision is called that says one number of one request."""

    @intrinsic  # type: ignore[untyped-decorator]
    def call_it(context: Any, call: Any, request: Any) -> Any:
        if request != asked:
            raise numba.TypingError(f"{name} is asked of {request}")

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return by_address(builder, context, said, (call, request), values)

        return said(call, request), generate

    return call_it


_call_order: Final = _call_of("order", WAITING, types.float64)
_call_victim: Final = _call_of("victim", RUNNING, types.int64)


@inlined
def place_by(
    calls: Calls, cluster: ClusterState, request: PlacementRequest, rules: PlacementRules
) -> Placement:
    """What the policy says of a request."""
    asked = calls.asked[0]
    asked.decision = _PLACE
    asked.number = request.number
    said = in_one_place(request, _call_place(calls.place, cluster, request, rules))
    fault = fault_of(cluster, request, rules, said)
    if fault != _NO_FAULT:
        asked.fault = fault
        asked.prompt = said.prompt
        asked.token = said.token
        raise WrongDecision
    asked.number = 0
    return said


@inlined
def order_by(calls: Calls, request: WaitingRequest) -> float:
    """When the policy has a request go that waits."""
    asked = calls.asked[0]
    asked.decision = _ORDER
    asked.number = request.number
    said = as_order(_call_order(calls.order, request))
    asked.number = 0
    return said


@inlined
def compose_by(calls: Calls, batch: NextBatch, prompt_tokens: NDArray[np.int64]) -> int:
    """How many of these prompts the policy has go into a machine's next iteration."""
    asked = calls.asked[0]
    asked.decision = _COMPOSE
    asked.number = batch.number
    said: int = _call_compose(calls.compose, batch, prompt_tokens)
    if not is_count(said, len(prompt_tokens)):
        asked.count = said
        asked.prompts = len(prompt_tokens)
        raise WrongDecision
    asked.number = 0
    return said


@inlined
def victim_by(calls: Calls, request: RunningRequest) -> int:
    """How soon the policy has a request give its cache up."""
    asked = calls.asked[0]
    asked.decision = _VICTIM
    asked.number = request.number
    said = _call_victim(calls.victim, request)
    asked.number = 0
    return as_rank(said)


def calls_of(policy: Policy, cluster: ClusterState, prompt_tokens: NDArray[np.int64]) -> Calls:
    """The policy's decisions over a simulation's machines; ``prompt_tokens`` is where those of a
    machine's next prompts are written before it is asked of them."""
    seen = Reference(numba.typeof(cluster))  # as a part of ``State`` is
    tokens = prompt_tokens.view()
    tokens.flags.writeable = False
    return Calls(
        Call(compiled_place(_decider(policy, "place"), seen), _plain_place(policy, cluster)),
        Call(compiled_order(_decider(policy, "order")), partial(_plain_order, policy)),
        Call(compiled_compose(_decider(policy, "compose")), _plain_compose(policy, tokens)),
        Call(compiled_victim(_decider(policy, "victim")), partial(_plain_victim, policy)),
        np.zeros(1, dtype=ASKED),
    )


def _decider(policy: Policy, name: str) -> Policy:
    """Whose decision it is; the default's is compiled once for all who take it."""
    return policy if name in policy.own else DEFAULT


def policy_error(policy: Policy, calls: Calls, error: Exception) -> PolicyError | None:
    """What to say of an error that ended the loop; None if it is not the policy's."""
    asked = calls.asked[0]
    if asked["number"] == 0:
        return None
    of_what = f"policy {policy.name}: {HOOKS[asked['decision']]} of request {asked['number']}"
    if not isinstance(error, WrongDecision):
        return PolicyError(f"{of_what} raised {type(error).__name__}: {error}")
    if asked["decision"] == _COMPOSE:
        said = uncountable(int(asked["count"]), int(asked["prompts"]))
        return PolicyError(f"{of_what} raised ValueError: {said}")
    fault = Fault(asked["fault"])
    return PolicyError(f"{of_what} said {asked['prompt']}, {asked['token']}: {EXPLAINED[fault]}")


def _plain_place(policy: Policy, cluster: ClusterState) -> Callable[..., Placement]:
    seen = read_only(cluster)

    def place(request: PlacementRequest, rules: PlacementRules) -> Placement:
        return read_placement(policy.hooks.place(seen, request, rules))

    return place


def _plain_order(policy: Policy, request: WaitingRequest) -> float:
    return read_order(policy.hooks.order(request))


def _plain_compose(policy: Policy, tokens: NDArray[np.int64]) -> Callable[..., int]:
    def compose(batch: NextBatch, prompts: int) -> int:
        return read_count(policy.hooks.compose(batch, tokens[:prompts]), prompts)

    return compose


def _plain_victim(policy: Policy, request: RunningRequest) -> int:
    return read_rank(policy.hooks.victim(request))
