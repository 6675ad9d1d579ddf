"""Drives an engine as a worker would: several requests at once, in the order a test wants."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from splitwise.engine.base import Engine, Work
from splitwise.engine.sampling import Sample, SamplingParams

GREEDY = SamplingParams(temperature=0.0)


@dataclass
class Request:
    prompt: list[int]
    output_tokens: int
    sampling: SamplingParams = GREEDY
    chunk_tokens: int = 10**9
    """Longest piece of the prompt to run at once."""
    done_tokens: int = 0
    samples: list[Sample] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)

    @property
    def output(self) -> list[int]:
        return [sample.token for sample in self.samples]

    @property
    def finished(self) -> bool:
        return len(self.samples) >= self.output_tokens

    def work(self) -> Work:
        history = self.prompt + self.output
        waiting = history[self.done_tokens :]
        tokens = waiting[: self.chunk_tokens]
        return Work(
            tokens=tokens,
            start=self.done_tokens,
            blocks=self.blocks,
            sampling=self.sampling,
            history=history,
            prompt_tokens=len(self.prompt),
            sample=len(tokens) == len(waiting),
        )


def scatter_blocks(engine: Engine, requests: Sequence[Request], seed: int = 0) -> None:
    """Give each request the blocks it will need, in no order at all."""
    free = list(range(engine.layout.blocks))
    random.Random(seed).shuffle(free)
    for request in requests:
        need = engine.layout.blocks_for(len(request.prompt) + request.output_tokens)
        request.blocks = [free.pop() for _ in range(need)]


def run(
    engine: Engine,
    requests: Sequence[Request],
    choose: Callable[[list[Request]], list[Request]] = lambda waiting: waiting,
    scatter_seed: int = 0,
) -> None:
    """Step until all are finished; ``choose`` picks what runs in each iteration."""
    scatter_blocks(engine, requests, scatter_seed)
    while waiting := [r for r in requests if not r.finished]:
        chosen = choose(waiting)
        work = [request.work() for request in chosen]
        for request, entry, sample in zip(chosen, work, engine.step(work), strict=True):
            request.done_tokens += len(entry.tokens)
            assert (sample is not None) == entry.sample
            if sample is not None:
                request.samples.append(sample)
