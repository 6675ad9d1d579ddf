"""A policy's word on a machine's batches is the same in the simulator, and all are served.

The machine runs over the null engine, in virtual time, with the times of the toy machine.
"""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from engine_rig import EngineRig
from toy_cluster import Load, load, mixed

from splitwise.engine.base import LayerCallback, Work
from splitwise.engine.null.engine import BLOCK_TOKENS, NullEngine, null_model
from splitwise.engine.null.tokens import LAYERS
from splitwise.engine.sampling import Sample, SamplingParams
from splitwise.protocol.messages import RunPrompt, TaskSpec
from splitwise.scheduling.batching import MAX_PROMPT_SKIPS
from splitwise.scheduling.policies.policy import DEFAULT, Policy, load_policy
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import Options, simulate
from splitwise.worker.engine_runner import EngineRunner
from splitwise.worker.machine import MachineLimits
from splitwise.worker.options import WorkerOptions

ROOT = Path(__file__).parents[2]
ANY = ROOT / "tests" / "simulation" / "any_compose.py"
EXAMPLE = ROOT / "examples" / "policies" / "steady_streams.py"
NEVER = "def compose(batch, prompt_tokens):\n    return 0"
CACHE_TOKENS = 100_000

Batch = tuple[int, int]
"""Prompts and decodes of an iteration."""


class VirtualEngine(NullEngine):
    """Takes no time, but moves its clock on by the toy machine's; notes its batches."""

    def __init__(self) -> None:
        super().__init__(null_model(), CACHE_TOKENS * 8 * LAYERS)
        self.now_s = 0.0
        self.batches: list[Batch] = []

    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        decodes = sum(entry.start > 0 for entry in work)
        prompts, tokens = len(work) - decodes, sum(len(entry.tokens) for entry in work)
        self.batches.append((prompts, decodes))
        if prompts:
            self.now_s += 0.001 * tokens * (1.1 if decodes else 1)
        else:
            self.now_s += 0.1
        return super().step(work, on_layer)


class VirtualMachine(EngineRig):
    """A machine to which requests come by its engine's clock."""

    def __init__(self, policy: Policy, limits: MachineLimits) -> None:
        self.virtual = VirtualEngine()
        super().__init__(self.virtual, "m", limits, policy, lambda: self.virtual.now_s)

    def serve(self, rows: Load) -> list[Batch]:
        """The batches that it ran until all was done."""
        coming = list(specs(rows))
        while coming or not self.is_empty:
            while coming and coming[0][0] <= self.virtual.now_s:
                self.take(*coming.pop(0))
            if not self.machine.iterate():
                self.virtual.now_s = coming[0][0]
        assert [len(self.tokens(i + 1)) for i in range(len(rows.output_tokens))] == list(
            rows.output_tokens
        )
        return self.virtual.batches

    def take(self, came_s: float, one: TaskSpec) -> None:
        """It came while an iteration ran, and the machine looks now."""
        now_s, self.virtual.now_s = self.virtual.now_s, came_s
        self.machine.note_prompt(one.task)
        self.virtual.now_s = now_s
        self.machine.handle(RunPrompt(one))


def specs(rows: Load) -> Iterator[tuple[float, TaskSpec]]:
    draw = np.random.default_rng(1)
    columns = zip(rows.arrival_s, rows.prompt_tokens, rows.output_tokens, strict=True)
    for number, (at_s, prompt, output) in enumerate(columns, 1):
        history = draw.integers(1, 250, prompt).tolist()
        ends = int(prompt + output)
        one = TaskSpec(number, history, int(prompt), ends, SamplingParams(temperature=0), [])
        one.number = number
        yield float(at_s), one


def served(policy: Policy, rows: Load, limits: MachineLimits | None = None) -> list[Batch]:
    machine = VirtualMachine(policy, limits or MachineLimits())
    try:
        return machine.serve(rows)
    finally:
        machine.close()


def simulated(policy: Policy, rows: Load, options: Options) -> list[Batch]:
    result = simulate(rows, mixed(kv_capacity_tokens=CACHE_TOKENS), options)
    columns = (result.segments.prompts, result.segments.decodes, result.segments.iterations)
    return [
        (int(prompts), int(decodes))
        for prompts, decodes, iterations in zip(*columns, strict=True)
        for _ in range(iterations)
    ]


def written(path: Path, text: str) -> Policy:
    path.write_text(text)
    return load_policy(str(path))


@pytest.mark.parametrize("source", ["default", str(EXAMPLE), str(ANY)])
@pytest.mark.parametrize(("batch_requests", "batch_tokens"), [(512, 2048), (40, 300)])
def test_server_and_simulator_compose_the_same_batches(
    source: str, batch_requests: int, batch_tokens: int
) -> None:
    draw = np.random.default_rng(5)
    rows = Load(
        np.cumsum(draw.exponential(0.4, 120)),
        draw.integers(1, 500, 120),
        draw.integers(1, 30, 120),
    )
    policy = load_policy(source)
    limits = MachineLimits(prompt_batch_tokens=batch_tokens, batch_requests=batch_requests)
    options = Options(
        cache="grown",
        block_tokens=BLOCK_TOKENS,
        batch_requests=batch_requests,
        batch_tokens=batch_tokens,
        queue_threshold_tokens=10**9,  # all that comes is sent to the machine at once
        timeline_segments=100_000,
        policy=policy,
    )
    batches = served(policy, rows, limits)
    assert batches == simulated(policy, rows, options)
    assert (batches == served(DEFAULT, rows, limits)) == (policy == DEFAULT)


def test_prompts_that_a_policy_never_lets_in_are_served_all_the_same(tmp_path: Path) -> None:
    """The first as nothing runs, the others one by one, each after so many iterations."""
    never = written(tmp_path / "mine.py", NEVER)
    rows = load((0, 100, 300), (0.05, 100, 300), (0.06, 100, 2))
    skipped = [(0, 1)] * MAX_PROMPT_SKIPS, [(0, 2)] * MAX_PROMPT_SKIPS
    batches = served(never, rows)
    assert batches[: 2 + len(skipped[0]) + 1 + len(skipped[1])] == [
        (1, 0),
        *skipped[0],
        (1, 1),
        *skipped[1],
        (1, 2),
    ]
    options = Options(cache="grown", timeline_segments=1000, policy=never)
    assert batches == simulated(never, rows, options)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("len(prompt_tokens) + 1", "raised ValueError: it said 2; it must say how many of prompt"),
        ("-1", "raised ValueError: it said -1; it must say how many of prompt_tokens go in"),
        ("0.5", "raised TypeError: it said 0.5; it must say how many of prompt_tokens go in"),
        ("None", "raised TypeError: it said None; it must say how many"),
        ("prompt_tokens.fill(0)", "raised ValueError: "),
        ("1 // 0", "raised ZeroDivisionError"),
    ],
)
def test_where_it_says_what_cannot_be_the_default_decides(
    tmp_path: Path, said: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    policy = written(tmp_path / "mine.py", f"def compose(batch, prompt_tokens):\n    return {said}")
    rows = load((0, 100, 20), (0.35, 100, 2), (0.7, 100, 2))
    assert served(policy, rows) == served(DEFAULT, rows)
    [record] = caplog.records  # each complaint is made once
    assert f"policy mine.py: compose of request 1 {why}" in record.message


class HeldEngine(NullEngine):
    """Its iterations without a prompt last until it is let go."""

    def __init__(self) -> None:
        super().__init__(null_model(), CACHE_TOKENS * 8 * LAYERS)
        self.is_held, self.may_go = threading.Event(), threading.Event()

    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        if work[0].start > 0:
            self.is_held.set()
            assert self.may_go.wait(20)
        return super().step(work, on_layer)


async def test_a_prompt_waits_from_when_it_came_to_the_worker(tmp_path: Path) -> None:
    """Not from when its machine, busy with an iteration, looked."""
    text = "SEEN = []\ndef compose(batch, prompt_tokens):\n    SEEN.append(batch)\n    return 1"
    policy = written(tmp_path / "mine.py", text)
    engine = HeldEngine()
    options = WorkerOptions("m", Pool.MIXED, "127.0.0.1", 1, "key", policy=policy)
    runner = EngineRunner(engine, options, lambda message: None)
    running = asyncio.create_task(runner.run())
    (_, one), (_, other) = specs(load((0, 20, 30), (0, 20, 30)))
    try:
        runner.take(RunPrompt(one))
        assert await asyncio.to_thread(engine.is_held.wait, 20)
        runner.take(RunPrompt(other))
        came_s = time.monotonic()
        await asyncio.sleep(0.1)
        waited_s = time.monotonic() - came_s
        engine.may_go.set()
        seen = policy.hooks.compose.__globals__["SEEN"]
        async with asyncio.timeout(20):
            while len(seen) < 2:
                await asyncio.sleep(0.01)
        assert [batch.number for batch in seen] == [1, 2]
        assert seen[1].waited_s >= waited_s
    finally:
        engine.may_go.set()
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        await runner.close()
        engine.close()
