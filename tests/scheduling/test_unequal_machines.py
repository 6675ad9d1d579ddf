"""Machines of unequal size, by arithmetic and against the rule written with lists and scans."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from placing import place, place_if_room

from splitwise.scheduling.cluster_state import (
    ClusterState,
    bring_back,
    new_cluster,
    rank,
    read_singly,
    set_draining,
    take_out,
    with_machine,
)
from splitwise.scheduling.placement import choose
from splitwise.scheduling.pool import Pool
from splitwise.scheduling.ranking import NOBODY

THRESHOLD = 150
REFUSED = (NOBODY, NOBODY)


@dataclass
class One:
    """A machine of a drawn cluster."""

    pool: str
    capacity: int
    is_up: bool
    pending: int
    waiting: int
    kv: int
    is_seated: bool = False
    """Whether it has as many decodes as it runs."""

    @property
    def taken(self) -> int:
        return max(self.kv, self.capacity) if self.is_seated else self.kv


def build(machines: list[One], is_sized: bool = True) -> ClusterState:
    home = np.array(["PTM".index(one.pool) for one in machines], dtype=np.int8)
    capacity = np.array([one.capacity for one in machines], dtype=np.int64)
    c = new_cluster(home, capacity, is_sized, max_decodes=2)
    for i, one in enumerate(machines):
        c.pending_tokens[i], c.waiting[i], c.kv_tokens[i] = one.pending, one.waiting, one.kv
        c.decodes[i] = 2 if one.is_seated else 1
        rank(c, i)
        if not one.is_up:
            take_out(c, i)
    return c


def cluster(*rows: tuple[str, int, int, int, int]) -> ClusterState:
    """Rows of pool, capacity, pending tokens, waiting requests and cache in use or promised."""
    return build([One(pool, cap, True, *loads) for pool, cap, *loads in rows])


# By arithmetic.


@pytest.mark.parametrize("may_pull", [True, False])
def test_a_small_full_token_machine_does_not_hide_a_large_one(may_pull: bool) -> None:
    c = cluster(("P", 10_000, 0, 0, 9_950), ("T", 1_000, 4, 0, 1_000), ("T", 10_000, 20, 0, 5_000))
    assert place_if_room(c, 100, 101, 8192, may_pull) == (0, 2)
    assert place(c, 100, 200, 8192, may_pull) == (0, 2)
    assert c.role_changes.tolist() == [0, 0, 0]


def test_the_most_room_is_not_the_least_load() -> None:
    c = cluster(("P", 9, 0, 0, 0), ("T", 1_000, 1, 0, 300), ("T", 10_000, 1, 0, 9_000))
    assert place(c, 5, 100, 8192, True) == (0, 2)
    c.kv_tokens[2] = 9_400
    rank(c, 2)
    assert place(c, 5, 100, 8192, True) == (0, 1)


def test_a_small_full_mixed_machine_does_not_hide_a_large_one() -> None:
    c = cluster(("M", 1_000, 4, 0, 1_000), ("M", 10_000, 20, 0, 5_000))
    assert place_if_room(c, 100, 101, 8192, True) == (1, 1)
    assert place(c, 100, 200, 8192, True) == (1, 1)


def test_a_small_full_prompt_machine_gives_way_unless_the_large_one_has_a_long_queue() -> None:
    rows = ("P", 1_000, 900, 1, 1_000), ("P", 10_000, 5_000, 1, 5_000), ("T", 10_000, 0, 0, 0)
    c = cluster(*rows)
    assert place(c, 500, 600, 8192, True) == (1, 2)
    assert place_if_room(c, 500, 501, 8192, True) == (1, 2)
    c.pending_tokens[1] = 8_000
    rank(c, 1)
    assert place(c, 500, 600, 8192, True) == (0, 2)


def test_each_phase_goes_to_a_machine_that_could_hold_it() -> None:
    """A prompt of 2,000 tokens; the least pending and the emptiest machines are too small."""
    prompts = ("P", 1_000, 0, 0, 0), ("P", 3_000, 70, 0, 100), ("P", 3_000, 60, 0, 100)
    tokens = ("T", 2_000, 0, 0, 0), ("T", 4_000, 9, 0, 2_500), ("T", 4_000, 9, 0, 2_100)
    assert place(cluster(*prompts, *tokens), 2_000, 2_200, 8192, False) == (2, 5)
    pulled = cluster(*prompts, *tokens)
    assert choose(pulled, 2_000, 2_200, 8192, True) == (2, 1, True)  # no token machine has room
    assert place_if_room(cluster(*prompts, *tokens), 900, 901, 8192, False) == (0, 3)


def test_who_computes_both_phases_could_hold_them() -> None:
    """The least pending that could, not the largest there is."""
    c = cluster(
        ("T", 100, 0, 0, 0), ("M", 900, 60, 1, 0), ("M", 700, 50, 1, 0), ("P", 100, 0, 0, 0)
    )
    assert place(c, 500, 600, 8192, True) == (2, 2)
    assert place(c, 700, 800, 8192, True) == (1, 1)
    assert place(c, 800, 901, 8192, True) == REFUSED


def test_by_the_public_simulators_rule_size_does_not_count() -> None:
    rows = ("P", 9, 0, 0, 0), ("T", 1_000, 1, 0, 300), ("T", 10_000, 1, 0, 301)
    assert place(
        build([One(p, c, True, *loads) for p, c, *loads in rows], False), 5, 100, 8192, True
    ) == (0, 1)


def test_a_prompt_goes_to_an_empty_queue_before_it_waits() -> None:
    c = cluster(("P", 9_999, 8_000, 1, 0), ("P", 9_999, 9_000, 0, 0), ("T", 9_999, 0, 0, 0))
    assert place_if_room(c, 500, 501, 8192, False) == (1, 2)
    assert place_if_room(c, 500, 501, 8192, False, True) == (1, 1)


def test_an_unsplit_cluster_asks_everybody_before_a_request_waits() -> None:
    """One has no room, one has a long queue, and one has both though no more of either."""
    full, long = ("M", 1_000, 10, 0, 1_000), ("M", 1_000, 8_150, 1, 0)
    fits = ("M", 1_000, 8_000, 1, 800)
    assert place_if_room(cluster(full, long, fits), 100, 101, 8192, True) == (2, 2)
    assert place_if_room(cluster(full, long), 100, 101, 8192, True) == REFUSED


# Against scans.

loads = st.tuples(st.booleans(), st.integers(0, 200), st.integers(0, 2))
pools = st.sampled_from("PTM")


def _machine(
    pool: str, capacity: int, load: tuple[bool, int, int], share: float, is_seated: bool
) -> One:
    return One(pool, capacity, *load, round(capacity * share), is_seated)


def machines_of(capacities: st.SearchStrategy[int]) -> st.SearchStrategy[list[One]]:
    shares = st.sampled_from([0, 0.3, 0.5, 0.9, 1.0])
    one = st.builds(_machine, pools, capacities, loads, shares, st.booleans())
    return st.lists(one, max_size=8)


equals = st.sampled_from([40, 120]).flatmap(lambda size: machines_of(st.just(size)))
unequals = machines_of(st.sampled_from([20, 60, 61, 120, 500]))
requests = st.tuples(st.integers(1, 119), st.integers(1, 30))


@dataclass
class Scan:
    """The rule for machines of one size, or, where size does not count, of any that can hold the
    request: lists, and a scan a step."""

    machines: list[One]

    def least(self, pools: str, field: str) -> int:
        standing = [
            (getattr(one, field), pools.index(one.pool), i)
            for i, one in enumerate(self.machines)
            if one.is_up and one.pool in pools
        ]
        return min(standing)[2] if standing else NOBODY

    def is_long(self, i: int, prompt: int) -> bool:
        return self.machines[i].waiting > 0 and self.machines[i].pending + prompt > THRESHOLD

    def is_full(self, i: int, kv: int) -> bool:
        return self.machines[i].taken + kv >= self.machines[i].capacity

    def choose(self, prompt: int, kv: int, may_pull: bool) -> tuple[int, int, bool]:
        if all(kv > one.capacity for one in self.machines if one.is_up):
            return (*REFUSED, False)
        if self.least("PT", "pending") == NOBODY:
            both = self.least("M", "pending")
            return both, both, both != NOBODY
        prompts = [i for pool in "PM" if (i := self.least(pool, "pending")) != NOBODY]
        tokens = [i for pool in "TM" if (i := self.least(pool, "taken")) != NOBODY]
        at = next((i for i in prompts if not self.is_long(i, prompt)), NOBODY)
        to = next((i for i in tokens if not self.is_full(i, kv)), NOBODY)
        if at == NOBODY:
            helpers = [self.least("T", "pending")] if may_pull else [*prompts, NOBODY]
            at = helpers[0]
        if to == NOBODY:
            helpers = [self.least("P", "taken")] if may_pull else [*tokens, NOBODY]
            to = helpers[0]
        if NOBODY not in (at, to):
            return at, to, True
        both = self.least("PMT", "pending")
        return both, both, False


@given(equals, requests, st.booleans(), st.booleans())
def test_among_equals_size_changes_nothing(
    machines: list[One], request: tuple[int, int], may_pull: bool, is_sized: bool
) -> None:
    prompt, output = request
    wanted = Scan(machines).choose(prompt, prompt + output, may_pull)
    c = build(machines, is_sized)
    assert choose(c, prompt, prompt + output, THRESHOLD, may_pull) == wanted


@given(unequals, requests, st.booleans())
def test_where_size_does_not_count_it_is_the_public_simulators_rule(
    machines: list[One], request: tuple[int, int], may_pull: bool
) -> None:
    prompt, output = request
    able = [one for one in machines if one.capacity >= prompt + output]
    wanted = Scan(able).choose(prompt, prompt + output, may_pull)
    c = build(able, is_sized=False)
    assert choose(c, prompt, prompt + output, THRESHOLD, may_pull) == wanted


@dataclass
class Room:
    """Who could run a request at once, by the rules."""

    machines: list[One]
    prompt: int
    kv: int
    one_token: bool
    may_pull: bool

    def able(self, pools: str, kv: int) -> list[One]:
        return [m for m in self.machines if m.is_up and m.pool in pools and m.capacity >= kv]

    def takes_prompt(self, one: One) -> bool:
        return one.waiting == 0 or one.pending + self.prompt <= THRESHOLD

    def takes_tokens(self, one: One) -> bool:
        return self.one_token or one.taken + self.kv <= one.capacity

    def exists(self) -> bool:
        prompts = self.able("PMT" if self.may_pull else "PM", self.prompt + 1)
        tokens = self.able("PMT" if self.may_pull else "TM", self.kv)
        if not (self.able("P", self.prompt + 1) or self.able("T", self.kv)):
            return any(
                self.takes_prompt(m) and self.takes_tokens(m) for m in self.able("M", self.kv)
            )
        if prompts and (tokens or self.one_token):
            return any(map(self.takes_prompt, prompts)) and (
                self.one_token or any(map(self.takes_tokens, tokens))
            )
        left = self.able("PMT", self.kv)  # a phase that no machine is left for
        return any(self.takes_prompt(m) and self.takes_tokens(m) for m in left)


@given(unequals | equals, st.integers(1, 119), st.booleans(), st.booleans())
def test_nobody_waits_while_a_machine_that_may_run_it_has_room(
    machines: list[One], prompt: int, one_token: bool, may_pull: bool
) -> None:
    c = build(machines)
    before = c.pool.tolist()
    room = Room(machines, prompt, prompt + 1, one_token, may_pull)
    at, to = place_if_room(c, prompt, prompt + 1, THRESHOLD, may_pull, one_token)
    assert (at == NOBODY) == (to == NOBODY) == (not room.exists())
    changed = [i for i in range(len(before)) if c.pool[i] != before[i]]
    assert all(i in (at, to) and c.pool[i] == Pool.MIXED for i in changed)
    assert may_pull or not changed
    if at == NOBODY:
        return
    assert machines[at].is_up and room.takes_prompt(machines[at])
    assert machines[to].is_up and room.takes_tokens(machines[to])
    assert machines[at].capacity > prompt


@given(unequals, requests, st.booleans())
def test_what_is_placed_could_be_held_and_what_could_be_held_is_placed(
    machines: list[One], request: tuple[int, int], may_pull: bool
) -> None:
    prompt, kv = request[0], sum(request)
    at, to = place(build(machines), prompt, kv, THRESHOLD, may_pull)
    assert (at == NOBODY) == all(one.capacity < kv or not one.is_up for one in machines)
    if at != NOBODY:
        assert machines[at].is_up and machines[at].capacity > prompt
        assert machines[to].is_up and machines[to].capacity >= kv


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["join", "lose", "back", "drain", "load"]),
            st.integers(0, 9),
            st.sampled_from(list(Pool)),
            st.sampled_from([20, 60, 120]),
        ),
        max_size=30,
    )
)
def test_machines_that_come_and_go_stand_as_if_they_had_always_been_there(
    steps: list[tuple[str, int, Pool, int]],
) -> None:
    c = read_singly(new_cluster(np.zeros(0, np.int8), np.zeros(0, np.int64)))
    for what, i, pool, tokens in steps:
        if what == "join":
            c = read_singly(with_machine(c, pool, tokens))
        elif i >= len(c.up):
            continue
        elif what == "lose":
            take_out(c, i)
        elif what == "back" and not c.up[i]:
            bring_back(c, i, pool, tokens)
        elif what == "drain":
            set_draining(c, i, tokens > 60)
        elif what == "load":
            c.pending_tokens[i], c.waiting[i], c.kv_tokens[i] = tokens, tokens % 3, tokens // 2
            c.max_decodes[i] = c.decodes[i] = tokens > 20
            c.max_decodes[i] += 1 - tokens // 120
            rank(c, i)
    anew = build(
        [
            One(
                *("PTM"[c.pool[i]], c.kv_capacity_tokens[i]),
                *(bool(c.up[i] and not c.draining[i]), *row, c.decodes[i] >= c.max_decodes[i]),
            )
            for i, row in enumerate(zip(c.pending_tokens, c.waiting, c.kv_tokens, strict=True))
        ]
    )
    for name in ("by_pending", "by_kv", "by_queue"):
        ours, theirs = getattr(c, name), getattr(anew, name)
        count = len(c.up)
        np.testing.assert_array_equal(np.asarray(ours.key)[:, :count], theirs.key[:, :count])
        np.testing.assert_array_equal(np.asarray(ours.winner)[:, 1], theirs.winner[:, 1])
        np.testing.assert_array_equal(np.asarray(ours.leaf), theirs.leaf)
