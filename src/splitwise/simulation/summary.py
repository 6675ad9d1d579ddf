"""What one simulation says in numbers, for people, tables and planners.

``summarise`` counts requests, takes percentiles of latencies and of slowdowns against a reference
machine (``slowdown``), sets the slowdowns against SLOs, and sums machines up by group. Latencies
are of the requests that have them; slowdowns count a missing answer as infinitely slow.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.pool import Pool
from splitwise.simulation.result import Reason, Result, Status
from splitwise.simulation.slowdown import (
    PAPER_SLOS,
    Floats,
    Reference,
    Slo,
    SloCheck,
    SummaryError,
    check_slos,
    experience,
    percentile,
    present,
)


@dataclass(frozen=True)
class Distribution:
    """Percentiles (linear between values) of ``count`` values; nan where there are none."""

    count: int
    mean: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True)
class Counts:
    """Requests by how they ended."""

    arrived: int
    finished: int
    rejected_too_large: int
    rejected_no_machine: int
    running: int


@dataclass(frozen=True)
class Latencies:
    """Seconds. ``visible_transfer_s`` is what of a transfer lies after the first token."""

    ttft_s: Distribution
    tbt_s: Distribution
    e2e_s: Distribution
    queue_s: Distribution
    max_tbt_s: Distribution
    transfer_s: Distribution
    visible_transfer_s: Distribution


@dataclass(frozen=True)
class SlowdownPercentiles:
    """Distributions of slowdowns."""

    ttft: Distribution
    tbt: Distribution
    e2e: Distribution


@dataclass(frozen=True)
class Throughput:
    """Between the end of the warm-up and the last arrival: what came and what got done a second.

    Work is counted when it is done, whenever its request arrived; output tokens when the request
    finishes. A load that arrives at once is measured up to the end.
    """

    offered_requests_per_s: float
    requests_per_s: float
    prompt_tokens_per_s: float
    output_tokens_per_s: float


@dataclass(frozen=True)
class GroupSummary:
    """Machines of one kind and home pool; shares are of the whole simulated time, 0 to 1."""

    pool: str
    kind: str
    machines: int
    busy_share: float
    prompt_share: float
    decode_share: float
    mixed_share: float
    mean_watts: float
    energy_joules: float
    prompt_tokens: int
    decoded_tokens: int
    role_changes: int
    peak_kv_share: float


@dataclass(frozen=True)
class Summary:
    """One simulation in numbers.

    Requests that arrived before ``warmup_s`` are in no count, latency or slowdown. Machines and
    energy are summed up over the whole simulation. ``slowdowns`` counts missing answers as
    infinitely slow.
    """

    warmup_s: float
    end_s: float
    counts: Counts
    throughput: Throughput
    latencies: Latencies
    slowdowns: SlowdownPercentiles
    slos: tuple[SloCheck, ...]
    meets_slos: bool
    groups: tuple[GroupSummary, ...]
    energy_joules: float

    def to_dict(self) -> dict[str, Any]:
        """The same as JSON would hold it: nan and infinity become None."""
        plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(self))
        return plain


def summarise(
    result: Result,
    reference: Reference,
    slos: Sequence[Slo] = PAPER_SLOS,
    warmup_s: float = 0.0,
) -> Summary:
    """Sum ``result`` up against ``reference``, the machine a request would have to itself.

    Raises SummaryError when no request arrived after ``warmup_s``, or when the reference has
    times that are not positive.
    """
    is_counted = result.arrival_s >= warmup_s
    if not is_counted.any():
        raise SummaryError(
            f"warmup_s is {warmup_s}, but no request arrived at or after it; use less"
        )
    seen = experience(result, reference).of(is_counted)
    checks = check_slos(seen, slos)
    return Summary(
        warmup_s=warmup_s,
        end_s=result.end_s,
        counts=count(result, is_counted),
        throughput=throughput(result, warmup_s),
        latencies=latencies(result, is_counted),
        slowdowns=SlowdownPercentiles(
            distribution(seen.ttft), distribution(seen.tbt), distribution(seen.e2e)
        ),
        slos=checks,
        meets_slos=all(check.is_met for check in checks),
        groups=group_machines(result),
        energy_joules=float(result.energy_joules.sum()),
    )


def distribution(values: Floats) -> Distribution:
    """Mean and percentiles of the values that are not nan."""
    found = present(values)
    if len(found) == 0:
        nan = float("nan")
        return Distribution(0, nan, nan, nan, nan, nan)
    return Distribution(
        len(found),
        float(found.mean()),
        percentile(found, 50),
        percentile(found, 90),
        percentile(found, 99),
        float(found.max()),
    )


def count(result: Result, is_counted: NDArray[np.bool_]) -> Counts:
    """Requests by their end, of those counted."""
    status = result.status[is_counted]
    reason = result.reason[is_counted]
    return Counts(
        arrived=len(status),
        finished=int((status == Status.FINISHED).sum()),
        rejected_too_large=int((reason == Reason.TOO_LARGE).sum()),
        rejected_no_machine=int((reason == Reason.NO_MACHINE).sum()),
        running=int((status == Status.RUNNING).sum()),
    )


def throughput(result: Result, warmup_s: float) -> Throughput:
    """Rates between ``warmup_s`` and the last arrival, or the end if all arrived at once."""
    last_s = float(result.arrival_s.max())
    until_s = last_s if last_s > warmup_s else result.end_s
    span_s = until_s - warmup_s

    def rate(times_s: Floats, amount: NDArray[np.int64]) -> float:
        is_inside = (times_s >= warmup_s) & (times_s <= until_s)
        return float(amount[is_inside].sum()) / span_s if span_s > 0 else float("nan")

    one_each = np.ones_like(result.output_tokens)
    return Throughput(
        rate(result.arrival_s, one_each),
        rate(result.finish_s, one_each),
        rate(result.first_token_s, result.prompt_tokens),
        rate(result.finish_s, result.output_tokens),
    )


def latencies(result: Result, is_counted: NDArray[np.bool_]) -> Latencies:
    """Distributions of the counted requests' times."""
    visible_s = np.maximum(result.transfer_end_s - result.first_token_s, 0.0)
    times_s = (
        *(result.ttft_s, result.tbt_s, result.e2e_s, result.queue_s, result.max_tbt_s),
        *(result.transfer_end_s - result.transfer_start_s, visible_s),
    )
    return Latencies(*(distribution(one[is_counted]) for one in times_s))


def group_machines(result: Result) -> tuple[GroupSummary, ...]:
    """Machines by home pool and kind, in that order."""
    kinds = np.array(result.machine_kind)
    groups = sorted(set(zip(result.home_pool.tolist(), result.machine_kind, strict=True)))
    return tuple(
        _group(result, Pool(pool), kind, (result.home_pool == pool) & (kinds == kind))
        for pool, kind in groups
    )


def _group(result: Result, pool: Pool, kind: str, members: NDArray[np.bool_]) -> GroupSummary:
    machine_s = result.end_s * int(members.sum())

    def share(spent_s: Floats) -> float:
        return float(spent_s[members].sum()) / machine_s if machine_s > 0 else 0.0

    peak = result.peak_kv_tokens[members] / result.kv_capacity_tokens[members]
    return GroupSummary(
        pool=pool.name.lower(),
        kind=kind,
        machines=int(members.sum()),
        busy_share=share(result.busy_s),
        prompt_share=share(result.prompt_busy_s),
        decode_share=share(result.decode_busy_s),
        mixed_share=share(result.mixed_busy_s),
        mean_watts=share(result.energy_joules),
        energy_joules=float(result.energy_joules[members].sum()),
        prompt_tokens=int(result.prompt_tokens_done[members].sum()),
        decoded_tokens=int(result.tokens_out[members].sum()),
        role_changes=int(result.role_changes[members].sum()),
        peak_kv_share=float(peak.max()),
    )
