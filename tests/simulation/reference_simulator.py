"""A slow, obvious simulator: objects and lists, one iteration at a time, in plain Python.

It follows the same rules as ``splitwise.simulation`` and shares only the placement decision with
it. No segments, no linked lists, no slots, no tables.
"""

import heapq
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np

from splitwise.scheduling.placement import go_home, new_cluster, place, rank
from splitwise.simulation.simulate import Load, MachineGroup, Options

MACHINE_ENDS, LINK, ARRIVAL = 0, 1, 2


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


@dataclass(eq=False)
class Machine:
    index: int
    group: MachineGroup
    busy: bool = False
    prompts: list[Request] = field(default_factory=list)
    batch: list[Request] = field(default_factory=list)
    chunk: int = 0
    ready: list[Request] = field(default_factory=list)
    inbound: list[Request] = field(default_factory=list)
    started: list[Request] = field(default_factory=list)
    active: int = 0
    memory: int = 0
    egress_s: float = 0.0
    ingress_s: float = 0.0
    joules: float = 0.0


class ReferenceSimulator:
    def __init__(self, load: Load, groups: list[MachineGroup], options: Options) -> None:
        self.options = options
        self.machines: list[Machine] = []
        for group in groups:
            for _ in range(group.count):
                self.machines.append(Machine(len(self.machines), group))
        self.capacity = [m.group.times.kv_capacity_tokens for m in self.machines]
        self.cluster = new_cluster(
            np.array([int(m.group.pool) for m in self.machines], dtype=np.int8),
            np.array(self.capacity),
        )
        rows = zip(load.arrival_s, load.prompt_tokens, load.output_tokens, strict=True)
        self.requests = [Request(float(a), int(p), int(o)) for a, p, o in rows]
        self.events: list[tuple[float, int, int, Any]] = []
        self.number = count()
        for request in self.requests:
            if request.prompt + request.output <= max(self.capacity):
                self.push(request.arrival_s, ARRIVAL, request)

    def push(self, time_s: float, kind: int, what: Any) -> None:
        order = what.index if kind == MACHINE_ENDS else next(self.number)
        heapq.heappush(self.events, (time_s, kind, order, what))

    def run(self) -> list[Request]:
        while self.events:
            now, kind, _, what = heapq.heappop(self.events)
            (self.end, self.link, self.arrive)[kind](what, now)
        return self.requests

    def arrive(self, r: Request, now: float) -> None:
        o, c = self.options, self.cluster
        r.at, r.to = place(
            c, r.prompt, r.prompt + r.output, o.queue_threshold_tokens, o.change_roles
        )
        if r.output == 1:
            r.to = r.at
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
            m.active += 1
        running = m.started[: m.active]
        if not running and prompt_tokens == 0:
            m.busy = False
            if not (m.prompts or m.ready or m.inbound):
                go_home(self.cluster, m.index)
            return
        m.busy = True
        times = m.group.times
        context = sum(r.prompt + r.generated for r in running)
        if prompt_tokens == 0:
            spent_s, watts = times.decode_time_s(len(running), context), times.decode_watts
        else:
            watts = float(times.prompt_watts_at(prompt_tokens + len(running)))
            spent_s = float(times.prompt_time_s(prompt_tokens))
            if running:
                spent_s = times.mixed_time_s(prompt_tokens, len(running), context)
        m.joules += spent_s * (watts - times.idle_watts)
        self.push(now + spent_s, MACHINE_ENDS, m)

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
        while m.prompts and len(m.batch) < o.batch_requests - aged:
            r = m.prompts[0]
            alone = not m.batch and aged == 0 and not o.chunk_prompts
            need = r.prompt - r.done
            memory = r.prompt + (r.output if r.to == r.at else 1)
            if r.done == 0 and not self.room(m, memory):
                break
            if need > left and not alone:
                if not (o.chunk_prompts and left > 0):
                    break
                m.chunk = left
            if r.done == 0:
                r.started_s = now
                m.memory += memory
            if m.chunk:
                return tokens + left
            left -= need
            tokens += need
            m.batch.append(m.prompts.pop(0))
            self.cluster.waiting[m.index] -= 1
        return tokens

    def end(self, m: Machine, now: float) -> None:
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
        self.admit(m, now)
        self.start(m, now)

    def finish(self, m: Machine, r: Request, now: float) -> None:
        r.finish_s = now
        m.memory -= r.prompt + r.output
        self.cluster.pending_tokens[m.index] -= 1
        self.cluster.kv_tokens[m.index] -= r.prompt + r.output

    def first_token(self, m: Machine, r: Request, now: float) -> None:
        r.first_s = r.last_s = now
        r.generated = 1
        self.cluster.pending_tokens[m.index] -= r.prompt
        if r.output == 1:
            self.finish(m, r, now)
        elif r.to == m.index:
            m.ready.append(r)
            self.cluster.waiting[m.index] += 1
        else:
            o = self.options
            self.send(r, now, o.overlap and r.prompt >= o.overlap_from_tokens)

    def send(self, r: Request, now: float, early: bool) -> None:
        source, target = self.machines[r.at], self.machines[r.to]
        if not self.room(target, r.prompt + r.output):
            target.inbound.append(r)
            return
        target.memory += r.prompt + r.output
        times = source.group.times
        rate = min(source.group.link_bytes_per_s, target.group.link_bytes_per_s)
        whole_s = r.prompt * times.kv_bytes_per_token / rate
        start_s = now
        if early:
            start_s = r.started_s + (now - r.started_s) / times.layers
        if self.options.share_links:
            start_s = max(start_s, source.egress_s, target.ingress_s)
        end_s = start_s + whole_s
        if early:
            end_s = max(end_s, now + whole_s / times.layers)
        source.egress_s = target.ingress_s = end_s
        r.arrived_s = end_s + self.options.link_latency_s
        self.push(r.arrived_s, LINK, r)

    def link(self, r: Request, now: float) -> None:
        source, target = self.machines[r.at], self.machines[r.to]
        source.memory -= r.prompt + 1
        self.cluster.kv_tokens[r.at] -= r.prompt + 1
        rank(self.cluster, r.at)
        self.admit(source, now)
        self.wake(source, now)
        target.ready.append(r)
        self.cluster.waiting[r.to] += 1
        self.wake(target, now)

    def admit(self, m: Machine, now: float) -> None:
        while m.inbound and self.room(m, m.inbound[0].prompt + m.inbound[0].output):
            self.send(m.inbound.pop(0), now, False)
