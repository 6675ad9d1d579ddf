"""The three pools."""

from enum import IntEnum
from typing import Final


class Pool(IntEnum):
    """Which phase a machine runs (Splitwise, section IV.A)."""

    PROMPT = 0
    TOKEN = 1
    MIXED = 2

    @property
    def label(self) -> str:
        """Its name, as people and metrics read it."""
        return self.name.lower()


POOL_NAMES: Final = {pool.label: pool for pool in Pool} | {
    "prefill": Pool.PROMPT,
    "decode": Pool.TOKEN,
}
"""What people may call the pools."""
