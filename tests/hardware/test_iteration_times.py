"""Straight lines through knots, and what is made of them."""

from dataclasses import replace

import numpy as np
import pytest

from splitwise.hardware import HardwareError, IterationTimes, load_profile
from splitwise.hardware.iteration_times import straight_lines


@pytest.fixture
def times() -> IterationTimes:
    """Prompts: 100 tokens 10 ms, 200 tokens 30 ms, 400 tokens 40 ms; decodes: 1 ms each."""
    base = load_profile("measured", "dgx-a100", "llama2-70b")
    return replace(
        base,
        prompt_tokens=np.array([100.0, 200.0, 400.0]),
        prompt_s=np.array([0.010, 0.030, 0.040]),
        decode_s=np.arange(513) * 1e-3,
        decode_s_per_context_token=np.full(513, 1e-6),
        mixed_factor=1.1,
        power_tokens=np.array([100.0, 300.0]),
        prompt_watts=np.array([1000.0, 2000.0]),
    )


@pytest.mark.parametrize(
    ("tokens", "seconds"),
    [(100, 0.010), (150, 0.020), (200, 0.030), (300, 0.035), (400, 0.040), (600, 0.050)],
)
def test_prompts_lie_on_lines_through_knots(
    times: IterationTimes, tokens: int, seconds: float
) -> None:
    assert float(times.prompt_time_s(tokens)) == pytest.approx(seconds)


def test_below_the_first_knot_time_stays_positive(times: IterationTimes) -> None:
    """The line through the first two knots is at -8 ms for 10 tokens."""
    assert float(straight_lines(times.prompt_tokens, times.prompt_s, 10)) == pytest.approx(-0.008)
    assert 0 < float(times.prompt_time_s(10)) < 1e-5


def test_prompt_times_of_an_array_keep_its_shape(times: IterationTimes) -> None:
    assert times.prompt_time_s(np.arange(6).reshape(2, 3)).shape == (2, 3)


def test_decodes_pay_for_their_context(times: IterationTimes) -> None:
    assert times.decode_time_s(4, 1000) == pytest.approx(0.004 + 0.001)


def test_mixed_counts_decodes_as_tokens(times: IterationTimes) -> None:
    """146 prompt tokens and 4 decodes: 1.1 x 20 ms, and 2000 tokens of context."""
    assert times.mixed_time_s(146, 4, 2000) == pytest.approx(1.1 * 0.020 + 0.002)


def test_power_is_flat_beyond_its_knots(times: IterationTimes) -> None:
    assert times.prompt_watts_at([50, 200, 900]).tolist() == [1000, 1500, 2000]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"prompt_tokens": np.array([1.0, 1.0, 2.0])}, "prompt_tokens"),
        ({"prompt_s": np.array([1.0])}, "prompt_s"),
        ({"decode_s": np.zeros(5)}, "decode_s"),
        ({"kv_capacity_tokens": 0}, "kv_capacity_tokens"),
    ],
)
def test_senseless_times_are_refused(
    times: IterationTimes, change: dict[str, object], named: str
) -> None:
    with pytest.raises(HardwareError, match=named):
        replace(times, **change)  # type: ignore[arg-type]
