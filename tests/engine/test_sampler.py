"""The sampler against transformers' logits processors, torch, and itself in other batches."""

import math
from collections import Counter

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from splitwise.engine.base import Work
from splitwise.engine.sampling import SamplingParams
from splitwise.engine.torch.sampler import exponentials, race_keys, sample

VOCABULARY = 60
DRAWS = 8000


def logits_row(seed: int = 0, size: int = VOCABULARY) -> torch.Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed)) * 2


def work(params: SamplingParams, history: list[int] | None = None, prompt_tokens: int = 1) -> Work:
    history = history or [0]
    return Work(history[-1:], len(history) - 1, [], params, history, prompt_tokens)


def draws(row: torch.Tensor, count: int = DRAWS, **settings: float) -> Counter[int]:
    """``count`` tokens drawn from the same logits, each with its own seed."""
    entries = [work(SamplingParams(seed=seed, **settings)) for seed in range(count)]
    return Counter(s.token for s in sample(row.repeat(count, 1), entries))


def expected(row: torch.Tensor, *processors: object) -> torch.Tensor:
    """Probabilities by transformers' own processors, in its own order."""
    scores = LogitsProcessorList(processors)(torch.zeros(1, 1, dtype=torch.long), row[None])
    return torch.softmax(scores[0], -1)


def assert_distribution(counts: Counter[int], probs: torch.Tensor) -> None:
    """Nothing outside the support, and a chi-squared statistic that 1 run in 10^6 exceeds."""
    total = counts.total()
    assert all(probs[token] > 0 for token in counts), "a token that was ruled out was drawn"
    likely = [t for t in range(len(probs)) if probs[t] * total >= 5]
    statistic = sum((counts[t] - probs[t] * total) ** 2 / (probs[t] * total) for t in likely)
    freedom = max(1, len(likely) - 1)
    assert statistic < freedom + 4.75 * math.sqrt(2 * freedom) + 2 * 4.75**2


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_temperature(temperature: float) -> None:
    row = logits_row()
    probs = expected(row, TemperatureLogitsWarper(temperature))
    assert_distribution(draws(row, temperature=temperature), probs)


@pytest.mark.parametrize("top_k", [1, 5, 59, 60, 200])
def test_top_k(top_k: int) -> None:
    row = logits_row(1)
    assert_distribution(draws(row, top_k=top_k), expected(row, TopKLogitsWarper(top_k)))


@pytest.mark.parametrize("top_p", [0.01, 0.4, 0.9, 0.999])
def test_top_p(top_p: float) -> None:
    row = logits_row(2)
    assert_distribution(draws(row, top_p=top_p), expected(row, TopPLogitsWarper(top_p)))


@pytest.mark.parametrize("min_p", [0.02, 0.3, 1.0])
def test_min_p(min_p: float) -> None:
    row = logits_row(3)
    assert_distribution(draws(row, min_p=min_p), expected(row, MinPLogitsWarper(min_p)))


def test_all_filters_in_their_order() -> None:
    row = logits_row(4)
    probs = expected(
        row,
        TemperatureLogitsWarper(1.7),
        TopKLogitsWarper(20),
        TopPLogitsWarper(0.8),
        MinPLogitsWarper(0.1),
    )
    assert 2 < int((probs > 0).sum()) < 20
    assert_distribution(draws(row, temperature=1.7, top_k=20, top_p=0.8, min_p=0.1), probs)


@pytest.mark.parametrize("top_p", [0.5, 0.97])
def test_top_p_beyond_the_shortlist(top_p: float) -> None:
    """A flat distribution over 3000 tokens: the support is checked, token by token."""
    row = logits_row(5, size=3000) * 0.1
    allowed = expected(row, TopPLogitsWarper(top_p)) > 0
    assert int(allowed.sum()) > 1000
    drawn = draws(row, count=600, top_p=top_p)
    assert all(bool(allowed[token]) for token in drawn)
    assert len(drawn) > 300


def test_repetition_penalty_is_transformers() -> None:
    history = [3, 7, 7, 12, 59]
    row = logits_row(6)
    processor = RepetitionPenaltyLogitsProcessor(penalty=1.8)
    want = torch.log_softmax(processor(torch.tensor([history]), row[None])[0], -1)
    entry = work(SamplingParams(repetition_penalty=1.8, temperature=1.0), history, 4)
    counts: Counter[int] = Counter()
    for seed in range(DRAWS // 20):
        params = SamplingParams(repetition_penalty=1.8, seed=seed)
        counts[sample(row[None].clone(), [work(params, history, 4)])[0].token] += 1
    assert entry.sampling.has_penalties
    assert_distribution(counts, want.exp())


@pytest.mark.parametrize(("frequency", "presence"), [(0.7, 0.0), (0.0, 1.5), (0.4, -0.9)])
def test_presence_and_frequency_count_output_only(frequency: float, presence: float) -> None:
    history = [9, 9, 9, 4, 4, 5]  # the prompt is [9, 9, 9]
    row = torch.zeros(VOCABULARY)
    row[[9, 4, 5]] = torch.tensor([3.0, 4.0, 3.5])
    by_hand = row.clone()
    by_hand[4] -= 2 * frequency + presence
    by_hand[5] -= frequency + presence
    params = SamplingParams(temperature=0.0, frequency_penalty=frequency, presence_penalty=presence)
    chosen = sample(row[None].clone(), [work(params, history, 3)])[0].token
    assert chosen == int(by_hand.argmax())


def test_a_draw_does_not_depend_on_its_batch() -> None:
    rows = torch.stack([logits_row(n) for n in range(30)])
    entries = [
        work(
            SamplingParams(
                seed=n,
                temperature=(0.0, 0.7, 1.0)[n % 3],
                top_k=(0, 8)[n % 2],
                top_p=(1.0, 0.9, 0.5, 1.0)[n % 4],
                min_p=(0.0, 0.05)[n % 5 == 0],
                presence_penalty=(0.0, 0.5)[n % 7 == 0],
                logprobs=(None, 2)[n % 6 == 0],
            ),
            history=list(range(n + 1)),
        )
        for n in range(30)
    ]
    together = sample(rows.clone(), entries)
    alone = [sample(rows[n : n + 1].clone(), [entries[n]])[0] for n in range(30)]
    backwards = sample(rows.flip(0).clone(), entries[::-1])[::-1]
    assert [s.token for s in together] == [s.token for s in alone]
    assert [s.token for s in together] == [s.token for s in backwards]


def test_draws_differ_by_seed_and_position() -> None:
    keys = {tuple(race_keys(seed, position)) for seed in range(40) for position in range(40)}
    assert len(keys) == 1600
    # Any 64-bit seed, however it is signed.
    assert tuple(race_keys(-1, 5)) == tuple(race_keys(2**64 - 1, 5))


def test_waiting_times_are_exponential_and_independent() -> None:
    keys = torch.from_numpy(np.stack([race_keys(seed, 3) for seed in range(50)]))
    waits = exponentials(keys, 20_000)
    assert torch.equal(waits[7], exponentials(keys[7:8], 20_000)[0]), "depends on its row alone"
    shares = torch.sort((-waits.flatten()).exp()).values  # uniform on 0 to 1 if all is well
    even = torch.linspace(0, 1, len(shares))
    assert (shares - even).abs().max() < 1.95 / len(shares) ** 0.5  # Kolmogorov, 1 in 1000
    between_seeds = np.corrcoef(waits.numpy())
    between_tokens = np.corrcoef(waits[:, :-1].flatten(), waits[:, 1:].flatten())
    assert np.abs(between_seeds - np.eye(50)).max() < 5.5 / 20_000**0.5
    assert abs(between_tokens[0, 1]) < 5 / 1_000_000**0.5


def test_a_draw_hardly_depends_on_rounding() -> None:
    """Logits as another machine might round them, over a large, flat vocabulary."""
    row = logits_row(9, size=50_000)
    nudged = row + 1e-5 * torch.randn(50_000, generator=torch.Generator().manual_seed(1))
    entries = [work(SamplingParams(seed=seed)) for seed in range(300)]
    both = [sample(logits.repeat(300, 1), entries) for logits in (row, nudged)]
    assert sum(a.token != b.token for a, b in zip(*both, strict=True)) <= 1


def test_logprobs_are_of_the_raw_logits() -> None:
    row = logits_row(8)
    raw = torch.log_softmax(row, -1)
    params = SamplingParams(seed=3, temperature=0.2, top_k=3, repetition_penalty=1.3, logprobs=4)
    got = sample(row[None].clone(), [work(params, [1, 2, 3])])[0]
    best = raw.topk(4)
    assert got.logprob == pytest.approx(float(raw[got.token]), abs=1e-5)
    assert got.top is not None
    assert [token for token, _ in got.top] == best.indices.tolist()
    assert [p for _, p in got.top] == pytest.approx(best.values.tolist(), abs=1e-5)
    none_listed = sample(row[None].clone(), [work(SamplingParams(logprobs=0))])[0]
    assert none_listed.top == []
    assert none_listed.logprob is not None
    assert sample(row[None].clone(), [work(SamplingParams())])[0].logprob is None


def test_greedy_is_the_largest_logit_in_half_precision_too() -> None:
    row = logits_row(9).to(torch.bfloat16)
    got = sample(row[None].clone(), [work(SamplingParams(temperature=0.0, top_k=5, top_p=0.1))])
    assert got[0].token == int(row.argmax())


@pytest.mark.parametrize("temperature", [5e-324, 1e-45, 1e-39, 1e-20, 9e-6])
def test_a_temperature_too_small_to_divide_by_is_greedy(temperature: float) -> None:
    row = logits_row(10)
    drawn = draws(row, count=50, temperature=temperature)
    assert drawn == {int(row.argmax()): 50}
    assert SamplingParams(temperature=temperature).is_greedy


@pytest.mark.parametrize("temperature", [1e-5, 1e-3, 2.0])
@pytest.mark.parametrize("scale", [1.0, 1e30, 3e38])
@pytest.mark.parametrize("settings", [{}, {"top_p": 1e-300}, {"min_p": 1.0}, {"top_k": 1}])
def test_huge_logits_and_tiny_settings_leave_the_likeliest(
    temperature: float, scale: float, settings: dict[str, float]
) -> None:
    """One token stands out by more than any other can make up for."""
    row = torch.full((VOCABULARY,), -scale)
    row[[3, 11]] = torch.tensor([0.2 * scale, scale])
    if scale == 1.0:
        row *= 200
    assert draws(row, count=20, temperature=temperature, **settings) == {11: 20}


def test_infinite_logits_are_as_likely_as_each_other() -> None:
    row = logits_row(11)
    row[[5, 9]] = math.inf
    row[7] = -math.inf
    expected_probs = torch.zeros(VOCABULARY)
    expected_probs[[5, 9]] = 0.5
    assert_distribution(draws(row), expected_probs)
    got = sample(row[None].clone(), [work(SamplingParams(temperature=0.0, logprobs=2))])[0]
    assert got.token in (5, 9)
    assert got.logprob == pytest.approx(math.log(0.5))


def test_a_penalty_that_overflows_does_not_spoil_the_others() -> None:
    row = logits_row(12)
    row[4] = 3.0
    params = SamplingParams(repetition_penalty=1e-44, top_p=0.9, seed=1)
    assert sample(row[None].clone(), [work(params, [4, 4])])[0].token == 4


def test_no_waiting_time_is_infinite() -> None:
    """The largest of the 2^24 fractions must not be rounded up to 1."""
    place = 2_000_000
    keys = torch.from_numpy(np.stack([race_keys(seed, 1) for seed in range(30)]))
    longest = max(float(exponentials(key[None], place).max()) for key in keys)
    assert math.isfinite(longest)
    assert longest > 15
