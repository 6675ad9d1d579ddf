"""Where a policy comes from: its module, what that imports, and a digest of both.

A user's file may import modules that lie beside it. They are its own: two policies that each have
a ``helpers.py`` do not meet. So they are imported anew and not left in ``sys.modules``.
"""

import hashlib
import pickle
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Final

import numpy as np

_NAME: Final = "splitwise_policy_"
_PACKAGE: Final = Path(__file__).parents[2]
_INSTALLED: Final = tuple(
    Path(sysconfig.get_path(name)).resolve()
    for name in ("stdlib", "platstdlib", "purelib", "platlib")
)


def import_file(path: Path) -> ModuleType:
    """Run a Python file as a module of its own.

    Raises whatever the file raises.
    """
    name = f"{_NAME}{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    spec = spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None, "it is a file whose name ends in .py"
    module = module_from_spec(spec)
    with _own_folder(path.parent, name):
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return module


@contextmanager
def _own_folder(folder: Path, name: str) -> Iterator[None]:
    """Import from ``folder`` first. What is imported from there is known by names that begin with
    ``name`` afterwards."""
    others = {
        other: module
        for other, module in sys.modules.items()
        if _is_in(folder, other) and not _lies_in(module, folder)
    }
    before = {*sys.modules, name} - set(others)
    for other in others:
        del sys.modules[other]
    sys.path.insert(0, str(folder))
    writes, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # an edit is seen at once
    try:
        yield
    finally:
        sys.dont_write_bytecode = writes
        sys.path.remove(str(folder))
        for other, module in list(sys.modules.items()):
            if other not in before and _lies_in(module, folder) and not _is_ours(module):
                _rename(module, f"{name}_{other.replace('.', '_')}")
                del sys.modules[other]
        sys.modules.update(others)


def _rename(module: ModuleType, name: str) -> None:
    """Have a module, and what it defines, found by another name."""
    for value in vars(module).values():
        if isinstance(value, FunctionType | type) and value.__module__ == module.__name__:
            value.__module__ = name
    module.__name__ = name
    sys.modules[name] = module


def _is_in(folder: Path, name: str) -> bool:
    head = name.partition(".")[0]
    return (folder / f"{head}.py").exists() or (folder / head / "__init__.py").exists()


def _file_of(module: ModuleType) -> Path | None:
    file = getattr(module, "__file__", None)
    return None if file is None else Path(file).resolve()


def _lies_in(module: ModuleType, folder: Path) -> bool:
    file = _file_of(module)
    return file is not None and file.is_relative_to(folder.resolve())


def _is_ours(module: ModuleType) -> bool:
    return _lies_in(module, _PACKAGE)


def name_by_digest(modules: list[ModuleType], digest: str) -> None:
    """Have the names of two policies, or of a file before and after an edit, never be the same:
    machine code is found by name."""
    for module in modules:
        if module.__name__.startswith(_NAME):  # others have one version a process
            _rename(module, f"{module.__name__}_{digest}")


def own_modules(module: ModuleType) -> list[ModuleType]:
    """The policy's module, and those that it refers to, or they, that are not installed."""
    found = {module.__name__: module}
    waiting = [module]
    while waiting:
        for other in _referred(waiting.pop()):
            is_foreign = _is_ours(other) or any(_lies_in(other, path) for path in _INSTALLED)
            if other.__name__ not in found and _file_of(other) is not None and not is_foreign:
                found[other.__name__] = other
                waiting.append(other)
    return list(found.values())


def _referred(module: ModuleType) -> list[ModuleType]:
    """The modules that a module's names stand for, or that made what they stand for."""
    found = []
    for value in list(vars(module).values()):
        name = getattr(value, "__module__", None)
        if isinstance(value, ModuleType):
            found.append(value)
        elif isinstance(name, str) and name in sys.modules:
            found.append(sys.modules[name])
    return found


def functions_of(modules: list[ModuleType]) -> tuple[FunctionType, ...]:
    """The functions that these modules define."""
    return tuple(
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, FunctionType) and value.__module__ == module.__name__
    )


def digest_of_modules(modules: list[ModuleType]) -> str:
    """Of their sources, and of the values of their names: what is read from the environment or
    from a file as a policy is imported is a constant to compiled code."""
    digest = hashlib.sha256()
    for module in sorted(modules, key=lambda one: str(_file_of(one))):
        file = _file_of(module)
        assert file is not None, "modules without a file are nobody's own"
        digest.update(file.read_bytes())
        for name, value in vars(module).items():
            if not (name.startswith("__") or isinstance(value, ModuleType)):
                digest.update(name.encode() + _content(value))
    return digest.hexdigest()[:16]


def _content(value: object) -> bytes:
    """A value's bytes; what cannot be written down compiled code cannot hold either."""
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or ()]
        return b"".join(map(_content, [*cells, *(value.__defaults__ or ())]))
    if isinstance(value, np.ndarray):
        return repr((value.dtype, value.shape)).encode() + value.tobytes()
    if isinstance(value, type):
        return value.__qualname__.encode()
    try:
        return pickle.dumps(value)
    except Exception:  # noqa: BLE001  any class may refuse in its own way
        return type(value).__qualname__.encode()
