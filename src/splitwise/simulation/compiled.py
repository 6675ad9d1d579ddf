"""How the simulator is compiled: numba, with a cache that knows every source it was made from.

numba keys its cache by the file of the compiled function alone. A decision in ``scheduling/`` is
compiled into its callers, so the cache folder carries a digest of both rooms: an edit anywhere in
them compiles anew, and nothing stale is ever run.
"""

import hashlib
import os
import sys
from multiprocessing import parent_process
from pathlib import Path

import numba
from numba.extending import register_jitable

from splitwise.scheduling import batching, placement, waiting  # noqa: F401  these fill SHARED
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


_register = register_jitable(no_cfunc_wrapper=True)  # nobody calls helpers from C
_CACHE_FOLDER = str(cache_home() / "compiled" / digest_of("scheduling", "simulation"))
for _function in SHARED:
    _register(_function)


def say_if_it_compiles() -> None:
    """Tell a terminal why the first simulation takes longer; of many processes one does."""
    folder = Path(_CACHE_FOLDER)
    is_first = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    is_ours = is_first or parent_process() is None
    if is_ours and sys.stderr.isatty() and not any(folder.rglob("*.nbc")):
        print("compiling the simulator, this once: some 20 s", file=sys.stderr)


def compiled(function: Function) -> Function:
    """Compile ``function`` on its first call, or load it from the cache of an earlier run."""
    before = numba.config.CACHE_DIR
    numba.config.CACHE_DIR = _CACHE_FOLDER
    try:
        # Without numba's runtime no array is counted as it is passed on, which took four fifths
        # of the time; the price is that compiled code creates no arrays.
        made: Function = numba.njit(cache=True, error_model="numpy", _nrt=False)(function)
    finally:
        numba.config.CACHE_DIR = before
    return made


def inlined(function: Function) -> Function:
    """A helper of a compiled function; compiled with its caller, ordinary Python to others."""
    _register(function)
    return function
