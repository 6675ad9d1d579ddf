"""How fast something has been going lately."""

import math
from typing import Final

WINDOW_S: Final = 30.0


class RateMeter:
    """An exponentially forgetting rate: what happened ``WINDOW_S`` ago weighs 1/e."""

    def __init__(self, now_s: float) -> None:
        self._sum = 0.0
        self._start_s = now_s
        self._last_s = now_s

    def add(self, amount: float, now_s: float) -> None:
        self._sum = self._sum * math.exp((self._last_s - now_s) / WINDOW_S) + amount
        self._last_s = now_s

    def per_s(self, now_s: float) -> float:
        """The rate, corrected for the time before the meter was started."""
        seen_s = WINDOW_S * (1 - math.exp((self._start_s - now_s) / WINDOW_S))
        if seen_s <= 0:
            return 0.0
        return self._sum * math.exp((self._last_s - now_s) / WINDOW_S) / seen_s
