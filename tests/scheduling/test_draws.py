"""Draws without a state: even, independent of each other, and the same in both worlds."""

from collections import Counter

import numba
import numpy as np
import pytest

from splitwise.scheduling.draws import draw
from splitwise.scheduling.shared import SHARED
from splitwise.simulation.compiled import register


def chi_square(counts: Counter[int], cells: int) -> float:
    expected = sum(counts.values()) / cells
    return sum((counts[cell] - expected) ** 2 / expected for cell in range(cells))


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 3])
def test_draws_are_even_over_numbers_attempts_and_whichs(seed: int) -> None:
    """Below the 99.99 % points of chi-square with 12, and with 12 * 12, degrees of freedom."""
    number = Counter(draw(13, i, 0, 0, seed) for i in range(20_000))
    attempt = Counter(draw(13, 5, i, 0, seed) for i in range(20_000))
    pairs = Counter(13 * draw(13, i, 0, 0, seed) + draw(13, i, 0, 1, seed) for i in range(20_000))
    assert chi_square(number, 13) < 39.1
    assert chi_square(attempt, 13) < 39.1
    assert chi_square(pairs, 169) < 239


def test_a_retry_draws_anew_and_the_same_request_does_not() -> None:
    draws = [[draw(1000, i, attempt) for i in range(50)] for attempt in (0, 1, 0)]
    assert draws[0] == draws[2]
    assert sum(a == b for a, b in zip(draws[0], draws[1], strict=True)) < 5


def test_numbers_beyond_32_bits_are_not_folded() -> None:
    assert [draw(1000, i, 0) for i in range(20)] != [draw(1000, i + 2**32, 0) for i in range(20)]


def test_compiled_code_draws_alike() -> None:
    register(SHARED)

    @numba.njit
    def drawn(below: np.ndarray, number: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
        out = np.zeros(len(number), dtype=np.int64)
        for i in range(len(number)):
            out[i] = draw(below[i], number[i], i % 3, i % 5, 2**33 + 7)
        return out

    source = np.random.default_rng(0)
    number = source.integers(0, 2**62, 2000)
    below = source.integers(1, 2**31, 2000)
    plain = [
        draw(int(b), int(n), i % 3, i % 5, 2**33 + 7)
        for i, (b, n) in enumerate(zip(below, number, strict=True))
    ]
    assert drawn(below, number).tolist() == plain
    assert all(0 <= value < bound for value, bound in zip(plain, below, strict=True))
