"""When a machine that says nothing is no longer relied on, and when it is given up.

1. A machine reports every ``BEAT_PERIOD_S``, whatever else it has to say.
2. Somebody looks every ``LOOK_PERIOD_S`` whether it has said anything. Silence is counted in looks,
   not in seconds: one who was held up himself, and has heard nobody, looks once after that.
3. After ``QUIET_LOOKS`` it is QUIET: it may be held up, or gone. Its requests go on elsewhere,
   which costs a prompt pass each where that was wrong, and saves a wait where it was right.
4. It says something: HEARD, as before. After ``SILENT_LOOKS`` it is SILENT, and given up: to be
   started again costs a machine its cache, and minutes where its model is large.
"""

from dataclasses import dataclass
from enum import Enum, auto
from typing import Final

BEAT_PERIOD_S: Final = 0.5
LOOK_PERIOD_S: Final = 0.25
QUIET_LOOKS: Final = 6
SILENT_LOOKS: Final = 40


class Hearing(Enum):
    """What is heard of a machine."""

    HEARD = auto()
    QUIET = auto()
    SILENT = auto()


@dataclass
class Silence:
    """How long one machine has said nothing."""

    heard_s: float
    """When it said something last, on any clock."""
    looks: int = 0
    hearing: Hearing = Hearing.HEARD

    def look(self, heard_s: float) -> bool:
        """Count a look at a machine that was heard last at ``heard_s``; says whether ``hearing`` is
        another now."""
        self.looks = self.looks + 1 if heard_s == self.heard_s else 0
        self.heard_s = heard_s
        before, self.hearing = self.hearing, _hearing(self.looks)
        return self.hearing is not before


def _hearing(looks: int) -> Hearing:
    if looks >= SILENT_LOOKS:
        return Hearing.SILENT
    return Hearing.QUIET if looks >= QUIET_LOOKS else Hearing.HEARD
