"""A policy: the decisions that may be one's own, as functions in a Python file.

1. ``load_policy`` runs the file, or takes a module of this folder, and checks what it defines. A
   decision that it does not define is the default's.
2. The server calls its functions as they stand. The simulator compiles those that can be.
3. ``digest`` stands for all that they do: what was compiled or simulated with them is kept under
   it. A policy that is sent to another process is loaded anew there, and has to have that digest.
"""

import inspect
import traceback
from collections.abc import Callable
from dataclasses import dataclass, fields
from difflib import get_close_matches
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any, Final, NoReturn

from splitwise.scheduling.policies import default
from splitwise.scheduling.policies.sources import (
    digest_of_modules,
    functions_of,
    import_file,
    name_by_digest,
    own_modules,
)

SHIPPED: Final = ("default", "two-choices", "all-mixed")
_ALIKE: Final = 0.65
"""Names more alike than this to a decision's are taken for a slip of the pen."""


class PolicyError(ValueError):
    """A policy cannot be loaded, or decided what cannot be."""


@dataclass(frozen=True)
class Hooks:
    """The decisions; ``default`` says what each is asked."""

    place: Callable[..., Any] = default.place
    order: Callable[..., Any] = default.order
    compose: Callable[..., Any] = default.compose
    victim: Callable[..., Any] = default.victim


_DEFAULTS: Final[dict[str, Callable[..., Any]]] = {
    field.name: getattr(Hooks(), field.name) for field in fields(Hooks)
}
HOOKS: Final = tuple(_DEFAULTS)


@dataclass(frozen=True, eq=False)
class Policy:
    """``source`` is what ``load_policy`` takes; ``own`` names the decisions that are not the
    default's. ``functions`` are what its decisions may call of its own, for a compiler."""

    source: str = SHIPPED[0]
    digest: str = ""
    hooks: Hooks = Hooks()
    own: frozenset[str] = frozenset()
    functions: tuple[FunctionType, ...] = ()

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.source if self.source in SHIPPED else Path(self.source).name

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Policy) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return load_again, (self.source, self.digest)


DEFAULT: Final = Policy()


def load_policy(source: str) -> Policy:
    """The shipped policy of that name, or the one in that Python file.

    Raises:
        PolicyError: there is none, it cannot be imported, or it defines what is no decision.
    """
    name = source.replace("_", "-")
    if name == DEFAULT.source:
        return DEFAULT
    if name in SHIPPED:
        module = import_module(f"splitwise.scheduling.policies.{name.replace('-', '_')}")
        return _made(name, module)
    path = Path(source)
    if path.suffix != ".py":
        raise PolicyError(
            f"policy is {source!r}; choose from {', '.join(SHIPPED)}, or name a file that ends "
            "in .py"
        )
    if not path.is_file():
        raise PolicyError(f"policy {source}: there is no such file")
    path = path.resolve()
    try:
        module = import_file(path)
    except (Exception, SystemExit) as error:  # noqa: BLE001  whatever the file raises
        _fail_import(path, error)
    return _made(str(path), module)


def load_again(source: str, digest: str) -> Policy:
    """The policy that another process sent.

    Raises:
        PolicyError: it is not here, or another one.
    """
    policy = load_policy(source)
    if policy.digest != digest:
        raise PolicyError(
            f"policy {source} differs from what this work began with; it was changed meanwhile, "
            "or is another file on this host: put the same there, or start again"
        )
    return policy


def _fail_import(path: Path, error: BaseException) -> NoReturn:
    """Say where the file went wrong."""
    said = str(error)
    if isinstance(error, SyntaxError) and error.filename is not None:
        where, said = f"{error.filename}, line {error.lineno}", error.msg
    else:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(frame.filename).is_relative_to(path.parent)]
        last = own[-1] if own else frames[-1]
        where = f"{last.filename}, line {last.lineno}"
    raise PolicyError(f"policy {where}: {type(error).__name__}: {said}; mend the file") from error


def _made(source: str, module: ModuleType) -> Policy:
    own = _own_hooks(source, module)
    modules = own_modules(module)
    hooks = Hooks(**{name: getattr(module, name) for name in own})
    digest = digest_of_modules(modules)
    if source not in SHIPPED:
        name_by_digest(modules, digest)
    return Policy(source, digest, hooks, frozenset(own), functions_of(modules))


def _own_hooks(source: str, module: ModuleType) -> list[str]:
    """The decisions that a module defines, and nothing that looks like one but is none.

    Raises:
        PolicyError: it defines none, or one by a wrong name or with wrong parameters.
    """
    for name, value in vars(module).items():
        is_defined_here = getattr(value, "__module__", None) == module.__name__
        if name in HOOKS or name.startswith("_") or not (callable(value) and is_defined_here):
            continue
        if meant := get_close_matches(name, HOOKS, 1, _ALIKE):
            raise PolicyError(
                f"policy {source} defines {name}, which is no decision; did you mean {meant[0]}? "
                f"Name it so, or _{name} if it is a helper"
            )
    own = [name for name in HOOKS if getattr(module, name, None) not in (None, _DEFAULTS[name])]
    if not own:
        raise PolicyError(f"policy {source} defines no decision; define one of {', '.join(HOOKS)}")
    for name in own:
        _check_parameters(source, name, getattr(module, name))
    return own


def _check_parameters(source: str, name: str, hook: object) -> None:
    wanted = _parameters(_DEFAULTS[name])
    if not isinstance(hook, FunctionType):
        raise PolicyError(f"policy {source}: {name} is {hook!r}; make it a function of {wanted}")
    if (found := _parameters(hook)) != wanted:
        raise PolicyError(f"policy {source}: {name} takes {found}; it must take {wanted}")


def _parameters(function: Callable[..., Any]) -> str:
    parameters = inspect.signature(function).parameters.values()
    plain = [one.replace(annotation=one.empty, default=one.empty) for one in parameters]
    return str(inspect.Signature(plain))
