"""How compiled code calls a policy.

1. The loop is compiled once for all policies: it calls each decision by its address.
2. ``calls_of`` compiles a policy's decisions, each in a second or so, with what they call of the
   policy's modules. What was compiled is kept under the policy's digest.
3. A decision that numba cannot compile is called as plain Python from the compiled loop, some
   microseconds a call, and a warning says so.
4. Every answer is checked. Of one that cannot be ``asked`` keeps what it was, and
   ``WrongDecision`` ends the loop; ``policy_error`` tells of both.
"""

import logging
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import numba
import numpy as np
from numba import objmode, types
from numba.core import cgutils
from numba.extending import (
    NativeValue,
    box,
    intrinsic,
    models,
    register_model,
    typeof_impl,
    unbox,
)
from numpy.typing import NDArray

from splitwise.scheduling.cluster_state import ClusterState, read_only
from splitwise.scheduling.decision import (
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
    read_order,
    read_placement,
    read_rank,
)
from splitwise.scheduling.policies.policy import DEFAULT, HOOKS, Policy, PolicyError
from splitwise.simulation.by_reference import Reference
from splitwise.simulation.compiled import compiled, inlined, register

log = logging.getLogger(__name__)

ASKED: Final = np.dtype(
    [
        ("decision", np.int64),  # that is asked for, by its place in ``HOOKS``
        ("number", np.int64),  # of the request that it is asked for; 0: of none
        ("fault", np.int64),
        ("prompt", np.int64),
        ("token", np.int64),
    ]
)
_NO_FAULT: Final = int(Fault.NONE)


class WrongDecision(Exception):
    """A policy decided what cannot be; ``Calls.asked`` says what."""


class Call:
    """A decision as compiled code has it: an address, and what plain Python is called for."""

    def __init__(self, code: Any, plain: Callable[..., Any]) -> None:
        """``code`` is what numba made of it, for one kind of arguments."""
        self._code = code  # as long as it lives, so does what lies at the address
        self.address = code.library.get_pointer_to_function(code.fndesc.llvm_func_name)
        self.plain = plain


class Calls(NamedTuple):
    """A policy's decisions, for one simulation."""

    place: Call
    order: Call
    victim: Call
    asked: NDArray[np.void]


class CallType(types.Type):  # type: ignore[misc]
    """The type of every ``Call``: the loop is the same whatever the policy."""

    def __init__(self) -> None:
        super().__init__("PolicyCall")


@register_model(CallType)
class _CallModel(models.StructModel):  # type: ignore[misc]
    def __init__(self, manager: Any, kind: CallType) -> None:
        super().__init__(manager, kind, [("address", types.intp), ("call", types.voidptr)])


@typeof_impl.register(Call)  # type: ignore[untyped-decorator]
def _type_of_call(call: Call, context: Any) -> CallType:
    return CallType()


@unbox(CallType)  # type: ignore[untyped-decorator]
def _unbox_call(kind: CallType, call: Any, c: Any) -> NativeValue:
    made = cgutils.create_struct_proxy(kind)(c.context, c.builder)
    address = c.pyapi.object_getattr_string(call, "address")
    made.address = c.pyapi.number_as_ssize_t(address)
    c.pyapi.decref(address)
    made.call = call  # borrowed: whoever called the loop holds it
    return NativeValue(made._getvalue())


@box(CallType)  # type: ignore[untyped-decorator]
def _box_call(kind: CallType, value: Any, c: Any) -> Any:
    call = cgutils.create_struct_proxy(kind)(c.context, c.builder, value).call
    c.pyapi.incref(call)
    return call


_REQUEST: Final = numba.typeof(PlacementRequest(0, 0, 0, 0, 0, False))
_RULES: Final = numba.typeof(PlacementRules(0, False, False))
_PLACEMENT: Final = numba.typeof(Placement(0, 0, False))
_RUNNING: Final = numba.typeof(RunningRequest(0, 0, 0, 0))
_WAITING: Final = numba.typeof(WaitingRequest(0, 0, 0))
_PLACE: Final = HOOKS.index("place")
_ORDER: Final = HOOKS.index("order")
_VICTIM: Final = HOOKS.index("victim")


def _read_only(kind: Any) -> Any:
    """The type of the same arrays, which a decision only reads."""
    if isinstance(kind, Reference):
        return Reference(_read_only(kind.of))
    if isinstance(kind, types.NamedTuple):
        return types.NamedTuple([_read_only(part) for part in kind.types], kind.instance_class)
    return kind.copy(readonly=True)


def _by_address(builder: Any, context: Any, said: Any, kinds: Any, values: Any) -> Any:
    """Call the function at the address of a call, the first value, by numba's own convention."""
    convention = context.call_conv
    function_type = convention.get_function_type(said, kinds)
    call = cgutils.create_struct_proxy(kinds[0])(context, builder, values[0])
    function = builder.inttoptr(call.address, function_type.as_pointer())
    status, answer = convention.call_function(builder, function, said, kinds, values)
    with cgutils.if_unlikely(builder, status.is_error):
        convention.return_status_propagate(builder, status)
    return answer


@intrinsic  # type: ignore[untyped-decorator]
def _call_place(context: Any, call: Any, cluster: Any, request: Any, rules: Any) -> Any:
    if (request, rules) != (_REQUEST, _RULES):
        raise numba.TypingError(f"place is asked of {request}, {rules}")
    kinds = (call, _read_only(cluster), request, rules)

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        return _by_address(builder, context, _PLACEMENT, kinds, values)

    return _PLACEMENT(call, cluster, request, rules), generate


def _call_of(name: str, asked: Any, said: Any) -> Any:
    """How a decision is called that says one number of one request."""

    @intrinsic  # type: ignore[untyped-decorator]
    def call_it(context: Any, call: Any, request: Any) -> Any:
        if request != asked:
            raise numba.TypingError(f"{name} is asked of {request}")

        def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
            return _by_address(builder, context, said, (call, request), values)

        return said(call, request), generate

    return call_it


_call_order: Final = _call_of("order", _WAITING, types.float64)
_call_victim: Final = _call_of("victim", _RUNNING, types.int64)


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
def victim_by(calls: Calls, request: RunningRequest) -> int:
    """How soon the policy has a request give its cache up."""
    asked = calls.asked[0]
    asked.decision = _VICTIM
    asked.number = request.number
    said = _call_victim(calls.victim, request)
    asked.number = 0
    return as_rank(said)


def calls_of(policy: Policy, cluster: ClusterState) -> Calls:
    """The policy's decisions over a simulation's machines."""
    seen = Reference(numba.typeof(cluster))  # as a part of ``State`` is
    return Calls(
        Call(_compiled_place(_decider(policy, "place"), seen), _plain_place(policy, cluster)),
        Call(_compiled_order(_decider(policy, "order")), partial(_plain_order, policy)),
        Call(_compiled_victim(_decider(policy, "victim")), partial(_plain_victim, policy)),
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
    fault = Fault(asked["fault"])
    return PolicyError(f"{of_what} said {asked['prompt']}, {asked['token']}: {EXPLAINED[fault]}")


def _plain_place(policy: Policy, cluster: ClusterState) -> Callable[..., Placement]:
    seen = read_only(cluster)

    def place(request: PlacementRequest, rules: PlacementRules) -> Placement:
        return read_placement(policy.hooks.place(seen, request, rules))

    return place


def _plain_order(policy: Policy, request: WaitingRequest) -> float:
    return read_order(policy.hooks.order(request))


def _plain_victim(policy: Policy, request: RunningRequest) -> int:
    return read_rank(policy.hooks.victim(request))


@lru_cache(maxsize=64)
def _compiled_place(policy: Policy, cluster: Any) -> Any:
    """Machine code for the policy's ``place``; it calls plain Python if need be."""
    function = policy.hooks.place

    def place(call: Any, cluster: Any, request: Any, rules: Any) -> Placement:
        said = function(cluster, request, rules)
        return Placement(said[0] + np.int64(0), said[1] + np.int64(0), bool(said[2]))

    arguments = (CallType(), _read_only(cluster), _REQUEST, _RULES)
    return _made(policy, place, _place_plainly, arguments, _PLACEMENT)


@lru_cache(maxsize=64)
def _compiled_order(policy: Policy) -> Any:
    """The same for ``order``."""
    function = policy.hooks.order

    def order(call: Any, request: Any) -> Any:
        return function(request) + 0.0

    return _made(policy, order, _order_plainly, (CallType(), _WAITING), types.float64)


@lru_cache(maxsize=64)
def _compiled_victim(policy: Policy) -> Any:
    """The same for ``victim``."""
    function = policy.hooks.victim

    def victim(call: Any, request: Any) -> Any:
        return function(request) + np.int64(0)

    return _made(policy, victim, _rank_plainly, (CallType(), _RUNNING), types.int64)


def _made(policy: Policy, compiling: Any, plain: Any, arguments: Any, wanted: Any) -> Any:
    """Machine code of a decision; of ``plain`` where numba does not compile it."""
    name = compiling.__name__
    function = getattr(policy.hooks, name)
    # Machine code is found by name, and what was kept by other processes has names of theirs.
    compiling.__qualname__ = f"{name}_{policy.digest}"
    register([*policy.functions, function], is_checked=name in policy.own)
    try:
        made: Any = compiled(compiling, policy.digest)
        made.compile(arguments)
        code = made.overloads[arguments]
        if code.signature.return_type != wanted:
            raise TypeError(f"it returns {code.signature.return_type}")
        return code
    except Exception as error:  # noqa: BLE001  numba raises what it likes
        log.warning(
            "policy %s: %s runs as plain Python, which is slow; numba does not compile it: %s",
            policy.name,
            name,
            _reason_of(error),
        )
        made = compiled(plain)
        made.compile(arguments)
        return made.overloads[arguments]


def _place_plainly(call: Any, cluster: Any, request: Any, rules: Any) -> Placement:
    with objmode(prompt="int64", token="int64", pulls="boolean"):
        prompt, token, pulls = call.plain(request, rules)
    return Placement(prompt, token, pulls)


def _order_plainly(call: Any, request: Any) -> Any:
    with objmode(order="float64"):
        order = call.plain(request)
    return order


def _rank_plainly(call: Any, request: Any) -> Any:
    with objmode(rank="int64"):
        rank = call.plain(request)
    return rank


def _reason_of(error: Exception) -> str:
    """The line of numba's long message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Failed in nopython mode")]
    return said[0] if said else type(error).__name__
