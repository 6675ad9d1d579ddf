"""How the simulator is compiled: numba, with a cache that knows every source it was made from.

numba keys its cache by the file of the compiled function alone. A decision in ``scheduling/`` is
compiled into its callers, so the cache folder carries a digest of both rooms: an edit anywhere in
them compiles anew, and nothing stale is ever run.
"""

import hashlib
import os
import sys
from collections.abc import Callable, Iterable
from multiprocessing import parent_process
from pathlib import Path

import numba
from numba.extending import register_jitable

from splitwise.scheduling.shared import SHARED, Function


def digest_of(*parts: str) -> str:
    """Of the sources in these rooms or files of the package, and of numba's version."""
    package = Path(__file__).parent.parent
    digest = hashlib.sha256(numba.__version__.encode())
    for part in parts:
        here = package / part
        for source in sorted(here.rglob("*.py")) if here.is_dir() else [here]:
            digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def cache_home() -> Path:
    """The folder for what can be made again."""
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return Path(base) / "splitwise"


_CACHE_FOLDER = str(cache_home() / "compiled" / digest_of("scheduling", "simulation"))
_registered: set[Callable[..., object]] = set()


def say_if_it_compiles() -> None:
    """Tell a terminal why the first simulation takes longer; of many processes one does."""
    folder = Path(_CACHE_FOLDER)
    is_first = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    is_ours = is_first or parent_process() is None
    if is_ours and sys.stderr.isatty() and not any(folder.rglob("*.nbc")):
        print("compiling the simulator, this once: some 20 s", file=sys.stderr)


def register(functions: Iterable[Callable[..., object]], is_checked: bool = False) -> None:
    """Let compiled code call these; ``is_checked``: an index beyond the end is an error there."""
    # Nobody calls helpers from C.
    marked = register_jitable(no_cfunc_wrapper=True, boundscheck=is_checked or None)
    for function in functions:
        if function not in _registered:
            _registered.add(function)
            marked(function)


def compiled(function: Function, policy_digest: str = "") -> Function:
    """Compile ``function`` on its first call, or load it from the cache of an earlier run.

    One that has a policy compiled into it names that policy's digest. A user's code fails there as
    it does as Python, at a division by zero and at an index beyond the end.
    """
    register(SHARED)  # of all that has been imported, so of all that it calls
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = str(Path(_CACHE_FOLDER) / policy_digest)
    try:
        # Without numba's runtime no array is counted as it is passed on, which took four fifths
        # of the time; the price is that compiled code creates no arrays.
        made: Function = numba.njit(
            cache=True,
            error_model="python" if policy_digest else "numpy",
            boundscheck=bool(policy_digest),
            _nrt=False,
        )(function)
    finally:
        numba.config.CACHE_DIR = before
    return made


def inlined(function: Function) -> Function:
    """A helper of a compiled function; compiled with its caller, ordinary Python to others."""
    register([function])
    return function
