"""How the simulator is compiled: numba, with a cache that knows every source it was made from.

numba keys its cache by the file of the compiled function alone. A decision in ``scheduling/`` is
compiled into its callers, so the cache folder carries a digest of both rooms: an edit anywhere in
them compiles anew, and nothing stale is ever run.
"""

import hashlib
import os
from pathlib import Path

import numba
from numba.extending import register_jitable

from splitwise.scheduling.shared import SHARED, Function


def _digest() -> str:
    package = Path(__file__).parent.parent
    sources = [*(package / "scheduling").rglob("*.py"), *(package / "simulation").rglob("*.py")]
    digest = hashlib.sha256(numba.__version__.encode())
    for source in sorted(sources):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:16]


def _cache_folder() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    return str(Path(base) / "splitwise" / "compiled" / _digest())


_CACHE_FOLDER = _cache_folder()
for _function in SHARED:
    register_jitable(_function)


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
    register_jitable(function)
    return function
