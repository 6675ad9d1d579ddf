"""A decision that compiled code calls by its address, so that the loop is compiled once for all.

A ``Call`` is made of what numba compiled; ``CallType`` is its type in compiled code, and an
intrinsic made of ``by_address`` calls it by numba's own convention.
"""

from collections.abc import Callable
from typing import Any

from numba import types
from numba.core import cgutils
from numba.extending import (
    NativeValue,
    box,
    models,
    register_model,
    typeof_impl,
    unbox,
)

from splitwise.simulation.by_reference import Reference


class Call:
    """A decision as compiled code has it: an address, and what plain Python is called for."""

    def __init__(self, code: Any, plain: Callable[..., Any]) -> None:
        """``code`` is what numba made of it, for one kind of arguments."""
        self._code = code  # as long as it lives, so does what lies at the address
        self.address = code.library.get_pointer_to_function(code.fndesc.llvm_func_name)
        self.plain = plain


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


def read_only_type(kind: Any) -> Any:
    """The type of the same arrays, which a decision only reads."""
    if isinstance(kind, Reference):
        return Reference(read_only_type(kind.of))
    if isinstance(kind, types.NamedTuple):
        return types.NamedTuple([read_only_type(part) for part in kind.types], kind.instance_class)
    return kind.copy(readonly=True)


def by_address(builder: Any, context: Any, said: Any, kinds: Any, values: Any) -> Any:
    """Call the function at the address of a call, the first value, by numba's own convention."""
    convention = context.call_conv
    function_type = convention.get_function_type(said, kinds)
    call = cgutils.create_struct_proxy(kinds[0])(context, builder, values[0])
    function = builder.inttoptr(call.address, function_type.as_pointer())
    status, answer = convention.call_function(builder, function, said, kinds, values)
    with cgutils.if_unlikely(builder, status.is_error):
        convention.return_status_propagate(builder, status)
    return answer
