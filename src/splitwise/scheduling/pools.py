"""The three pools."""

from enum import IntEnum


class Pool(IntEnum):
    """Which phase a machine runs (Splitwise, section IV.A)."""

    PROMPT = 0
    TOKEN = 1
    MIXED = 2
