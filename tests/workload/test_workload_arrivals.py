"""Arrivals have the rate, the burstiness and the shape asked for, and the same ones every time."""

import math

import numpy as np
import pytest

from splitwise.workload import (
    Arrivals,
    Diurnal,
    Gamma,
    Piecewise,
    Poisson,
    Replay,
    Requests,
    WorkloadError,
    generate,
    summarise,
)

RECORDED_S = np.array([3.0, 3.5, 4.0, 5.0, 7.0])
PINNED_PROMPT_TOKENS = [398, 408, 1430, 1077]
PINNED_OUTPUT_TOKENS = [429, 555, 396, 32]
PINNED_ARRIVAL_S = [0.274569, 0.30923, 0.4149978, 0.6673416]
PROCESSES: list[Arrivals] = [
    Poisson(50),
    Gamma(50, 3),
    Replay(np.arange(20_000) / 50),
    Piecewise(((0, 20), (5, 0), (7, 80))),
    Diurnal(50, 0.8, 20),
]


def per_second(arrivals: Arrivals, start_s: float, end_s: float, duration_s: float) -> float:
    times = generate("coding", arrivals=arrivals, duration_s=duration_s).arrival_s
    return float(((times >= start_s) & (times < end_s)).sum()) / (end_s - start_s)


@pytest.mark.parametrize("arrivals", PROCESSES, ids=lambda process: type(process).__name__)
def test_a_longer_run_begins_with_the_shorter(arrivals: Arrivals) -> None:
    short = generate("conversation", arrivals=arrivals, duration_s=10, seed=3)
    long = generate("conversation", arrivals=arrivals, count=9000, seed=3)
    for column in ("arrival_s", "prompt_tokens", "output_tokens"):
        assert np.array_equal(getattr(short, column), getattr(long, column)[: len(short)])
    assert 0 < len(short) < len(long) == 9000
    assert short.arrival_s[-1] < 10 <= long.arrival_s[len(short)]


def test_a_seed_gives_the_same_requests_everywhere() -> None:
    drawn = generate("conversation", 2, count=4, seed=7)
    assert drawn.prompt_tokens.tolist() == PINNED_PROMPT_TOKENS
    assert drawn.output_tokens.tolist() == PINNED_OUTPUT_TOKENS
    assert drawn.arrival_s == pytest.approx(PINNED_ARRIVAL_S, abs=1e-6)
    other = generate("conversation", 2, count=4, seed=8)
    assert not np.array_equal(drawn.prompt_tokens, other.prompt_tokens)


def test_a_rate_changes_no_size() -> None:
    slow, fast = generate("coding", 2, count=50), generate("coding", 8, count=50)
    assert np.array_equal(slow.prompt_tokens, fast.prompt_tokens)
    assert slow.scaled(4).arrival_s == pytest.approx(fast.arrival_s)


@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_gaps_have_the_rate_and_burstiness_asked_for(cv: float) -> None:
    summary = summarise(generate("coding", arrivals=Gamma(20, cv), count=100_000))
    assert summary.rate_per_s == pytest.approx(20, rel=0.04)
    assert summary.interarrival_cv == pytest.approx(cv, rel=0.04)


def test_poisson_has_variation_one() -> None:
    summary = summarise(generate("coding", 70, duration_s=1000))
    assert summary.rate_per_s == pytest.approx(70, rel=0.02)
    assert summary.interarrival_cv == pytest.approx(1, rel=0.02)


def test_piecewise_follows_its_steps() -> None:
    steps = Piecewise(((0, 100), (100, 0), (150, 300)))
    assert per_second(steps, 0, 100, 250) == pytest.approx(100, rel=0.05)
    assert per_second(steps, 100, 150, 250) == 0
    assert per_second(steps, 150, 250, 250) == pytest.approx(300, rel=0.05)


def test_piecewise_may_end_in_silence() -> None:
    ending = Piecewise(((0, 10), (20, 0)))
    assert generate("coding", arrivals=ending, duration_s=1e6).arrival_s[-1] < 20
    with pytest.raises(WorkloadError, match="the last rate is 0"):
        generate("coding", arrivals=ending, count=1000)


def test_diurnal_peaks_after_a_quarter_and_keeps_its_mean() -> None:
    day = Diurnal(100, 0.9, 400)
    peak = 100 * (1 + 0.9 * math.sin(0.45) / 0.45)
    width_s = 0.45 / math.tau * 400  # Half the window whose phase spans 0.45 either side.
    assert per_second(day, 100 - width_s, 100 + width_s, 400) == pytest.approx(peak, rel=0.05)
    assert per_second(day, 300 - width_s, 300 + width_s, 400) == pytest.approx(200 - peak, rel=0.2)
    assert per_second(day, 0, 400, 400) == pytest.approx(100, rel=0.02)


def test_replay_keeps_the_pattern_and_scales_the_rate() -> None:
    sizes = Requests(RECORDED_S, np.arange(1, 6), np.arange(1, 6))
    as_recorded = generate(sizes, arrivals=Replay(RECORDED_S), count=5)
    assert as_recorded.arrival_s.tolist() == [0, 0.5, 1, 2, 4]
    twice = generate(sizes, arrivals=Replay(RECORDED_S, rate_per_s=2), duration_s=1)
    assert twice.arrival_s.tolist() == [0, 0.25, 0.5]
    with pytest.raises(WorkloadError, match="the recording has 5 requests in 4 s"):
        generate(sizes, arrivals=Replay(RECORDED_S), duration_s=5)


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"count": 1}, "rate_per_s None, arrivals None"),
        ({"rate_per_s": 1}, "count None, duration_s None"),
        ({"rate_per_s": 1, "count": 1, "duration_s": 1}, "give exactly one"),
        ({"rate_per_s": 1, "arrivals": Poisson(1), "count": 1}, "give exactly one"),
        ({"rate_per_s": 0, "count": 1}, "rate_per_s 0"),
        ({"rate_per_s": 1, "count": 0}, "count 0"),
        ({"rate_per_s": 1, "duration_s": math.inf}, "duration_s inf"),
        ({"rate_per_s": 1, "count": 1, "seed": -1}, "seed -1"),
    ],
)
def test_bad_arguments_are_named(arguments: dict[str, object], complaint: str) -> None:
    with pytest.raises(WorkloadError, match=complaint):
        generate("coding", **arguments)  # type: ignore[arg-type]


def test_bad_processes_are_refused() -> None:
    with pytest.raises(WorkloadError, match="cv 0"):
        Gamma(1, 0)
    with pytest.raises(WorkloadError, match="amplitude 2"):
        Diurnal(1, 2)
    with pytest.raises(WorkloadError, match="the first at 0"):
        Piecewise(((1, 1),))
    with pytest.raises(WorkloadError, match="ascending"):
        Piecewise(((0, 1), (0, 2)))
    with pytest.raises(WorkloadError, match="rates of 0 or more"):
        Piecewise(((0, -1),))
    with pytest.raises(WorkloadError, match="at least two arrivals"):
        Replay(np.array([1.0]))


def test_requests_check_themselves() -> None:
    tokens = np.array([1, 2])
    with pytest.raises(WorkloadError, match=r"\[2, 1, 2\] entries"):
        Requests(np.array([0.0, 1.0]), tokens[:1], tokens)
    with pytest.raises(WorkloadError, match=r"arrival_s\[1\] is 0\.0: sort"):
        Requests(np.array([1.0, 0.0]), tokens, tokens)
    with pytest.raises(WorkloadError, match=r"output_tokens\[0\] is 0"):
        Requests(np.array([0.0, 1.0]), tokens, tokens - 1)
    requests = Requests(np.array([1.0, 3.0]), tokens, tokens)
    assert (len(requests), requests.rate_per_s) == (2, 0.5)
    assert requests.scaled(2).arrival_s.tolist() == [0.5, 1.5]
    assert len(requests.until(3.0)) == 1
    assert requests.until(1.0).rate_per_s == 0
    with pytest.raises(WorkloadError, match="factor 0"):
        requests.scaled(0)
