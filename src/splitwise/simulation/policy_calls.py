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
from functools import lru_cache
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
from splitwise.scheduling.decision import Placement, PlacementRequest, PlacementRules
from splitwise.scheduling.enacting import EXPLAINED, Fault, fault_of, in_one_place, read_placement
from splitwise.scheduling.policies import default
from splitwise.scheduling.policies.policy import Policy, PolicyError
from splitwise.simulation.by_reference import Reference
from splitwise.simulation.compiled import compiled, inlined, register

log = logging.getLogger(__name__)

ASKED: Final = np.dtype(
    [
        ("number", np.int64),  # of the request that a decision is asked for; 0: of none
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


def _read_only(kind: Any) -> Any:
    """The type of the same arrays, which a decision only reads."""
    if isinstance(kind, Reference):
        return Reference(_read_only(kind.of))
    if isinstance(kind, types.NamedTuple):
        return types.NamedTuple([_read_only(part) for part in kind.types], kind.instance_class)
    return kind.copy(readonly=True)


@intrinsic  # type: ignore[untyped-decorator]
def _call_place(context: Any, call: Any, cluster: Any, request: Any, rules: Any) -> Any:
    """Call the function at the call's address by numba's own convention."""
    signature = _PLACEMENT(call, cluster, request, rules)
    kinds = (call, _read_only(cluster), request, rules)
    if kinds[2:] != (_REQUEST, _RULES):
        raise numba.TypingError(f"place is asked of {request}, {rules}")

    def generate(context: Any, builder: Any, signature: Any, values: Any) -> Any:
        convention = context.call_conv
        function_type = convention.get_function_type(_PLACEMENT, kinds)
        call = cgutils.create_struct_proxy(kinds[0])(context, builder, values[0])
        function = builder.inttoptr(call.address, function_type.as_pointer())
        status, said = convention.call_function(builder, function, _PLACEMENT, kinds, values)
        with cgutils.if_unlikely(builder, status.is_error):
            convention.return_status_propagate(builder, status)
        return said

    return signature, generate


@inlined
def place_by(
    calls: Calls, cluster: ClusterState, request: PlacementRequest, rules: PlacementRules
) -> Placement:
    """What the policy says of a request."""
    asked = calls.asked[0]
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


def calls_of(policy: Policy, cluster: ClusterState) -> Calls:
    """The policy's decisions over a simulation's machines."""
    seen = Reference(numba.typeof(cluster))  # as a part of ``State`` is
    code = _compiled_place(policy, seen)
    return Calls(Call(code, _plain_place(policy, cluster)), np.zeros(1, dtype=ASKED))


def policy_error(policy: Policy, calls: Calls, error: Exception) -> PolicyError | None:
    """What to say of an error that ended the loop; None if it is not the policy's."""
    asked = calls.asked[0]
    if asked["number"] == 0:
        return None
    place = f"policy {policy.name}: place of request {asked['number']}"
    if not isinstance(error, WrongDecision):
        return PolicyError(f"{place} raised {type(error).__name__}: {error}")
    fault = Fault(asked["fault"])
    return PolicyError(f"{place} said {asked['prompt']}, {asked['token']}: {EXPLAINED[fault]}")


def _plain_place(policy: Policy, cluster: ClusterState) -> Callable[..., Placement]:
    seen = read_only(cluster)

    def place(request: PlacementRequest, rules: PlacementRules) -> Placement:
        return read_placement(policy.hooks.place(seen, request, rules))

    return place


@lru_cache(maxsize=64)
def _compiled_place(policy: Policy, cluster: Any) -> Any:
    """Machine code for the policy's ``place``; it calls plain Python if need be."""
    arguments = (CallType(), _read_only(cluster), _REQUEST, _RULES)
    function = policy.hooks.place

    def place(call: Any, cluster: Any, request: Any, rules: Any) -> Placement:
        said = function(cluster, request, rules)
        return Placement(said[0] + np.int64(0), said[1] + np.int64(0), bool(said[2]))

    # Machine code is found by name, and what was kept by other processes has names of theirs.
    place.__qualname__ = f"place_{policy.digest}"
    register([*policy.functions, function], is_checked=function is not default.place)
    try:
        made: Any = compiled(place, policy.digest)
        made.compile(arguments)
        code = made.overloads[arguments]
        if code.signature.return_type != _PLACEMENT:
            raise TypeError(f"it returns {code.signature.return_type}")
        return code
    except Exception as error:  # noqa: BLE001  numba raises what it likes
        log.warning(
            "policy %s: place runs as plain Python, which is slow; numba does not compile it: %s",
            policy.name,
            _reason_of(error),
        )
        made = compiled(_call_plain)
        made.compile(arguments)
        return made.overloads[arguments]


def _call_plain(call: Any, cluster: Any, request: Any, rules: Any) -> Placement:
    with objmode(prompt="int64", token="int64", pulls="boolean"):
        prompt, token, pulls = call.plain(request, rules)
    return Placement(prompt, token, pulls)


def _reason_of(error: Exception) -> str:
    """The line of numba's long message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Failed in nopython mode")]
    return said[0] if said else type(error).__name__
