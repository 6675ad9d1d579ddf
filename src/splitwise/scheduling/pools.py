"""The three pools."""

from enum import IntEnum


class Pool(IntEnum):
    """Which phase a machine runs (Splitwise, section IV.A)."""

    PROMPT = 0
    TOKEN = 1
    MIXED = 2

    @property
    def label(self) -> str:
        """Its name, as people and metrics read it."""
        return self.name.lower()
