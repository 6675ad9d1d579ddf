"""What requests are charged to machines: by hand, and against a model under random events."""

import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_cluster import ScriptedCluster, request

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.pools import PoolError
from splitwise.cluster.request import LiveRequest, RequestState
from splitwise.protocol.generation import Overloaded
from splitwise.protocol.messages import Preempted, TaskFailed
from splitwise.scheduling.cluster_state import is_idle
from splitwise.scheduling.pool import Pool
from splitwise.scheduling.ranking import NOBODY, OUT, first

BLOCK = 16
MAX_DECODES = 3


def cache(tokens: int) -> int:
    return -(-tokens // BLOCK) * BLOCK


def loads(f: ScriptedCluster, machine: int) -> tuple[int, int, int]:
    """Pending tokens, waiting prompts and cache."""
    c = f.cluster.roster.cluster
    return int(c.pending_tokens[machine]), int(c.waiting[machine]), int(c.kv_tokens[machine])


async def test_each_charge_is_taken_back_by_what_ends_it() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request(prompt=31, max_tokens=9))
    assert loads(f, 0) == (31, 1, 32) and loads(f, 1) == (1, 0, 32)
    f.started(0, live.task)
    assert loads(f, 0) == (31, 0, 32)
    f.output(0, live.task, 31, 20)
    assert loads(f, 0) == (0, 0, 32)
    assert loads(f, 1) == (1, 0, 48)  # The next token needs another block.
    f.transferred(1, live.task)
    assert loads(f, 0) == (0, 0, 0) and loads(f, 1) == (1, 0, 48)
    f.output(1, live.task, 32, 21, finish=True)
    f.assert_idle()


async def test_one_machine_for_both_phases_holds_one_cache() -> None:
    f = ScriptedCluster(Pool.MIXED)
    live = f.cluster.submit(request(prompt=31))
    assert loads(f, 0) == (32, 1, 32)
    f.started(0, live.task)
    f.output(0, live.task, 31, 20)
    assert loads(f, 0) == (1, 0, 48)
    live.cancel()
    f.assert_idle()


async def test_what_a_lost_prompt_machine_was_sending_is_off_its_books_when_it_is_back() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request(prompt=31))
    f.output(0, live.task, 31, 20)
    f.cluster.lose(0)
    assert f.cluster.join(f.links[0]) == 0
    assert loads(f, 0) == (0, 0, 0)
    f.transferred(1, live.task)  # It had been sent after all.
    assert loads(f, 0) == (0, 0, 0)
    f.output(1, live.task, 32, 21, finish=True)
    f.assert_idle()


async def test_a_long_prompt_queue_pulls_a_token_machine_which_goes_home_when_idle() -> None:
    limits = ClusterLimits(prompt_queue_threshold_tokens=500)
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN, Pool.TOKEN, limits=limits)
    first_one = f.cluster.submit(request(prompt=400))
    assert (first_one.prompt_machine, first_one.token_machine) == (0, 1)
    second = f.cluster.submit(request(prompt=400))
    assert (second.prompt_machine, second.token_machine) == (2, 2)
    assert f.pools() == [Pool.PROMPT, Pool.TOKEN, Pool.MIXED]
    second.cancel()
    assert f.pools() == [Pool.PROMPT, Pool.TOKEN, Pool.TOKEN]
    first_one.cancel()
    f.assert_idle()
    assert f.metrics.role_changes == [("m2", "mixed"), ("m2", "token")]


async def test_a_full_token_machine_pulls_a_prompt_machine() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.PROMPT, Pool.TOKEN)
    big = f.cluster.submit(request(prompt=1000))
    assert (big.prompt_machine, big.token_machine) == (0, 2)
    small = f.cluster.submit(request(prompt=50))
    assert (small.prompt_machine, small.token_machine) == (1, 1)
    assert f.pools() == [Pool.PROMPT, Pool.MIXED, Pool.TOKEN]
    for live in (big, small):
        live.cancel()
    f.assert_idle()


class World:
    """A small cluster whose machines do what real ones may do, at random."""

    def __init__(self, change_roles: bool) -> None:
        limits = ClusterLimits(
            prompt_queue_threshold_tokens=300, max_waiting_requests=20, change_roles=change_roles
        )
        pools = (Pool.PROMPT, Pool.PROMPT, Pool.TOKEN, Pool.TOKEN, Pool.MIXED)
        self.f = ScriptedCluster(*pools, limits=limits, blocks=32, max_decodes=MAX_DECODES)
        self.lost = set[int]()
        self.started = set[int]()
        self.sent = set[int]()
        self.prompt_cache = dict[int, int]()
        self.draining = set[int]()

    def live(self, pick: int) -> LiveRequest | None:
        running = list(self.f.cluster._attempts)
        return running[pick % len(running)] if running else None

    def submit(self, pick: int) -> None:
        rng = random.Random(pick)
        if self.f.cluster.unavailable_reason() is None:
            one = request(rng.choice([1, 15, 100, 300, 400]), rng.randint(1, 40))
            try:
                self.f.cluster.submit(one)
            except Overloaded:
                assert self.f.cluster._backlog.first_tokens_due == 20

    def step(self, action: str, pick: int) -> None:
        f = self.f
        if action == "submit":
            self.submit(pick)
        elif action == "lose" and len(self.lost) < 5:
            index = [i for i in f.indices if i not in self.lost][pick % (5 - len(self.lost))]
            self.lost.add(index)
            running = f.cluster._attempts
            self.sent |= {live.task for live in running if live.prompt_machine == index}
            f.cluster.lose(index)
        elif action == "rehome" and (index := pick % 5) not in self.lost:
            f.cluster.pools.set_home(f"m{index}", Pool(pick // 5 % 3))
        elif action == "drain" and (index := pick % 5) not in self.lost:
            self.drain(index, draining=index not in self.draining)
        elif action == "leave":
            self.leave()
        elif action == "join" and self.lost:
            index = sorted(self.lost)[pick % len(self.lost)]
            self.lost.remove(index)
            self.draining.discard(index)
            assert f.cluster.join(f.links[index]) == index
        elif (live := self.live(pick)) is not None:
            self.step_of(live, action)

    def drain(self, index: int, draining: bool) -> None:
        if not draining and self.f.links[index].is_told_to_end:
            with pytest.raises(PoolError):
                self.f.cluster.pools.drain(f"m{index}", draining)
            return
        self.f.cluster.pools.drain(f"m{index}", draining)
        (self.draining.add if draining else self.draining.remove)(index)

    def leave(self) -> None:
        """Machines that were told to end do so; nobody misses them."""
        for index, link in enumerate(self.f.links):
            if link.is_told_to_end and index not in self.lost:
                attempts = [live.failures for live in self.f.cluster._attempts]
                self.f.cluster.lose(index)
                self.lost.add(index)
                assert attempts == [live.failures for live in self.f.cluster._attempts]

    def step_of(self, live: LiveRequest, action: str) -> None:
        f, task = self.f, live.task
        is_split = live.prompt_machine != live.token_machine
        if action == "start" and live.state is RequestState.PROMPT:
            self.started.add(task)
            f.started(live.prompt_machine, task)
        elif action == "transfer" and live.state is RequestState.TOKEN and is_split:
            self.sent.add(task)
            f.transferred(live.token_machine, task)
        elif action == "token":
            position = len(live.history)
            at_prompt = live.state is RequestState.PROMPT
            machine = live.prompt_machine if at_prompt else live.token_machine
            f.output(machine, task, position, 7, finish=position + 1 >= live.max_history_tokens)
        elif action == "cancel":
            live.cancel()
        elif action == "fail":
            f.cluster.receive(live.token_machine, TaskFailed(task, "why not", True))
        elif action == "preempt":
            f.cluster.receive(live.token_machine, Preempted(task))

    def expected_loads(self) -> list[tuple[int, int, int, int]]:
        """By the definition of the four numbers."""
        pending, waiting, kv, decodes = ([0] * 5 for _ in range(4))
        for live in self.f.cluster._attempts:
            p, t, tokens = live.prompt_machine, live.token_machine, len(live.history)
            in_prompt = live.state is RequestState.PROMPT
            pending[p] += tokens if in_prompt else 0
            pending[t] += 1
            waiting[p] += in_prompt and live.task not in self.started
            kv[t] += cache(tokens + 1)
            decodes[t] += live.max_history_tokens - live._attempt_from > 1
            if in_prompt:
                self.prompt_cache[live.task] = cache(tokens + 1)
            if p != t and live.task not in self.sent:
                kv[p] += self.prompt_cache[live.task]
        return list(zip(pending, waiting, kv, decodes, strict=True))

    def room(self, i: int) -> int:
        """None beyond what it runs, and less than none where outputs have grown past it."""
        c = self.f.cluster.roster.cluster
        left = int(c.kv_capacity_tokens[i] - c.kv_tokens[i])
        return left if c.decodes[i] < MAX_DECODES else min(left, 0)

    def check(self) -> None:
        c = self.f.cluster.roster.cluster
        decodes = c.decodes.tolist()
        assert [(*loads(self.f, i), decodes[i]) for i in range(5)] == self.expected_loads()
        assert max(decodes) <= MAX_DECODES
        for i in range(5):
            assert bool(c.up[i]) == (i not in self.lost)
            may_end = i in self.draining - self.lost and is_idle(c, i)
            assert self.f.links[i].is_told_to_end == may_end or i in self.lost
            shown = None if i in self.lost else Pool(c.pool[i]).name.lower()
            assert self.f.metrics.pools[f"m{i}"] == shown
            assert c.pool[i] == c.home[i] or (c.pool[i] == Pool.MIXED and not is_idle(c, i))
        kept_out = {i for i in range(5) if f"m{i}" in self.f.metrics.kept_out}
        closed = self.lost | self.draining | kept_out
        taking = [i for i in range(5) if i not in closed]
        assert taking or not kept_out
        for pool in Pool:
            there = [i for i in taking if c.pool[i] == pool]
            least = min(there, key=lambda i: (c.pending_tokens[i], i), default=NOBODY)
            assert first(c.by_pending, pool) == least
            roomiest = min(there, key=lambda i: (-self.room(i), i), default=NOBODY)
            assert first(c.by_kv, pool) == roomiest
            assert all(c.by_kv.key[pool, i] == OUT for i in closed)

    def finish(self) -> None:
        """Every machine comes back and every request is served to its end."""
        self.leave()
        for index in sorted(self.draining - self.lost):
            self.drain(index, draining=False)
        while self.lost:
            self.step("join", 0)
        for _ in range(100_000):
            if not self.f.cluster._attempts:
                break
            self.step("token", 0)
        self.check()
        self.f.assert_idle()


ACTIONS: Sequence[str] = (
    *("submit", "submit", "submit", "start", "start", "token", "token", "token", "transfer"),
    *("cancel", "fail", "preempt", "lose", "join", "rehome", "drain", "leave"),
)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(st.tuples(st.sampled_from(ACTIONS), st.integers(0, 10**6)), max_size=200),
    change_roles=st.booleans(),
)
def test_whatever_happens_the_books_balance_and_everybody_is_home_in_the_end(
    steps: list[tuple[str, int]], change_roles: bool
) -> None:
    world = World(change_roles)
    for action, pick in steps:
        world.step(action, pick)
        world.check()
        if not (change_roles or any(action == "rehome" for action, _ in steps)):
            assert not any(world.f.cluster.roster.cluster.role_changes)
    world.finish()
