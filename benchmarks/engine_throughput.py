"""Prompt and decode throughput of the torch engine against transformers on the same cores.

1. Prompts of ``--context`` tokens run in one iteration (prompt tokens a second), then the same
   requests decode (tokens a second at that context), at several batch sizes.
2. The same for transformers' ``generate`` and for its continuous batching (``generate_batch``).
3. All of it alternates, round after round, in one process and one thread, so that whatever else the
   machine does hits all alike. A figure is the best step of all rounds (``generate_batch`` runs in
   the first round only: its prompts take minutes on a CPU).
4. Memory's read bandwidth is measured in every round. Decoding one sequence must read every weight
   once a step, so bytes of weights / bandwidth is the shortest a step can take.

On one core: ``taskset -c 0 python benchmarks/engine_throughput.py``. With ``--device cuda`` a
randomly initialised Llama of 8B size in bfloat16 is made on the device.
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    ContinuousBatchingConfig,
    GenerationConfig,
    StoppingCriteria,
    StoppingCriteriaList,
)

from common import environment, write_result
from random_llama import LLAMA_8B
from splitwise.engine.base import ModelInfo, Work
from splitwise.engine.model_files import read_model_info, resolve_model
from splitwise.engine.sampling import SamplingParams
from splitwise.engine.torch.engine import TorchEngine
from splitwise.engine.torch.loading import load_network

GREEDY = SamplingParams(temperature=0.0)
OURS, GENERATE, BATCHING = "splitwise", "generate", "generate_batch"
BATCH_TOKENS = 2048  # of an iteration of generate_batch, the paper's figure for prompts


@dataclass
class Times:
    """The best of all rounds, of one system at one batch size."""

    prompt_s: float = float("inf")
    step_s: float = float("inf")
    steps_s: list[float] = field(default_factory=list)

    def add(self, prompt_s: float, steps_s: list[float]) -> None:
        self.prompt_s = min(self.prompt_s, prompt_s)
        self.step_s = min(self.step_s, *steps_s)
        self.steps_s += steps_s


class StepClock(StoppingCriteria):
    """Asked after every step of ``generate``; stops nothing, notes the time."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.times.append(now(input_ids.device))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


def now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def run_ours(
    engine: TorchEngine, prompts: list[list[int]], steps: int
) -> tuple[float, list[float]]:
    """Seconds of the prompt iteration, and of each decode iteration."""
    device = torch.device(engine.memory.device)
    blocks_each = engine.layout.blocks_for(len(prompts[0]) + steps)
    tables = [range(i * blocks_each, (i + 1) * blocks_each) for i in range(len(prompts))]
    texts = [list(prompt) for prompt in prompts]
    times = [now(device)]
    for step in range(steps + 1):
        work = [
            Work(
                tokens=text[-1:] if step else text,
                start=len(text) - 1 if step else 0,
                blocks=table,
                sampling=GREEDY,
                history=text,
                prompt_tokens=len(prompts[0]),
            )
            for text, table in zip(texts, tables, strict=True)
        ]
        for text, sample in zip(texts, engine.step(work), strict=True):
            assert sample is not None
            text.append(sample.token)
        times.append(now(device))
    return seconds(times)


def run_generate(network: Any, prompts: list[list[int]], steps: int) -> tuple[float, list[float]]:
    ids = torch.tensor(prompts, device=network.device)
    clock = StepClock()
    start = now(network.device)
    network.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=steps + 1,
        min_new_tokens=steps + 1,
        do_sample=False,
        stopping_criteria=StoppingCriteriaList([clock]),
    )
    return seconds([start, *clock.times])


def run_batching(network: Any, prompts: list[list[int]], steps: int) -> tuple[float, list[float]]:
    # It admits prompts a batch at a time: the first requests must still run when the last starts.
    total = len(prompts) * len(prompts[0])
    ahead = total // BATCH_TOKENS + 2
    outputs = network.generate_batch(
        prompts,
        generation_config=GenerationConfig(
            max_new_tokens=steps + ahead, do_sample=False, eos_token_id=-1
        ),
        continuous_batching_config=ContinuousBatchingConfig(
            num_blocks=total // 256 + 2 * len(prompts) + 8,
            max_batch_tokens=BATCH_TOKENS,
            allow_block_sharing=False,
        ),
        record_timestamps=True,
        warmup=False,
    ).values()
    # Its set-up is not counted: prompts are timed from when the first request is taken up.
    begun = min(output.lifespan[0] for output in outputs)
    all_started = max(output.timestamps[0] for output in outputs)
    first_done = min(output.timestamps[-1] for output in outputs)
    last = max(outputs, key=lambda output: output.timestamps[0]).timestamps
    return seconds([begun, *(t for t in last if all_started <= t <= first_done)])


def seconds(times: list[float]) -> tuple[float, list[float]]:
    steps = [b - a for a, b in pairwise(times)]
    return steps[0], steps[1:]


def read_bandwidth(device: torch.device) -> float:
    """Bytes a second, reading 400 MB (CPU) or 4 GB (GPU): the best of some sums and dots."""
    numbers = torch.ones(10**8 if device.type == "cpu" else 10**9, device=device)
    first, second = numbers.chunk(2)
    best = float("inf")
    for _ in range(5):
        for read in (numbers.sum, lambda: torch.dot(first, second)):
            start = now(device)
            read()
            best = min(best, now(device) - start)
    return numbers.numel() * numbers.itemsize / best


def weights_bytes(network: Any) -> int:
    """Bytes that one decode step must read: all weights but an embedding that is not the head."""
    total = sum(p.numel() * p.itemsize for p in network.parameters())
    embedding = network.get_input_embeddings().weight
    if network.get_output_embeddings().weight is embedding:
        return int(total)
    return int(total - embedding.numel() * embedding.itemsize)


def open_models(device: torch.device, cache_bytes: int) -> tuple[TorchEngine, Any]:
    """Our engine, and transformers' own model, with the same weights."""
    if device.type == "cpu":
        folder = resolve_model(None)
        network: Any = AutoModelForCausalLM.from_pretrained(folder.path, dtype=torch.float32)
        own = load_network(folder, device, torch.float32)
        return TorchEngine.of_network(own, read_model_info(folder), cache_bytes), network.eval()
    with torch.device(device):
        torch.manual_seed(0)
        network = AutoModelForCausalLM.from_config(LLAMA_8B, dtype=torch.bfloat16)
        own = AutoModelForCausalLM.from_config(LLAMA_8B, dtype=torch.bfloat16)
    own.load_state_dict(network.state_dict())
    info = ModelInfo("llama-8b-random", 32, 8, 128, "bfloat16", 128256, 8192)
    return TorchEngine.of_network(own, info, cache_bytes), network.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--context", type=int, default=512, help="prompt tokens of each request")
    parser.add_argument("--batches", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--steps", type=int, default=8, help="decode steps a round")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="one round, context 128, no batch 32")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.context, options.batches = 1, 128, [1, 8]
    device = torch.device(options.device)
    torch.set_num_threads(1)
    console = Console()

    per_token = 4 << 20 if device.type == "cuda" else 48 << 10
    cache_bytes = max(options.batches) * (options.context + options.steps + 32) * per_token
    engine, network = open_models(device, cache_bytes)
    systems: dict[str, Callable[[list[list[int]]], tuple[float, list[float]]]] = {
        OURS: lambda prompts: run_ours(engine, prompts, options.steps),
        GENERATE: lambda prompts: run_generate(network, prompts, options.steps),
        BATCHING: lambda prompts: run_batching(network, prompts, options.steps),
    }
    times = {(name, batch): Times() for batch in options.batches for name in systems}
    bandwidth = 0.0
    torch.manual_seed(1)
    with torch.inference_mode():
        for name, run in systems.items():  # first use compiles and sets things up
            if name != BATCHING:
                run([[7] * 20])
        for turn in range(options.rounds):
            for batch in options.batches:
                prompts = torch.randint(3, engine.model.vocab_size, (batch, options.context))
                for name, run in systems.items():
                    if name == BATCHING and turn > 0:
                        continue  # minutes a round on a CPU; its best of several steps is kept
                    with console.status(f"round {turn + 1}, batch {batch}, {name}"):
                        times[name, batch].add(*run(prompts.tolist()))
                bandwidth = max(bandwidth, read_bandwidth(device))
    report(console, options, times, bandwidth, weights_bytes(network))
    engine.close()


def report(
    console: Console,
    options: argparse.Namespace,
    times: dict[tuple[str, int], Times],
    bandwidth: float,
    read_bytes: int,
) -> None:
    table = Table(title=f"Tokens a second, {options.context}-token contexts, {options.device}")
    for heading in ("batch", "phase", OURS, GENERATE, BATCHING, "ours / better of the two"):
        table.add_column(heading, justify="right")
    rows = []
    for batch in options.batches:
        for phase in ("prompt", "decode"):
            rates = {
                name: batch * options.context / times[name, batch].prompt_s
                if phase == "prompt"
                else batch / times[name, batch].step_s
                for name in (OURS, GENERATE, BATCHING)
            }
            ratio = rates[OURS] / max(rates[GENERATE], rates[BATCHING])
            rows.append({"batch": batch, "phase": phase, "tokens_per_s": rates, "ratio": ratio})
            table.add_row(str(batch), phase, *(f"{r:.1f}" for r in rates.values()), f"{ratio:.2f}")
    console.print(table)
    limit_s = read_bytes / bandwidth
    single_s = times[OURS, 1].step_s if (OURS, 1) in times else None
    console.print(
        f"Weights read a step: {read_bytes / 1e6:.0f} MB at {bandwidth / 1e9:.1f} GB/s: "
        f"{limit_s * 1e3:.2f} ms at least."
        + (
            f" Batch 1: {single_s * 1e3:.2f} ms, {single_s / limit_s:.2f} times."
            if single_s
            else ""
        )
    )
    file = write_result(
        "engine_throughput" + ("" if options.device == "cpu" else "_cuda"),
        {
            "environment": environment(options.device),
            "options": vars(options),
            "rows": rows,
            "weights_bytes": read_bytes,
            "read_bandwidth_bytes_per_s": bandwidth,
            "batch_1_over_bandwidth_limit": single_s / limit_s if single_s else None,
            "times": {f"{name} {batch}": asdict(t) for (name, batch), t in times.items()},
        },
    )
    console.print(f"Written to {file}")


if __name__ == "__main__":
    main()
