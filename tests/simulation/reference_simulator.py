"""A slow, obvious simulator: objects and lists, one iteration at a time, in plain Python.

It follows the same rules as ``splitwise.simulation`` and shares only the placement decision with
it. No segments, no linked lists, no slots, no tables.
"""

import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
from placing import place

from splitwise.scheduling.cluster_state import go_home, new_cluster, rank
from splitwise.scheduling.decision import NextBatch
from splitwise.simulation.simulate import Load, MachineGroup, Options, Outage

MACHINE_ENDS, LINK, OUTAGE, ARRIVAL = 0, 1, 2, 3


@dataclass(eq=False)
class Request:
    arrival_s: float
    prompt: int
    output: int
    at: int = -1
    to: int = -1
    done: int = 0
    generated: int = 0
    skips: int = 0
    preemptions: int = 0
    started_s: float = np.nan
    first_s: float = np.nan
    last_s: float = np.nan
    arrived_s: float = np.nan
    finish_s: float = np.nan
    gap_s: float = 0.0
    number: int = 0
    attempts: int = 0
    queued_s: float = np.nan
    begun_s: float = np.nan
    promised_s: float = -np.inf
    where: str = "away"


@dataclass(eq=False)
class Machine:
    index: int
    group: MachineGroup
    busy: bool = False
    prompts: list[Request] = field(default_factory=list)
    batch: list[Request] = field(default_factory=list)
    chunk: int = 0
    skips: int = 0
    ready: list[Request] = field(default_factory=list)
    blocked: list["Machine"] = field(default_factory=list)
    started: list[Request] = field(default_factory=list)
    active: int = 0
    memory: int = 0
    egress_s: float = 0.0
    ingress_s: float = 0.0
    joules: float = 0.0
    life: int = 0  # events of an earlier one are void
    since_s: float = 0.0
    watts: float = 0.0


class ReferenceSimulator:
    def __init__(
        self,
        load: Load,
        groups: list[MachineGroup],
        options: Options,
        outages: tuple[Outage, ...] = (),
    ) -> None:
        self.options = options
        self.machines: list[Machine] = []
        for group in groups:
            for _ in range(group.count):
                self.machines.append(Machine(len(self.machines), group))
        self.capacity = [m.group.times.kv_capacity_tokens for m in self.machines]
        self.cluster = new_cluster(
            np.array([int(m.group.pool) for m in self.machines], dtype=np.int8),
            np.array(self.capacity),
            options.rank_by_size,
        )
        rows = zip(load.arrival_s, load.prompt_tokens, load.output_tokens, strict=True)
        self.requests = [Request(float(a), int(p), int(o)) for a, p, o in rows]
        self.homeless: list[Request] = []
        self.changes: list[tuple[float, int, int]] = []
        self.pools = self.cluster.pool.copy()
        self.events: list[tuple[float, int, int, Any]] = []
        self.number = count()
        for number, request in enumerate(self.requests):
            request.number = number
            if request.prompt + request.output <= max(self.capacity):
                self.push(request.arrival_s, ARRIVAL, request)
        changes = [(one.down_s, 1, one.machine) for one in outages]
        changes += [(one.up_s, 0, one.machine) for one in outages if np.isfinite(one.up_s)]
        for time_s, goes_down, machine in sorted(changes):
            self.push(time_s, OUTAGE, (bool(goes_down), self.machines[machine]))

    def push(self, time_s: float, kind: int, what: Any) -> None:
        order = next(self.number)
        if kind == MACHINE_ENDS:
            order = what[0].index
        if kind == LINK:
            order = what[0].number
        heapq.heappush(self.events, (time_s, kind, order, what))

    def run(self) -> list[Request]:
        while self.events:
            now, kind, _, what = heapq.heappop(self.events)
            if kind == OUTAGE and not self.homeless and not self.has_work():
                continue
            (self.end, self.link, self.outage, self.arrive)[kind](what, now)
        return self.requests

    def has_work(self) -> bool:
        return any(
            kind == ARRIVAL
            or (kind == MACHINE_ENDS and what[1] == what[0].life)
            or (kind == LINK and what[1] == what[0].attempts)
            for _, kind, _, what in self.events
        )

    def arrive(self, r: Request, now: float) -> None:
        o, c = self.options, self.cluster
        r.at, r.to = place(
            c,
            r.prompt,
            r.prompt + r.output,
            o.queue_threshold_tokens,
            o.change_roles,
            r.output == 1,
        )
        for machine in (r.at, r.to):
            self.note(machine, now)
        if r.at < 0:
            self.homeless.append(r)
            return
        r.attempts += 1
        r.queued_s = now
        r.where = "queue"
        c.pending_tokens[r.at] += r.prompt
        c.pending_tokens[r.to] += 1
        c.kv_tokens[r.to] += r.prompt + r.output
        if r.at != r.to:
            c.kv_tokens[r.at] += r.prompt + 1
        rank(c, r.at)
        rank(c, r.to)
        self.machines[r.at].prompts.append(r)
        c.waiting[r.at] += 1
        self.wake(self.machines[r.at], now)

    def note(self, machine: int, now: float) -> None:
        if machine >= 0 and self.pools[machine] != self.cluster.pool[machine]:
            self.pools[machine] = self.cluster.pool[machine]
            self.changes.append((now, machine, int(self.pools[machine])))

    def outage(self, what: tuple[bool, Machine], now: float) -> None:
        goes_down, m = what
        if goes_down:
            self.fail(m, now)
        else:
            self.cluster.up[m.index] = True
            go_home(self.cluster, m.index)
            self.note(m.index, now)
            rank(self.cluster, m.index)
        waiting, self.homeless = sorted(self.homeless, key=lambda r: r.number), []
        for r in waiting:
            self.arrive(r, now)
        for one in self.machines:
            one.blocked.clear()
        for one in self.machines:
            if self.cluster.up[one.index]:
                self.wake(one, now)

    def fail(self, m: Machine, now: float) -> None:
        if m.busy:
            m.joules += (now - m.since_s) * (m.watts - m.group.times.idle_watts)
        c = self.cluster
        for r in self.requests:
            if r.where in ("away", "done"):
                continue
            if r.to == m.index or (r.at == m.index and r.where in ("queue", "prompt", "send")):
                self.recall(r)
                self.homeless.append(r)
        m.busy = False
        m.life += 1
        m.active = m.skips = 0
        m.started, m.batch, m.ready, m.prompts = [], [], [], []
        m.egress_s = m.ingress_s = now
        assert m.memory == c.pending_tokens[m.index] == c.kv_tokens[m.index] == 0
        c.waiting[m.index] = 0
        c.up[m.index] = False
        rank(c, m.index)

    def recall(self, r: Request) -> None:
        c, at, to = self.cluster, self.machines[r.at], self.machines[r.to]
        whole = r.prompt + r.output
        if r in at.prompts:
            if r is at.prompts[0]:
                at.chunk = 0
            at.prompts.remove(r)
            c.waiting[r.at] -= 1
        if r in at.batch:
            at.batch.remove(r)
        if r.where in ("prompt", "send"):
            at.memory -= whole if r.at == r.to else r.prompt + 1
            if r.at != r.to:
                to.memory -= whole
        if r.where in ("ready", "decode"):
            to.memory -= whole
        if r.where in ("queue", "prompt"):
            c.pending_tokens[r.at] -= r.prompt
        c.pending_tokens[r.to] -= 1
        c.kv_tokens[r.to] -= whole
        if r.at != r.to and r.where in ("queue", "prompt", "send"):
            c.kv_tokens[r.at] -= r.prompt + 1
        rank(c, r.at)
        rank(c, r.to)
        r.where = "away"
        r.prompt += r.generated
        r.output -= r.generated
        r.generated = r.done = r.skips = 0
        r.arrived_s = np.nan

    def wake(self, m: Machine, now: float) -> None:
        if not m.busy:
            self.start(m, now)

    def room(self, m: Machine, tokens: int) -> bool:
        return m.memory + tokens <= self.capacity[m.index]

    def start(self, m: Machine, now: float) -> None:
        o = self.options
        prompt_tokens = self.choose_prompts(m, now)
        left = min(o.batch_requests - len(m.batch), max(o.batch_tokens - prompt_tokens, 0))
        m.active = min(len(m.started), left)
        for r in m.started[m.active :]:
            r.preemptions += 1
            r.skips += 1
        while m.active < left and len(m.started) < 512 and m.ready:
            r = m.ready.pop(0)
            self.cluster.waiting[m.index] -= 1
            m.started.append(r)
            r.where = "decode"
            m.active += 1
        running = m.started[: m.active]
        if not running and prompt_tokens == 0:
            m.busy = False
            go_home(self.cluster, m.index)
            self.note(m.index, now)
            return
        m.busy = True
        m.skips = m.skips + 1 if m.prompts and prompt_tokens == 0 else 0
        times = m.group.times
        context = sum(r.prompt + r.generated for r in running)
        if prompt_tokens == 0:
            spent_s, watts = times.decode_time_s(len(running), context), times.decode_watts
        else:
            watts = float(times.prompt_watts_at(prompt_tokens + len(running)))
            spent_s = float(times.prompt_time_s(prompt_tokens))
            if running:
                spent_s = times.mixed_time_s(prompt_tokens, len(running), context)
        m.since_s, m.watts = now, watts
        self.push(now + spent_s, MACHINE_ENDS, (m, m.life))

    def choose_prompts(self, m: Machine, now: float) -> int:
        o = self.options
        m.batch, m.chunk = [], 0
        if not m.prompts:
            return 0
        aged = len(m.started)
        if not o.chunk_prompts:
            turned = m.started[m.active :] + m.started[: m.active]
            first = [r for r in m.started if 0 < o.max_preemptions <= r.skips]
            m.started = first + [r for r in turned if r not in first]
            aged = len(first)
        left, tokens = o.batch_tokens - aged, 0
        most = self.most_prompts(m, aged, now)
        while len(m.batch) < most and len(m.batch) < o.batch_requests - aged:
            r = m.prompts[0]
            alone = not m.batch and aged == 0 and not o.chunk_prompts
            need = r.prompt - r.done
            memory = r.prompt + (r.output if r.to == r.at else 1)
            if need > left and not alone and not (o.chunk_prompts and left > 0):
                break
            if r.done == 0 and not self.reserve(m, r, memory):
                break
            if need > left and not alone:
                m.chunk = left
            if r.done == 0:
                r.where = "prompt"
                r.begun_s = now
                if np.isnan(r.started_s):
                    r.started_s = now
            if m.chunk:
                return tokens + left
            left -= need
            tokens += need
            m.batch.append(m.prompts.pop(0))
            self.cluster.waiting[m.index] -= 1
        return tokens

    def most_prompts(self, m: Machine, aged: int, now: float) -> int:
        """As a policy has it, one that goes in in part included; else all that wait."""
        o = self.options
        if "compose" not in o.policy.own or not m.prompts:
            return len(m.prompts)
        tokens, left = [], o.batch_tokens - aged
        for r in m.prompts[: max(o.batch_requests - aged, 0)]:
            need = r.prompt - r.done
            if need > left and (tokens or aged or o.chunk_prompts):
                tokens += [left] if o.chunk_prompts and left > 0 else []
                break
            tokens.append(need)
            left -= need
        if not tokens:
            return 0
        first, decodes = m.prompts[0], len(m.started) + len(m.ready)
        batch = NextBatch(
            number=first.number + 1,
            priority=0,
            waited_s=now - first.queued_s,
            skips=m.skips,
            decodes=decodes,
            decode_skips=max([r.skips for r in m.started], default=0),
            free_tokens=max(self.free_for_prompts(m), 0),
            batch_requests=o.batch_requests,
            batch_tokens=o.batch_tokens,
        )
        said = int(o.policy.hooks.compose(batch, np.array(tokens)))
        return said or int(decodes == 0 or m.skips >= 64)

    def free_for_prompts(self, m: Machine) -> int:
        return self.capacity[m.index] - m.memory

    def reserve(self, m: Machine, r: Request, memory: int) -> bool:
        target = self.machines[r.to]
        if not self.room(m, memory):
            return False
        if target is not m:
            if not self.room(target, r.prompt + r.output):
                if not any(m in other.blocked for other in self.machines):
                    target.blocked.append(m)
                return False
            target.memory += r.prompt + r.output
        m.memory += memory
        return True

    def end(self, what: tuple[Machine, int], now: float) -> None:
        m, life = what
        if life != m.life:
            return
        m.joules += (now - m.since_s) * (m.watts - m.group.times.idle_watts)
        used_tokens = m.memory
        for r in m.started[: m.active]:
            r.gap_s = max(r.gap_s, now - r.last_s)
            r.last_s = now
            r.generated += 1
            r.skips = 0
            if r.generated == r.output:
                self.finish(m, r, now)
        m.active = sum(1 for r in m.started[: m.active] if r.generated < r.output)
        m.started = [r for r in m.started if r.generated < r.output]
        for r in m.batch:
            self.first_token(m, r, now)
        if m.chunk:
            m.prompts[0].done += m.chunk
        rank(self.cluster, m.index)
        if m.memory < used_tokens:
            self.wake_blocked(m, now)
        self.start(m, now)

    def finish(self, m: Machine, r: Request, now: float) -> None:
        r.finish_s = now
        r.where = "done"
        m.memory -= r.prompt + r.output
        self.cluster.pending_tokens[m.index] -= 1
        self.cluster.kv_tokens[m.index] -= r.prompt + r.output

    def first_token(self, m: Machine, r: Request, now: float) -> None:
        if np.isnan(r.first_s):
            r.first_s = now
        else:
            r.gap_s = max(r.gap_s, now - r.last_s)
        r.last_s = now
        r.generated = 1
        self.cluster.pending_tokens[m.index] -= r.prompt
        if r.output == 1:
            self.finish(m, r, now)
        elif r.to == m.index:
            m.ready.append(r)
            r.where = "ready"
            self.cluster.waiting[m.index] += 1
        else:
            r.where = "send"
            o = self.options
            self.send(r, now, o.overlap and r.prompt >= o.overlap_from_tokens)

    def send(self, r: Request, now: float, early: bool) -> None:
        source, target = self.machines[r.at], self.machines[r.to]
        times = source.group.times
        rate = min(times.link_bytes_per_s, target.group.times.link_bytes_per_s)
        whole_s = r.prompt * times.kv_bytes_per_token / rate
        start_s = self.begin_s(r, now, early, times.layers)
        if self.options.share_links:
            start_s = max(start_s, source.egress_s, target.ingress_s)
        end_s = start_s + whole_s
        if early:
            end_s = max(end_s, now + whole_s / times.layers)
        source.egress_s = target.ingress_s = end_s
        r.arrived_s = end_s + max(times.link_latency_s, target.group.times.link_latency_s)
        self.push(r.arrived_s, LINK, (r, r.attempts))

    def begin_s(self, r: Request, now: float, early: bool, layers: int) -> float:
        """When a transfer has something to send."""
        return r.begun_s + (now - r.begun_s) / layers if early else now

    def link(self, what: tuple[Request, int], now: float) -> None:
        r, attempt = what
        if attempt != r.attempts or r.where != "send":
            return
        source, target = self.machines[r.at], self.machines[r.to]
        source.memory -= r.prompt + 1
        self.cluster.kv_tokens[r.at] -= r.prompt + 1
        rank(self.cluster, r.at)
        go_home(self.cluster, r.at)
        self.note(r.at, now)
        target.ready.append(r)
        r.where = "ready"
        self.cluster.waiting[r.to] += 1
        self.wake_blocked(source, now)
        self.wake(source, now)
        self.wake(target, now)

    def wake_blocked(self, m: Machine, now: float) -> None:
        waiting, m.blocked = m.blocked, []
        for other in waiting:
            self.wake(other, now)
