"""Options of a command that are the fields of a struct, declared once, there.

A field's type and default and its ``msgspec.Meta`` (range and description) make the option, whose
flag is the field's name; ``Meta(extra={"flags": (...)})`` gives it others, of which the first is
its name in a ``--config`` file too. A field without a description is no option.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Annotated, Any, get_args, get_origin, get_type_hints

import msgspec
import typer


@dataclass(frozen=True)
class SettingOption:
    """The option that a field of a struct makes."""

    field: str
    kind: Any
    """Its type, as typer takes it."""
    default: Any
    meta: msgspec.Meta

    @property
    def flags(self) -> tuple[str, ...]:
        given = (self.meta.extra or {}).get("flags")
        return tuple(given) if given else (_flag(self.field),)

    @property
    def name(self) -> str:
        """What the command, its environment and its file call it."""
        return self.flags[0].removeprefix("--").replace("-", "_")

    def parameter(self) -> inspect.Parameter:
        """The parameter of which typer makes the option."""
        declared = () if self.flags == (_flag(self.name),) else self.flags
        meta = self.meta
        info = typer.Option(*declared, help=meta.description, min=meta.ge, max=meta.le)
        return _keyword(self.name, Annotated[self.kind, info], self.default)

    def arguments(self, value: Any) -> list[str]:
        """The command line that gives it this value."""
        if value is None:
            return []
        if isinstance(value, bool):
            return [self.flags[0] if value else _flag("no_" + self.name)]
        return [f"{self.flags[0]}={value}"]


def options_of(struct: type[msgspec.Struct]) -> Iterator[SettingOption]:
    """The options that a struct's fields make, in their order."""
    hints = get_type_hints(struct, include_extras=True)
    for field in msgspec.structs.fields(struct):
        hint = hints[field.name]
        if get_origin(hint) is not Annotated:
            continue
        kind, *notes = get_args(hint)
        meta = next((note for note in notes if isinstance(note, msgspec.Meta)), None)
        if meta is not None and meta.description:
            yield SettingOption(field.name, kind, field.default, meta)


def to_arguments(settings: msgspec.Struct) -> list[str]:
    """The command line that gives a command these settings."""
    return [
        argument
        for option in options_of(type(settings))
        for argument in option.arguments(getattr(settings, option.field))
    ]


def with_settings(command: Callable[..., None]) -> Callable[..., None]:
    """``command`` for typer: in place of each parameter that is a struct it has its options."""
    hints = get_type_hints(command, include_extras=True)
    structs = {name: hint for name, hint in hints.items() if _is_struct(hint)}
    parameters: list[inspect.Parameter] = []
    for name, parameter in inspect.signature(command).parameters.items():
        if name in structs:
            parameters += [option.parameter() for option in options_of(structs[name])]
        else:
            parameters.append(_keyword(name, hints[name], parameter.default))

    def run(**given: Any) -> None:
        for name, struct in structs.items():
            fields = {option.field: given.pop(option.name) for option in options_of(struct)}
            given[name] = struct(**fields)
        command(**given)

    run.__name__, run.__doc__ = command.__name__, command.__doc__
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return run


def _is_struct(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, msgspec.Struct)


def _keyword(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
    )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
