"""One simulation of a question's cluster: at a rate, with a seed.

``Judge`` is what searches ask: does this cluster carry that rate, and how much does it carry? It
simulates what the store does not know yet.
"""

import hashlib
from collections.abc import Callable
from dataclasses import astuple, fields, replace
from typing import Final

import msgspec
import numpy as np

from splitwise.hardware import IterationTimes
from splitwise.planning.design import Design
from splitwise.planning.outcome import Outcome, Percentiles
from splitwise.planning.question import Question
from splitwise.planning.store import OutcomeStore
from splitwise.simulation.result import Result
from splitwise.simulation.simulate import Options, simulate
from splitwise.simulation.slowdown import Floats, check_slos, experience, percentile, present

_PERCENTS: Final = (50, 90, 99)


class Judge:
    """Answers for one question; counts what it simulated and what it knew."""

    def __init__(self, question: Question, store: OutcomeStore) -> None:
        self.question = question
        self.simulated = 0
        self.known = 0
        self._store = store
        self._digests = {id(question.reference): digest(question.reference)}
        self._load_digest = question.demand.content_digest()
        self._fastest: dict[int, float] = {}
        prompt_tokens = question.demand.usual_prompt_tokens()
        self._mean_prompt_tokens = float(prompt_tokens.mean())
        # A prompt longer than a batch runs alone, and may be the cheapest of all a token.
        self._longest = max(question.options.batch_tokens, int(prompt_tokens.max()))

    def outcome(self, design: Design, rate_per_s: float, seed: int) -> Outcome:
        """What becomes of the cluster at that rate with that seed."""
        key = self._key(design, rate_per_s, seed)
        known = self._store.get(key)
        if known is not None:
            self.known += 1
            return known
        made = run(self.question, design, rate_per_s, seed)
        self._store.put(key, made)
        self.simulated += 1
        return made

    def outcomes(self, design: Design, rate_per_s: float) -> list[Outcome]:
        """With every seed."""
        return [self.outcome(design, rate_per_s, seed) for seed in self.question.seeds]

    def carries(self, design: Design, rate_per_s: float) -> bool:
        """Whether every SLO holds with every seed; stops at the first that fails."""
        return all(
            self.outcome(design, rate_per_s, seed).meets_slos for seed in self.question.seeds
        )

    def most(self, design: Design, carried: float = 0.0) -> float:
        """The highest rate that the cluster carries, given that it carries ``carried``."""
        return self._highest(design, carried, lambda rate: self.carries(design, rate))

    def most_by_seed(self, design: Design) -> list[float]:
        """The highest rate with each seed alone."""
        return [self._most_with(design, seed) for seed in self.question.seeds]

    def _most_with(self, design: Design, seed: int) -> float:
        return self._highest(design, 0.0, lambda rate: self.outcome(design, rate, seed).meets_slos)

    def next_rate_per_s(self, rate_per_s: float) -> float:
        """The least rate of the grid that is better by enough to matter."""
        step = self.question.resolution_per_s
        steps = round(rate_per_s / step)
        return (steps + self._grain(steps)) * step

    def bound_per_s(self, design: Design) -> float:
        """A rate that the cluster cannot exceed: all its machines compute nothing but prompts."""
        fastest = sum(
            count * self._prompt_tokens_per_s(offer.times)
            for count, offer in zip(design.counts, design.family.offers, strict=True)
        )
        return fastest / self._mean_prompt_tokens

    def _prompt_tokens_per_s(self, times: IterationTimes) -> float:
        """Of a machine that computes prompts in the batches that suit it best."""
        if id(times) not in self._fastest:
            tokens = np.arange(1, self._longest + 1)
            self._fastest[id(times)] = float((tokens / times.prompt_time_s(tokens)).max())
        return self._fastest[id(times)]

    def _highest(self, design: Design, carried: float, holds: Callable[[float], bool]) -> float:
        """On the question's grid of rates, below ``bound_per_s``.

        From a rate that is carried upwards in doubling strides, for it is mostly near; then
        bisection.
        """
        step = self.question.resolution_per_s
        low = round(carried / step)
        high = int(self.bound_per_s(design) / step) + 1
        stride = self._grain(low)
        while carried and low + stride < high:
            if not holds((low + stride) * step):
                high = low + stride
                break
            low += stride
            stride *= 2
        while high - low > self._grain(low):
            middle = (low + high) // 2
            if holds(middle * step):
                low = middle
            else:
                high = middle
        return low * step

    def _grain(self, steps: int) -> int:
        """The steps of the grid that do not matter at this rate."""
        return max(1, int(self.question.relative_resolution * steps))

    def _key(self, design: Design, rate_per_s: float, seed: int) -> bytes:
        question = self.question
        times = (question.reference, *(offer.times for offer in design.family.offers))
        parts = (
            [self._digest(one) for one in times],
            [int(pool) for pool in design.family.pools],
            design.counts,
            design.queue_threshold_tokens,
            _options_key(question.options),
            astuple(question.demand),
            self._load_digest,
            [astuple(slo) for slo in question.slos],
            rate_per_s,
            seed,
        )
        return hashlib.blake2b(msgspec.msgpack.encode(parts), digest_size=16).digest()

    def _digest(self, times: IterationTimes) -> bytes:
        if id(times) not in self._digests:
            self._digests[id(times)] = digest(times)
        return self._digests[id(times)]


def _options_key(options: Options) -> list[object]:
    """All options; a policy by what it does, whatever it is called."""
    values = {field.name: getattr(options, field.name) for field in fields(options)}
    return list({**values, "policy": options.policy.digest}.values())


def digest(times: IterationTimes) -> bytes:
    """Of all values that a simulation or a summary reads; prices are not among them."""
    made = hashlib.blake2b(digest_size=16)
    for field in fields(times):
        if field.name not in ("dollars_per_hour", "provisioned_watts"):
            made.update(np.asarray(getattr(times, field.name)).tobytes())
    return made.digest()


def run(question: Question, design: Design, rate_per_s: float, seed: int) -> Outcome:
    """Simulate; see ``Judge.outcome``."""
    options = question.options
    if design.queue_threshold_tokens is not None:
        options = replace(options, queue_threshold_tokens=design.queue_threshold_tokens)
    load = question.demand.requests(rate_per_s, seed)
    result = simulate(load, design.groups(), options)
    warm_s = question.demand.warm_up_at(rate_per_s)
    is_counted = load.arrival_s >= warm_s
    if not is_counted.any():
        is_counted[:] = True
    seen = experience(result, question.reference).of(is_counted)
    return Outcome(
        check_slos(seen, question.slos),
        ttft_s=_percentiles(seen.ttft_s),
        tbt_s=_percentiles(seen.tbt_s),
        e2e_s=_percentiles(seen.e2e_s),
        requests=int(is_counted.sum()),
        joules_per_token=joules_per_token(result),
        watts=float(result.energy_joules.sum()) / result.end_s,
    )


def joules_per_token(result: Result) -> float:
    """Energy of the whole cluster over all output tokens."""
    tokens = int(result.tokens_out.sum())
    return float(result.energy_joules.sum()) / tokens if tokens else float("inf")


def _percentiles(values: Floats) -> Percentiles:
    found = present(values)
    return Percentiles(*(percentile(found, percent) for percent in _PERCENTS))
