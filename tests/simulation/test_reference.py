"""The compiled simulator against the slow, obvious one, on random small clusters and loads."""

from dataclasses import replace

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reference_grown import GrownReference
from reference_simulator import ReferenceSimulator
from toy_cluster import Load, times

from splitwise.scheduling.pools import Pool
from splitwise.simulation.result import Result, Status
from splitwise.simulation.simulate import MachineGroup, Options, Outage, simulate

POOLS = (Pool.PROMPT, Pool.TOKEN, Pool.MIXED)

groups = st.builds(
    lambda prompts, tokens, mixed, capacities, context, latency_s: [
        MachineGroup("m", times(0.0011, 0.037, context, capacity, 3.3e6, latency_s), pool, count)
        for pool, count, capacity in zip(POOLS, (prompts, tokens, mixed), capacities, strict=True)
        if count
    ],
    st.integers(1, 3),
    st.integers(1, 3),
    st.integers(0, 2),
    st.tuples(*[st.sampled_from([500, 900, 2_500, 50_000])] * 3),
    st.sampled_from([0.0, 1.3e-6]),
    st.sampled_from([0.0, 0.0123]),
)
only_mixed = st.builds(
    lambda count, capacity: [
        MachineGroup("m", times(0.0011, 0.037, 0, capacity), Pool.MIXED, count)
    ],
    st.integers(1, 3),
    st.sampled_from([900, 50_000]),
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
)


def random_load(seed: int, count: int, rate_per_s: float) -> Load:
    draw = np.random.default_rng(seed)
    return Load(
        np.cumsum(draw.exponential(1 / rate_per_s, count)),
        draw.integers(1, 700, count),
        draw.integers(1, 60, count),
    )


def random_outages(seed: int, count: int, machines: int) -> tuple[Outage, ...]:
    """Up to ``count`` outages, one a machine; some never end."""
    draw = np.random.default_rng(seed)
    which = draw.permutation(machines)[:count]
    down_s = draw.exponential(8.0, len(which))
    up_s = np.where(draw.random(len(which)) < 0.7, down_s + draw.exponential(8.0), np.inf)
    rows = zip(which.tolist(), down_s.tolist(), up_s.tolist(), strict=True)
    return tuple(Outage(machine, down, up) for machine, down, up in rows)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(groups, only_mixed),
    options,
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.sampled_from([0.5, 3.0, 20.0]),
    st.integers(0, 4),
)
def test_agrees_to_rounding(
    cluster: list[MachineGroup],
    rules: Options,
    seed: int,
    count: int,
    rate_per_s: float,
    failures: int,
) -> None:
    load = random_load(seed, count, rate_per_s)
    outages = random_outages(seed, failures, sum(group.count for group in cluster))
    fast = simulate(load, cluster, rules, outages)
    check_against(ReferenceSimulator(load, cluster, rules, outages), fast, load, outages)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.one_of(groups, only_mixed),
    options,
    st.sampled_from([1, 16, 50]),
    st.integers(0, 10_000),
    st.integers(1, 60),
    st.sampled_from([0.5, 3.0, 20.0]),
)
def test_a_grown_cache_agrees_to_rounding(
    cluster: list[MachineGroup],
    rules: Options,
    block_tokens: int,
    seed: int,
    count: int,
    rate_per_s: float,
) -> None:
    grown = replace(rules, cache="grown", block_tokens=block_tokens)
    load = random_load(seed, count, rate_per_s)
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
        sorted((round(float(at_s), 6), int(machine), int(pool)) for at_s, machine, pool in each)
        for each in (changes, reference.changes)
    )
    assert [change[1:] for change in found] == [change[1:] for change in wanted]
    assert fast.role_changes.sum() == len(reference.changes)
    np.testing.assert_allclose(fast.changes.time_s, [change[0] for change in reference.changes])
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
        wanted = np.where(np.isnan([r.finish_s for r in slow]), np.nan, times_s)
        got = np.where(np.isnan(fast.finish_s), np.nan, getattr(fast, name))
        np.testing.assert_allclose(got, wanted, rtol=1e-9, err_msg=name)
