"""Named tuples of arrays that compiled code passes as one pointer.

numba passes an array as seven numbers or more, and a tuple of forty arrays as three hundred, in
each of two hundred functions: that took most of the time to compile them. A tuple that is passed
by reference lies in memory during the call from Python, and a tuple within it is a pointer into
that. Nobody can change a tuple, so that what is read from it is read once.
"""

from typing import Any

from numba.core import cgutils, types
from numba.core.imputils import lower_getattr_generic
from numba.core.types.containers import BaseNamedTuple, BaseTuple
from numba.core.typing.templates import AttributeTemplate, infer_getattr
from numba.extending import NativeValue, models, register_model, typeof_impl, unbox


class Reference(types.Type):
    """The type of a pointer to a named tuple of type ``of``."""

    def __init__(self, of: Any) -> None:
        self.of = of
        super().__init__(name=f"Reference({of})")


@register_model(Reference)
class ReferenceModel(models.PrimitiveModel):  # type: ignore[misc]
    """In machine code: the pointer."""

    def __init__(self, dmm: Any, fe_type: Reference) -> None:
        pointed_at = dmm.lookup(fe_type.of).get_value_type()
        super().__init__(dmm, fe_type, pointed_at.as_pointer())


@infer_getattr
class ReferenceAttributes(AttributeTemplate):  # type: ignore[misc]
    """A field has its own type; one that is a named tuple is a reference to it."""

    key = Reference

    def generic_resolve(self, reference: Reference, name: str) -> Any:
        if name not in reference.of.fields:
            return None
        kind = reference.of.types[reference.of.fields.index(name)]
        return Reference(kind) if isinstance(kind, BaseNamedTuple) else kind


@lower_getattr_generic(Reference)  # type: ignore[untyped-decorator]
def _read_field(context: Any, builder: Any, kind: Reference, value: Any, name: str) -> Any:
    index = kind.of.fields.index(name)
    field = cgutils.gep_inbounds(builder, value, 0, index)
    if isinstance(kind.of.types[index], BaseNamedTuple):
        return field
    loaded = builder.load(field)
    loaded.set_metadata("invariant.load", builder.module.add_metadata([]))
    return loaded


@unbox(Reference)  # type: ignore[untyped-decorator]
def _to_memory(kind: Reference, value: Any, c: Any) -> Any:
    native = c.unbox(kind.of, value)
    place = cgutils.alloca_once_value(c.builder, native.value)
    return NativeValue(place, native.is_error, native.cleanup)


def by_reference(tuple_class: type[Any]) -> type[Any]:
    """Have compiled code take the named tuple ``tuple_class`` by reference."""

    def type_of(value: Any, context: Any) -> Reference:
        kinds = [typeof_impl(part, context) for part in value]
        kinds = [kind.of if isinstance(kind, Reference) else kind for kind in kinds]
        return Reference(BaseTuple.from_types(kinds, tuple_class))

    typeof_impl.register(tuple_class)(type_of)
    return tuple_class
