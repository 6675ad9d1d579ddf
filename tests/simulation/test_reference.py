"""The compiled simulator against the slow, obvious one, on random small clusters and loads.

Of what falls in one instant both take machines that end something first, in order of their numbers;
then transfers, the older request's first; then outages; then arrivals.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_grown import GrownReference
from reference_simulator import ReferenceSimulator
from toy_cluster import Load, times

from splitwise.hardware.iteration_times import IterationTimes
from splitwise.scheduling.policies.policy import DEFAULT, load_policy
from splitwise.scheduling.pool import Pool
from splitwise.simulation.result import Result, Status
from splitwise.simulation.simulate import MachineGroup, Options, Outage, simulate

POOLS = (Pool.PROMPT, Pool.TOKEN, Pool.MIXED)
ANY_COMPOSE = load_policy(str(Path(__file__).parent / "any_compose.py"))
FINE_S, COARSE_S = 2.0**-20, 2.0**-4


def exact_times(
    decode_s: float, context_s: float, capacity: int, rate: float, latency_s: float
) -> IterationTimes:
    """Times whose sums have no rounding error. Two events fall in one instant in both simulators or
    in neither, and then the stated order decides."""
    kind = times(2.0**-10, decode_s, context_s, capacity, 1000 * rate, latency_s)
    return replace(kind, mixed_factor=1.125, layers=8)


def new_groups(
    pools: list[tuple[Pool, int]],
    capacities: tuple[int, ...],
    rates: tuple[float, ...],
    decode_s: float,
    context_s: float,
    latency_s: float,
) -> list[MachineGroup]:
    """One group a pool, each with its own capacity and link."""
    return [
        MachineGroup("m", exact_times(decode_s, context_s, capacity, rate, latency_s), pool, count)
        for (pool, count), capacity, rate in zip(pools, capacities, rates, strict=False)
        if count
    ]


split_pools = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(0, 3)).flatmap(
    lambda counts: st.permutations(list(zip(POOLS, counts, strict=True)))
)
clusters = st.builds(
    new_groups,
    st.one_of(split_pools, st.integers(1, 3).map(lambda count: [(Pool.MIXED, count)])),
    st.tuples(*[st.sampled_from([500, 900, 2_500, 50_000])] * 3),
    st.tuples(*[st.sampled_from([2.0**10, 2.0**12])] * 3),  # tokens of cache a second
    st.sampled_from([37 / 1024, 64 / 1024]),
    st.sampled_from([0.0, FINE_S]),
    st.sampled_from([0.0, 12 / 1024]),
)
options = st.builds(
    Options,
    queue_threshold_tokens=st.sampled_from([300, 8192]),
    batch_tokens=st.sampled_from([200, 512, 2048]),
    batch_requests=st.sampled_from([3, 512]),
    max_preemptions=st.sampled_from([0, 1, 4]),
    change_roles=st.booleans(),
    chunk_prompts=st.booleans(),
    overlap=st.booleans(),
    overlap_from_tokens=st.sampled_from([1, 300]),
    share_links=st.booleans(),
    policy=st.sampled_from([DEFAULT, ANY_COMPOSE]),
)


steps_s = st.sampled_from([FINE_S, COARSE_S])


def random_load(seed: int, count: int, rate_per_s: float, step_s: float) -> Load:
    """Arrivals at multiples of ``step_s``; if that is coarse, prompts are round numbers too, so
    that much happens in one instant."""
    draw = np.random.default_rng(seed)
    arrival_s = np.cumsum(draw.exponential(1 / rate_per_s, count))
    prompt_tokens = draw.integers(1, 700, count)
    if step_s == COARSE_S:
        prompt_tokens = -(-prompt_tokens // 64) * 64
    return Load(np.round(arrival_s / step_s) * step_s, prompt_tokens, draw.integers(1, 60, count))


def random_outages(seed: int, count: int, machines: int, step_s: float) -> tuple[Outage, ...]:
    """Up to ``count`` outages, one a machine, at multiples of ``step_s``; some never end."""
    draw = np.random.default_rng(seed)
    which = draw.permutation(machines)[:count]
    down_s = np.round(draw.exponential(8.0, len(which)) / step_s) * step_s
    lasts_s = np.ceil(draw.exponential(8.0, len(which)) / step_s) * step_s
    up_s = np.where(draw.random(len(which)) < 0.7, down_s + lasts_s, np.inf)
    rows = zip(which.tolist(), down_s.tolist(), up_s.tolist(), strict=True)
    return tuple(Outage(machine, down, up) for machine, down, up in rows)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    clusters,
    options,
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.sampled_from([0.5, 3.0, 20.0]),
    steps_s,
    st.integers(0, 4),
)
def test_agrees_to_the_instant(
    cluster: list[MachineGroup],
    rules: Options,
    seed: int,
    count: int,
    rate_per_s: float,
    step_s: float,
    failures: int,
) -> None:
    load = random_load(seed, count, rate_per_s, step_s)
    outages = random_outages(seed, failures, sum(group.count for group in cluster), step_s)
    fast = simulate(load, cluster, rules, outages)
    check_against(ReferenceSimulator(load, cluster, rules, outages), fast, load, outages)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    clusters,
    options,
    st.sampled_from([1, 16, 50]),
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.sampled_from([0.5, 3.0, 20.0]),
    steps_s,
)
def test_a_grown_cache_agrees_to_the_instant(
    cluster: list[MachineGroup],
    rules: Options,
    block_tokens: int,
    seed: int,
    count: int,
    rate_per_s: float,
    step_s: float,
) -> None:
    grown = replace(rules, cache="grown", block_tokens=block_tokens)
    load = random_load(seed, count, rate_per_s, step_s)
    check_against(GrownReference(load, cluster, grown), simulate(load, cluster, grown), load, ())


def check_against(
    reference: ReferenceSimulator, fast: Result, load: Load, outages: tuple[Outage, ...]
) -> None:
    """The reference runs and comes to the same answer."""
    slow = reference.run()
    assert not (fast.status == Status.RUNNING).any()
    lived_s = fast.end_s - fast.down_s
    idle_watts = np.array([m.group.times.idle_watts for m in reference.machines])
    joules = [m.joules for m in reference.machines] + idle_watts * lived_s
    if not outages:
        np.testing.assert_allclose(fast.energy_joules, joules, rtol=1e-9)
    for name, values in (
        ("attempts", [r.attempts for r in slow]),
        ("prompt_machine", [r.at for r in slow]),
        ("token_machine", [r.to for r in slow]),
        ("preemptions", [r.preemptions for r in slow]),
    ):
        np.testing.assert_array_equal(getattr(fast, name), values, err_msg=name)
    changes = zip(fast.changes.time_s, fast.changes.machine, fast.changes.pool, strict=True)
    # Two machines that are freed in one moment go home in either order.
    found, wanted = (
        sorted((float(at_s), int(machine), int(pool)) for at_s, machine, pool in each)
        for each in (changes, reference.changes)
    )
    assert found == wanted
    assert fast.role_changes.sum() == len(reference.changes)
    for name, times_s in (
        ("prompt_start_s", [r.started_s for r in slow]),
        ("first_token_s", [r.first_s for r in slow]),
        ("transfer_end_s", [r.arrived_s for r in slow]),
        ("finish_s", [r.finish_s for r in slow]),
        (
            "max_tbt_s",
            [
                r.gap_s if output > 1 else np.nan
                for r, output in zip(slow, load.output_tokens, strict=True)
            ],
        ),
    ):
        expected_s = np.where(np.isnan([r.finish_s for r in slow]), np.nan, times_s)
        got_s = np.where(np.isnan(fast.finish_s), np.nan, getattr(fast, name))
        np.testing.assert_array_equal(got_s, expected_s, err_msg=name)
