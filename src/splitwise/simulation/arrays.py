"""The arrays of a simulation, made from what is asked, and the answer, made from the arrays."""

from collections.abc import Sequence
from dataclasses import fields
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.batching import UNBOUNDED_DECODES, max_decodes
from splitwise.scheduling.cluster_state import new_cluster
from splitwise.scheduling.ranking import new_ranking
from splitwise.scheduling.waiting import MAX_ASIDE
from splitwise.simulation import state as st
from splitwise.simulation.options import Load, MachineGroup, Options, Outage
from splitwise.simulation.policy_calls import calls_of
from splitwise.simulation.result import Reason, Result, RoleChanges, Segments, Status

SAMPLES: Final = 400
ROLE_CHANGES: Final = 100_000
PER_REQUEST: Final = (
    *("arrival_s", "prompt_tokens", "output_tokens", "status", "reason"),
    *("first_token_s", "finish_s", "prompt_start_s", "transfer_start_s", "transfer_end_s"),
    *("decode_start_s", "max_tbt_s", "prompt_machine", "token_machine", "preemptions", "attempts"),
)
PER_MACHINE: Final = (
    *("busy_s", "prompt_busy_s", "decode_busy_s", "mixed_busy_s"),
    *("prompt_tokens_done", "tokens_out", "down_s"),
)
SEGMENT_FIELDS: Final = tuple(field.name for field in fields(Segments))
ROLE_CHANGE_FIELDS: Final = tuple(field.name for field in fields(RoleChanges))


def new_state(
    requests: Load,
    groups: Sequence[MachineGroup],
    options: Options,
    outages: Sequence[Outage] = (),
) -> st.State:
    """All arrays of a simulation at time 0."""
    machines = new_machines(groups)
    home = np.repeat([int(group.pool) for group in groups], [group.count for group in groups])
    capacity = np.repeat(
        [group.times.kv_capacity_tokens for group in groups], [group.count for group in groups]
    )
    grows = options.cache == "grown"
    decodes = UNBOUNDED_DECODES
    if grows:
        decodes = max_decodes(options.batch_requests, options.batch_tokens)
        capacity = capacity // options.block_tokens * options.block_tokens
    table = new_requests(requests, int(capacity.max()))
    span_s = max(float(requests.arrival_s[-1]), 1.0)
    whole = table["prompt_tokens"] + table["output_tokens"]  # a retry's prompt may be almost that
    longest = int(whole.max()) + options.batch_tokens + st.MAX_SLOTS
    machines_known = new_cluster(
        home.astype(np.int8), capacity.astype(np.int64), options.rank_by_size, decodes
    )
    scratch = new_scratch(len(table) if grows else 0)
    return st.State(
        machines_known,
        calls_of(options.policy, machines_known, scratch.lengths),
        new_kinds(groups, longest + 1),
        new_rules(options, span_s, int(capacity.max())),
        machines,
        table,
        np.zeros((len(machines), st.MAX_SLOTS), dtype=st.SLOT),
        scratch,
        np.zeros((len(machines), st.OCCUPANCY_BINS)),
        new_ranking(1, len(machines)),
        st.Transfers(np.zeros(1, dtype=np.int64), np.zeros(len(table) + 1, dtype=st.TRANSFER)),
        np.zeros(len(table) if grows else 0, dtype=np.int64),
        np.zeros(1, dtype=st.PROGRESS),
        new_outages(outages),
        new_log(options.timeline_segments, home.astype(np.int8)),
    )


def new_scratch(running: int) -> st.Scratch:
    """Room for as many as a batch holds, and for ``running`` on one machine."""
    return st.Scratch(
        np.zeros(st.MAX_SLOTS, dtype=np.int64),
        np.zeros(st.MAX_SLOTS, dtype=np.int64),
        np.zeros(st.MAX_SLOTS, dtype=st.SLOT),
        np.zeros(running, dtype=st.RUNNING),
        np.zeros(MAX_ASIDE + 1, dtype=np.int64),
    )


def new_outages(outages: Sequence[Outage]) -> NDArray[np.void]:
    """The outages' begins and ends in order of time; of equals, ends first."""
    events = [(one.down_s, one.machine, 0) for one in outages]
    events += [(one.up_s, one.machine, 1) for one in outages if np.isfinite(one.up_s)]
    events.sort(key=lambda event: (event[0], -event[2], event[1]))
    return np.array(events, dtype=st.OUTAGE)


def new_machines(groups: Sequence[MachineGroup]) -> NDArray[np.void]:
    """Idle machines, group by group."""
    machines = np.zeros(sum(group.count for group in groups), dtype=st.MACHINE)
    machines["kind"] = np.repeat(np.arange(len(groups)), [group.count for group in groups])
    machines["running"] = st.IDLE
    for name in ("queue", "ready", "blocked", "expected"):
        machines[f"{name}_head"] = st.NONE
        machines[f"{name}_tail"] = st.NONE
    machines["batch_head"] = st.NONE
    machines["blocked_on"] = st.NONE
    return machines


def new_requests(requests: Load, capacity_tokens: int) -> NDArray[np.void]:
    """Requests that have not arrived; those no machine can ever hold are rejected."""
    table = np.zeros(len(requests.arrival_s), dtype=st.REQUEST)
    for name in ("arrival_s", "prompt_tokens", "output_tokens"):
        table[name] = getattr(requests, name)
    for name in st.REQUEST.names or ():
        if name.endswith("_s") and name != "arrival_s":
            table[name] = np.nan
    table["max_tbt_s"] = 0.0
    table["prompt_machine"] = st.NONE
    table["token_machine"] = st.NONE
    table["status"] = Status.RUNNING
    is_large = table["prompt_tokens"] + table["output_tokens"] > capacity_tokens
    table["status"][is_large] = Status.REJECTED
    table["reason"][is_large] = Reason.TOO_LARGE
    return table


def new_kinds(groups: Sequence[MachineGroup], longest: int) -> st.Kinds:
    """Look-up tables of every group's machine kind, for iterations of up to ``longest`` tokens."""
    tokens = np.arange(longest)
    kinds = st.Kinds(
        np.zeros(len(groups), dtype=st.KIND),
        np.zeros((len(groups), longest), dtype=st.BY_TOKENS),
        np.zeros((len(groups), st.MAX_SLOTS + 1), dtype=st.BY_DECODES),
    )
    for kind, group in enumerate(groups):
        times = group.times
        for name in st.KIND.names or ():
            kinds.fixed[name][kind] = getattr(times, name)
        kinds.by_tokens["prompt_s"][kind] = times.prompt_time_s(tokens)
        kinds.by_tokens["watts"][kind] = times.prompt_watts_at(tokens)
        kinds.by_decodes["decode_s"][kind] = times.decode_s
        kinds.by_decodes["context_s"][kind] = times.decode_s_per_context_token
        kinds.by_decodes["watts"][kind] = times.decode_watts
    return kinds


def new_rules(options: Options, span_s: float, largest_tokens: int) -> st.Rules:
    """The options that compiled code reads."""
    return st.Rules(
        options.queue_threshold_tokens,
        options.batch_tokens,
        options.batch_requests,
        options.max_preemptions,
        options.change_roles,
        options.chunk_prompts,
        "compose" in options.policy.own,
        options.overlap,
        options.share_links,
        options.overlap_from_tokens,
        True if options.cache == "grown" else None,
        options.block_tokens if options.cache == "grown" else 1,
        largest_tokens,
        0 if options.cache == "grown" else 1,  # a server counts prompts alone
        options.retry_s,
        span_s / SAMPLES,
    )


def new_log(segments: int, home: NDArray[np.int8]) -> st.Log:
    """Room for ``segments`` timeline segments, for samples of twice the load's span, and for the
    role changes of machines that stand in their ``home`` pools."""
    samples = 2 * SAMPLES
    return st.Log(
        np.zeros(1, dtype=st.WRITTEN),
        np.zeros(segments, dtype=st.SEGMENT),
        np.zeros(samples, dtype=st.SAMPLE),
        np.zeros((samples, 3), dtype=np.int64),
        np.zeros(ROLE_CHANGES, dtype=st.ROLE_CHANGE),
        home,
    )


def result_of(state: st.State, requests: Load, groups: Sequence[MachineGroup]) -> Result:
    """The arrays of a finished simulation, by their public names."""
    table = state.requests
    machines = state.machines
    log = state.log
    for name in ("prompt_tokens", "output_tokens"):  # retries made prompts of tokens
        table[name] = getattr(requests, name)
    is_stranded = (table["phase"] == st.Phase.AWAY) & (table["reason"] == Reason.NONE)
    table["status"][is_stranded] = Status.REJECTED
    table["reason"][is_stranded] = Reason.NO_MACHINE
    table["status"][~np.isnan(table["finish_s"])] = Status.FINISHED
    table["max_tbt_s"][np.isnan(table["finish_s"]) | (table["output_tokens"] == 1)] = np.nan
    ends = table["finish_s"][~np.isnan(table["finish_s"])]
    end_s = float(ends.max()) if len(ends) else float(table["arrival_s"][-1])
    is_down = ~state.cluster.up
    machines["down_s"][is_down] += np.maximum(end_s - machines["down_since_s"][is_down], 0.0)
    idle_s = np.maximum(end_s - machines["busy_s"] - machines["down_s"], 0.0)
    energy = machines["energy_joules"] + idle_s * state.kinds.fixed["idle_watts"][machines["kind"]]
    segments, samples, changes = log.written[0]
    per_request = {name: table[name].copy() for name in PER_REQUEST}
    per_machine = {name: machines[name].copy() for name in PER_MACHINE}
    return Result(
        **per_request,
        **per_machine,
        machine_kind=tuple(groups[kind].name for kind in machines["kind"]),
        home_pool=state.cluster.home,
        energy_joules=energy,
        role_changes=state.cluster.role_changes,
        peak_kv_tokens=machines["peak_memory_tokens"].copy(),
        kv_capacity_tokens=state.cluster.kv_capacity_tokens,
        occupancy_s=state.occupancy_s,
        sample_s=log.samples["time_s"][:samples],
        waiting_prompts=log.samples["waiting_prompts"][:samples],
        running_decodes=log.samples["running_decodes"][:samples],
        kv_tokens=log.samples["kv_tokens"][:samples],
        pool_sizes=log.pool_sizes[:samples],
        segments=Segments(**{name: log.segments[name][:segments] for name in SEGMENT_FIELDS}),
        changes=RoleChanges(
            **{name: log.role_changes[name][:changes] for name in ROLE_CHANGE_FIELDS}
        ),
        end_s=end_s,
    )
