"""Python's garbage collector in a process that serves: out of the way of what stays for good."""

import gc
from typing import Final

_YOUNG_OBJECTS: Final = 10_000
"""Python's default, 700, collects hundreds of times a second."""


def spare_collector() -> None:
    """To be called once everything is loaded: what is there now is never looked at again.

    A full collection would otherwise walk through all modules, tokens and weights' descriptions
    and hold up every request meanwhile, for tens of milliseconds.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG_OBJECTS)
