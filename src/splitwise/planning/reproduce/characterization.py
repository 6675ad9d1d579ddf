"""What one machine, or one pair, does: the paper's characterization, and the cost of the transfer.

From the measured points and from simulations of one machine; Llama2-70B on 8 GPUs, as in the paper.
"""

from typing import Final

import numpy as np

from splitwise.hardware import IterationTimes, load_profile
from splitwise.planning.reproduce.published import TRANSFER_SHARE
from splitwise.planning.reproduce.section import Figure, Section
from splitwise.scheduling.pool import Pool
from splitwise.simulation.result import Result
from splitwise.simulation.simulate import MachineGroup, Options, simulate
from splitwise.workload import Requests, open_source

MODEL: Final = "llama2-70b"
MEDIANS: Final = {"coding": (1500, 13), "conversation": (1020, 129)}
"""Prompt and output tokens."""
LATENCIES_MS: Final = {
    ("coding", "TTFT"): (185, 95),
    ("coding", "TBT"): (52, 31),
    ("coding", "E2E"): (856, 493),
    ("conversation", "TTFT"): (155, 84),
    ("conversation", "TBT"): (40, 28),
    ("conversation", "E2E"): (4957, 3387),
}
"""P50 without batching, on A100 and H100 (Splitwise, table 4)."""
ACTIVE_RATE_PER_S: Final = 2.0
ACTIVE_DURATION_S: Final = 1800.0
LONE_RATE_PER_S: Final = 0.02
"""So few that hardly two requests meet: no batching."""
LONE_REQUESTS: Final = 4000


def characterization(prices: str, traces: dict[str, str]) -> list[Section]:
    """All parts; ``traces`` are where sizes come from, by workload."""
    a100 = load_profile("measured", "dgx-a100", MODEL, prices)
    h100 = load_profile("measured", "dgx-h100", MODEL, prices)
    capped = load_profile("measured", "dgx-h100-capped", MODEL, prices)
    return [
        latencies(a100, h100),
        batching(a100, h100),
        active_tokens(h100, traces),
        power(a100, h100, capped),
        transfers(a100, h100, traces),
    ]


def latencies(a100: IterationTimes, h100: IterationTimes) -> Section:
    """A request of median size, alone."""
    figures = []
    for workload, (prompt, output) in MEDIANS.items():
        for column, (name, times) in enumerate((("A100", a100), ("H100", h100))):
            ttft_ms = 1e3 * float(times.prompt_time_s(prompt))
            tbt_ms = 1e3 * times.decode_time_s(1, prompt + output // 2)
            e2e_ms = ttft_ms + tbt_ms * (output - 1)
            for metric, ours in (("TTFT", ttft_ms), ("TBT", tbt_ms), ("E2E", e2e_ms)):
                published = LATENCIES_MS[workload, metric][column]
                figures.append(Figure(f"{workload}, {name}: {metric} P50", ours, published, "ms"))
    remark = (
        "The published medians are of requests, ours of one request of median prompt and output, "
        "read off the published points."
    )
    return Section(
        "Latencies without batching", setting("measured points"), tuple(figures), (remark,)
    )


def batching(a100: IterationTimes, h100: IterationTimes) -> Section:
    """How prompts and tokens gain from batches."""
    figures = []
    tokens = np.array([512, 1024, 2048, 4096, 8192])
    for name, times in (("A100", a100), ("H100", h100)):
        speed = tokens / times.prompt_time_s(tokens)
        best = float(tokens[int(np.argmax(speed))])
        figures.append(Figure(f"{name}: batched prompt tokens of most speed", best, 2048, "tokens"))
        slower = times.decode_time_s(64, 64 * 576) / times.decode_time_s(1, 576)
        figures.append(Figure(f"{name}: TBT at batch 64 against alone", slower, 2.0))
        gain = 64 / slower
        figures.append(Figure(f"{name}: token throughput at batch 64 against alone", gain))
    return Section("Batching", setting("measured points"), tuple(figures))


def active_tokens(h100: IterationTimes, traces: dict[str, str]) -> Section:
    """How many tokens are active in a mixed machine's iterations, as shares of its time."""
    figures = []
    for workload, limit, published in (("conversation", 20, 65.0), ("coding", 1, 20.0)):
        load = open_source(
            traces.get(workload, workload), ACTIVE_RATE_PER_S, ACTIVE_DURATION_S, 1, "poisson"
        )
        result = simulate(load, [MachineGroup("H100", h100, Pool.MIXED, 1)])
        spent_s = result.occupancy_s[0]
        share = 100 * float(spent_s[: limit + 1].sum() / spent_s.sum())
        what = f"{workload}, 2 requests/s: time with {limit} active token(s) or fewer"
        figures.append(Figure(what, share, published, "%"))
    remark = (
        "Published as 60 to 70 % and as over 20 %; shares of busy time here, of one DGX-H100 with "
        "mixed batching, where a prompt counts all its tokens."
    )
    return Section("Active tokens", setting("one machine"), tuple(figures), (remark,))


def power(a100: IterationTimes, h100: IterationTimes, capped: IterationTimes) -> Section:
    """Prompts draw more with larger batches, tokens do not; and what a cap costs."""
    limit = 8 * 400.0
    figures = [
        Figure(
            f"A100: power of {tokens} prompt tokens, of the limit",
            100 * float(a100.prompt_watts_at(tokens)) / limit,
            None,
            "%",
        )
        for tokens in (128, 512, 2048)
    ]
    figures += [
        Figure("A100: power of decodes, of the limit", 100 * a100.decode_watts / limit, None, "%"),
        Figure(
            "H100 capped at half: prompt time",
            float(capped.prompt_time_s(2048)) / float(h100.prompt_time_s(2048)),
            1.3,
        ),
        Figure(
            "H100 capped at half: token time",
            capped.decode_time_s(16, 16_000) / h100.decode_time_s(16, 16_000),
            1.0,
        ),
        Figure(
            "H100 against A100: TTFT",
            float(h100.prompt_time_s(1500)) / float(a100.prompt_time_s(1500)),
            95 / 185,
        ),
        Figure("H100 against A100: TBT", float(h100.decode_s[1] / a100.decode_s[1]), 31 / 52),
    ]
    return Section("Power and speed", setting("measured points"), tuple(figures))


def transfers(a100: IterationTimes, h100: IterationTimes, traces: dict[str, str]) -> Section:
    """The coding load on two machines without batching: what the split adds (section VI.A)."""
    load = lone_load(traces.get("coding", "coding"))
    figures = []
    for name, times in (("A100", a100), ("H100", h100)):
        alone = simulate(load, [MachineGroup(name, times, Pool.MIXED, 8)])
        pair = [
            MachineGroup(name, times, Pool.PROMPT, 4),
            MachineGroup(name, times, Pool.TOKEN, 4),
        ]
        by_layer = simulate(load, pair)
        in_one = simulate(load, pair, Options(overlap=False))
        added = 100 * (mean_e2e_s(by_layer) / mean_e2e_s(alone) - 1)
        figures += [
            Figure(f"{name}: E2E added, layer by layer", added, 0.8, "%"),
            Figure(
                f"{name}: E2E added, in one piece",
                100 * (mean_e2e_s(in_one) / mean_e2e_s(alone) - 1),
                3.0,
                "%",
            ),
            Figure(f"{name}: transfer seen, layer by layer", seen_ms(by_layer), None, "ms"),
            Figure(f"{name}: transfer seen, in one piece", seen_ms(in_one), None, "ms"),
        ]
    share = figures[0].ours
    remark = (
        f"The poster says less than about {100 * TRANSFER_SHARE:.1f} % on average; here "
        f"{share:.2f} %. The simulated transfer has no cost but its last layer and the link's "
        "latency: what the paper measured beyond that (5 to 8 ms) is software."
    )
    return Section(
        "State transfer, coding", setting("two pools of four"), tuple(figures), (remark,)
    )


def lone_load(source: str) -> Requests:
    """Requests that hardly meet."""
    duration_s = LONE_REQUESTS / LONE_RATE_PER_S
    return open_source(source, LONE_RATE_PER_S, duration_s, 1, "poisson")


def mean_e2e_s(result: Result) -> float:
    """Of all requests."""
    return float(result.e2e_s.mean())


def seen_ms(result: Result) -> float:
    """Median time from the first token to the end of the transfer."""
    return 1e3 * float(np.nanmedian(result.transfer_end_s - result.first_token_s))


def setting(what: str) -> str:
    """In words."""
    return f"{MODEL}, 8 GPUs, profile measured, rules default; {what}"
