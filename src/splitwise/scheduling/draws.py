"""Random numbers without a state: the same call gives the same number, in any process.

A draw is a hash of what it is for (a request's number, its attempt, and which of its draws), so the
server and the simulator draw alike, whatever happened before, and a retry draws anew. The mixing
is Chris Wellons' ``lowbias32``. All arithmetic fits the low 32 bits of a signed 64-bit integer,
which Python and compiled code compute alike.
"""

from typing import Final

from splitwise.scheduling.shared import shared

_LOW_32: Final = 0xFFFFFFFF


@shared
def _mixed(value: int) -> int:
    """A bijection of 32-bit numbers that spreads every bit over all."""
    value ^= value >> 16
    value = (value * 0x7FEB352D) & _LOW_32
    value ^= value >> 15
    value = (value * 0x846CA68B) & _LOW_32
    return value ^ (value >> 16)


@shared
def draw(below: int, number: int, attempt: int, which: int = 0, seed: int = 0) -> int:
    """An even draw from 0 to ``below - 1``, of at most 2**31 values.

    ``which`` tells the draws of one attempt apart, ``seed`` those of two policies.
    """
    value = _mixed((seed & _LOW_32) ^ 0x9E3779B9)
    value = _mixed(value ^ (number & _LOW_32))
    value = _mixed(value ^ ((number >> 32) & _LOW_32))
    value = _mixed(value ^ (attempt & _LOW_32))
    value = _mixed(value ^ (which & _LOW_32))
    return int((value * below) >> 32)
