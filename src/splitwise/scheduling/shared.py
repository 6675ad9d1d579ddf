"""One decorator: the server calls a decision as it stands, the simulator compiles it."""

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])

SHARED: list[Callable[..., object]] = []
"""Every function of this room that compiled code may call, for the simulator to register."""


def shared(function: Function) -> Function:
    """Mark ``function`` as callable from compiled code; it stays ordinary Python.

    numba is not imported here, so that the server starts without it.
    """
    SHARED.append(function)
    return function
