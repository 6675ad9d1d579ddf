"""The slow, obvious simulator where the cache grows with the output.

A machine knows its blocks by a dict from request to number of blocks, and the cluster's loads are
counted anew from all requests before each decision, instead of being kept up to date.
"""

from collections import Counter
from typing import Any

import numpy as np
from placing import place_if_room
from reference_simulator import ARRIVAL, Machine, ReferenceSimulator, Request

from splitwise.scheduling.batching import may_reserve
from splitwise.scheduling.cluster_state import go_home, rank


class GrownReference(ReferenceSimulator):
    """``where`` of a request: away, queue, prompt, send, arrived, ready, decode, done."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        size = self.options.block_tokens
        self.capacity = [tokens // size * size for tokens in self.capacity]
        self.cluster.kv_capacity_tokens[:] = self.capacity
        self.cluster.max_decodes[:] = min(self.options.batch_requests, self.options.batch_tokens)
        self.line: list[Request] = []
        self.passed_blocks: Counter[Request] = Counter()  # of those that passed one that waits
        self.blocks: list[dict[Request, int]] = [{} for _ in self.machines]
        self.expected: list[list[Request]] = [[] for _ in self.machines]
        self.is_news = [False] * len(self.machines)
        self.unheard: list[Request] = []  # prompts that began, of which the cluster does not know
        self.placed: list[Request] = []
        largest = max(self.capacity)
        self.events = [
            event
            for event in self.events
            if event[1] != ARRIVAL or event[3].prompt + event[3].output <= largest
        ]

    def count_blocks(self, tokens: int) -> int:
        return -(-tokens // self.options.block_tokens)

    # The cluster.

    def run(self) -> list[Request]:
        for event in iter(self.next_event, None):
            now, kind, what = event
            (self.end, self.link, self.outage, self.arrive)[kind](what, now)
            self.serve(now)
        return self.requests

    def next_event(self) -> tuple[float, int, Any] | None:
        if not self.events:
            return None
        self.events.sort(key=lambda event: event[:3])
        now, kind, _, what = self.events.pop(0)
        return now, kind, what

    def arrive(self, r: Request, now: float) -> None:
        self.line.append(r)

    def serve(self, now: float) -> None:
        self.hand_out(now)
        while self.unheard:
            self.unheard.clear()
            self.hand_out(now)

    def hand_out(self, now: float) -> None:
        self.line.sort(key=lambda r: (r.attempts == 0, r.number))
        passed: list[Request] = []
        for r in list(self.line):
            if len(passed) > 4 or any(not self.may_pass(r, other) for other in passed):
                return
            if self.start_if_room(r, now):
                for other in passed:
                    self.passed_blocks[other] += self.first_blocks(r)
            else:
                passed.append(r)

    def first_blocks(self, r: Request) -> int:
        return self.count_blocks(r.prompt + 1)

    def may_pass(self, r: Request, other: Request) -> bool:
        """What is large waits for others that are small, as long as they are no more than itself
        in all."""
        own, blocks = self.first_blocks(other), self.first_blocks(r)
        largest = self.count_blocks(max(self.capacity))
        is_large, is_small = own > largest / 4, blocks <= own / 2
        return is_large and is_small and self.passed_blocks[other] + blocks <= own

    def start_if_room(self, r: Request, now: float) -> bool:
        o = self.options
        self.count_loads()
        r.at, r.to = place_if_room(
            self.cluster,
            r.prompt,
            self.first_blocks(r) * o.block_tokens,
            o.queue_threshold_tokens,
            o.change_roles,
            r.output == 1,
        )
        if r.at < 0:
            return False
        self.line.remove(r)
        del self.passed_blocks[r]
        self.note(r.at, now)
        self.note(r.to, now)
        r.attempts += 1
        r.queued_s = now
        r.where = "queue"
        self.placed.append(r)
        self.machines[r.at].prompts.append(r)
        if r.at != r.to:
            self.expected[r.to].append(r)
            self.is_news[r.to] = True
            self.wake(self.machines[r.to], now)
        self.wake(self.machines[r.at], now)
        return True

    def count_loads(self) -> None:
        c, size = self.cluster, self.options.block_tokens
        for loads in (c.pending_tokens, c.waiting, c.kv_tokens, c.decodes):
            loads[:] = 0
        for r in self.placed:
            if r.where in ("queue", "prompt"):
                c.pending_tokens[r.at] += r.prompt
            if r in self.machines[r.at].prompts or r in self.unheard:
                c.waiting[r.at] += 1
            if r.at != r.to and r.where in ("queue", "prompt", "send", "arrived"):
                c.kv_tokens[r.at] += self.count_blocks(r.prompt + 1) * size
            c.pending_tokens[r.to] += 1
            c.decodes[r.to] += r.output > 1
            c.kv_tokens[r.to] += self.count_blocks(r.prompt + r.generated + 1) * size
        for machine in range(len(self.machines)):
            rank(c, machine)

    def settle(self, now: float) -> None:
        """Whoever has nothing left goes home."""
        self.count_loads()
        for machine in range(len(self.machines)):
            go_home(self.cluster, machine)
            self.note(machine, now)

    # A machine.

    def free(self, m: Machine) -> int:
        total = self.count_blocks(self.capacity[m.index])
        return total - sum(self.blocks[m.index].values())

    def running(self, m: Machine) -> list[Request]:
        return m.started + [r for r in m.ready if r.where == "ready"]

    def may_take(self, m: Machine, r: Request) -> bool:
        return may_reserve(self.count_blocks(r.prompt), self.free(m), len(self.running(m)))

    def free_for_prompts(self, m: Machine) -> int:
        return (self.free(m) - len(self.running(m))) * self.options.block_tokens

    def start(self, m: Machine, now: float) -> None:
        if self.is_news[m.index]:
            self.is_news[m.index] = False
            self.promise(m, now)
        for r in m.ready:
            if r.where == "arrived":
                r.where = "ready"
        self.grow(m)
        self.settle(now)
        queued = list(m.prompts)
        super().start(m, now)
        self.unheard += [r for r in queued if r not in m.prompts]

    def promise(self, m: Machine, now: float) -> None:
        expected = self.expected[m.index]
        while expected and self.may_take(m, expected[0]):
            r = expected.pop(0)
            self.blocks[m.index][r] = self.count_blocks(r.prompt)
            r.promised_s = now
            if r.where == "send":
                self.send(r, now, False)

    def grow(self, m: Machine) -> None:
        """The oldest first; for want of a block the youngest of all goes."""
        blocks = self.blocks[m.index]
        for r in sorted(self.running(m), key=lambda r: r.number):
            if r not in self.running(m) or self.count_blocks(r.prompt + r.generated) <= blocks[r]:
                continue
            if self.free(m) == 0:
                self.preempt(m, max(self.running(m), key=lambda r: r.number))
            if r in blocks:
                blocks[r] += 1

    def preempt(self, m: Machine, r: Request) -> None:
        if r in m.started:
            m.active -= m.started.index(r) < m.active
            m.started.remove(r)
        else:
            m.ready.remove(r)
        del self.blocks[m.index][r]
        self.placed.remove(r)
        r.where = "away"
        r.prompt += r.generated
        r.output -= r.generated
        r.generated = r.done = r.skips = 0
        r.arrived_s = np.nan
        self.line.append(r)

    def reserve(self, m: Machine, r: Request, memory: int) -> bool:
        if not self.may_take(m, r):
            return False
        self.blocks[m.index][r] = self.count_blocks(r.prompt)
        return True

    def finish(self, m: Machine, r: Request, now: float) -> None:
        r.finish_s = now
        r.where = "done"
        self.placed.remove(r)
        del self.blocks[m.index][r]
        self.is_news[m.index] = True

    def send(self, r: Request, now: float, early: bool) -> None:
        if r not in self.expected[r.to]:  # else it is sent when there is room
            super().send(r, now, early)

    def begin_s(self, r: Request, now: float, early: bool, layers: int) -> float:
        return max(super().begin_s(r, now, early, layers), r.promised_s)

    def link(self, what: tuple[Request, int], now: float) -> None:
        r, _ = what
        del self.blocks[r.at][r]
        self.is_news[r.at] = True
        self.machines[r.to].ready.append(r)
        r.where = "arrived"
        self.wake(self.machines[r.at], now)
        self.wake(self.machines[r.to], now)
