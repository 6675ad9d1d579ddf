"""Machine-level rules, by hand and by property."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwise.scheduling import admission
from splitwise.scheduling.batching import (
    BATCH_REQUESTS,
    MAX_PROMPT_SKIPS,
    PROMPT_BATCH_TOKENS,
    choose_victims,
    compose,
    count_with_room,
    decode_places,
    is_aged,
    joins_batch,
    may_reserve,
    order_running,
    pick_victim,
    prompts_to_start,
)
from splitwise.scheduling.fair_queue import FairQueue
from splitwise.scheduling.waiting import Turn, goes_before


def count_prompts(
    prompt_tokens: list[int],
    prompt_blocks: list[int],
    free_blocks: int,
    aged: int = 0,
    batch_requests: int = BATCH_REQUESTS,
) -> int:
    """How many prompts start where each takes its blocks at once, as a machine counts them."""
    count, _ = compose(prompt_tokens, aged, batch_requests, PROMPT_BATCH_TOKENS, may_cut=False)
    return count_with_room(prompt_blocks[:count], free_blocks, running_requests=0)


def test_prompts_fill_the_budget_and_no_more() -> None:
    assert count_prompts([1000, 1000, 48, 1], [1, 1, 1, 1], 10) == 3


def test_who_joins_a_batch() -> None:
    assert joins_batch(48, 48, False)
    assert not joins_batch(49, 48, False)
    assert joins_batch(5000, 2048, True)


def test_a_prompt_beyond_the_budget_runs_alone() -> None:
    assert count_prompts([5000, 1], [1, 1], 10) == 1
    assert count_prompts([1, 5000], [1, 1], 10) == 1


def test_nothing_overtakes_a_prompt_that_does_not_fit_in_memory() -> None:
    assert count_prompts([10, 10, 10], [2, 9, 1], 10) == 1
    assert count_prompts([10], [11], 10) == 0


def test_slots_bound_the_batch() -> None:
    assert count_prompts([1, 1, 1], [1, 1, 1], 10, batch_requests=2) == 2


def test_aged_decodes_take_their_places_before_prompts() -> None:
    assert count_prompts([1, 1, 1], [1, 1, 1], 10, aged=1, batch_requests=3) == 2
    assert count_prompts([1], [1], 10, aged=3, batch_requests=3) == 0
    assert count_prompts([1000, 1047], [1, 1], 10, aged=1) == 2
    assert count_prompts([1000, 1048], [1, 1], 10, aged=1) == 1
    assert count_prompts([5000], [1], 10, aged=1) == 0  # it would run alone


def test_a_policy_may_keep_prompts_out_for_so_long_beside_decodes() -> None:
    assert [prompts_to_start(said, decodes=1, skips=0) for said in (0, 1, 5)] == [0, 1, 5]
    assert [prompts_to_start(said, decodes=0, skips=0) for said in (0, 1, 5)] == [1, 1, 5]
    assert prompts_to_start(0, decodes=9, skips=MAX_PROMPT_SKIPS - 1) == 0
    assert prompts_to_start(0, decodes=9, skips=MAX_PROMPT_SKIPS) == 1


def test_decodes_get_the_places_that_prompts_leave() -> None:
    assert decode_places(0, 0, 512, 2048) == 512
    assert decode_places(3, 300, 512, 2048) == 509
    assert decode_places(3, 2000, 512, 2048) == 48
    assert decode_places(1, 5000, 512, 2048) == 0


def test_who_was_preempted_up_to_the_cap_is_aged() -> None:
    assert [is_aged(skips, 4) for skips in (0, 3, 4, 5)] == [False, False, True, True]
    assert not is_aged(99, 0)


@given(
    prompts=st.lists(st.tuples(st.integers(1, 3000), st.integers(1, 20)), max_size=12),
    free_blocks=st.integers(-5, 60),
    slots=st.integers(0, 12),
)
def test_a_batch_is_within_bounds_and_cannot_be_longer(
    prompts: list[tuple[int, int]], free_blocks: int, slots: int
) -> None:
    tokens = [p[0] for p in prompts]
    blocks = [p[1] for p in prompts]

    def fits(n: int) -> bool:
        return n <= slots and sum(blocks[:n]) <= free_blocks and (n == 1 or sum(tokens[:n]) <= 2048)

    count = count_prompts(tokens, blocks, free_blocks, batch_requests=slots)
    assert count == 0 or fits(count)
    assert count == len(prompts) or not fits(count + 1)


def test_room_to_grow_is_kept_for_those_who_run() -> None:
    assert may_reserve(6, free_blocks=10, running_requests=4)
    assert not may_reserve(7, free_blocks=10, running_requests=4)


def test_the_latest_arrival_is_the_victim() -> None:
    assert pick_victim([3, 9, 1]) == 1
    assert pick_victim([5]) == 0


def test_admission() -> None:
    assert admission.admits(1023, 1024)
    assert not admission.admits(1024, 1024)
    assert admission.retry_after_s(4000, 200.0) == 10.0
    assert admission.retry_after_s(10, 0.0) == 1.0
    assert admission.retry_after_s(10**9, 1.0) == 60.0


def test_where_prompts_may_be_cut_the_last_fills_the_batch() -> None:
    assert compose([100, 100, 100], 0, 512, 250, may_cut=True) == (2, 50)
    assert compose([5000], 40, 512, 250, may_cut=True) == (0, 210)
    assert compose([100, 150], 0, 512, 250, may_cut=True) == (2, 0)
    assert compose([100, 100], 250, 512, 250, may_cut=True) == (0, 0)
    assert compose([100, 100], 0, 1, 250, may_cut=True) == (1, 0)  # no place is left for a part


@given(
    st.lists(st.integers(1, 300), max_size=8),
    st.integers(0, 4),
    st.integers(0, 6),
    st.integers(1, 400),
)
def test_a_cut_batch_is_full_or_has_all_that_there_is_a_place_for(
    prompt_tokens: list[int], aged: int, places: int, budget: int
) -> None:
    whole, chunk = compose(prompt_tokens, aged, aged + places, budget, may_cut=True)
    taken = sum(prompt_tokens[:whole])
    assert whole <= min(places, len(prompt_tokens))
    assert taken + chunk <= max(budget - aged, 0)
    if whole < min(places, len(prompt_tokens)):
        assert taken + chunk == max(budget - aged, 0) and chunk < prompt_tokens[whole]
    else:
        assert chunk == 0


@given(st.lists(st.integers(0, 6), max_size=9), st.integers(0, 5))
def test_the_longest_preempted_come_first_and_the_order_is_kept_otherwise(
    skips: list[int], cap: int
) -> None:
    order = [-1] * len(skips)
    aged = order_running(skips, cap, order)
    kinds = [0 if 0 < cap <= one else 1 if one else 2 for one in skips]
    assert order == sorted(range(len(skips)), key=lambda i: kinds[i])
    assert aged == kinds.count(0)


def test_who_waits_for_blocks_holds_up_those_behind_it() -> None:
    assert count_with_room([3, 3, 9, 1], free_blocks=10, running_requests=2) == 2
    assert count_with_room([9], free_blocks=10, running_requests=2) == 0
    assert count_with_room([], free_blocks=0, running_requests=2) == 0


def grown_one_by_one(ranks: list[int], needed: list[int], held: list[int], free: int) -> set[int]:
    """Who is preempted if everybody takes what it needs in turn, in order of rank."""
    going_on = sorted(zip(ranks, needed, held, strict=True))
    gone: set[int] = set()
    for rank, needs, holds in list(going_on):
        while rank not in gone and needs - holds > free:
            last, _, its_held = going_on.pop()
            free += its_held
            gone.add(last)
        if rank not in gone:
            free -= needs - holds
    return gone


@given(
    st.lists(
        st.tuples(st.integers(0, 99), st.integers(0, 2), st.integers(1, 5)),
        unique_by=lambda row: row[0],
        max_size=8,
    ),
    st.integers(0, 9),
)
def test_the_last_in_rank_go_and_no_more_than_need_be(
    rows: list[tuple[int, int, int]], free: int
) -> None:
    ranks, more, held = ([row[i] for row in rows] for i in range(3))
    needed = [a + b for a, b in zip(more, held, strict=True)]
    wanted = grown_one_by_one(ranks, needed, held, free)
    all_of = set(zip(ranks, needed, held, strict=True))
    going_on = choose_victims(ranks, needed, held, free)
    assert set(ranks[going_on:]) == wanted
    assert ranks[going_on:] == sorted(wanted)  # the first to go, the highest, stands last
    assert set(zip(ranks, needed, held, strict=True)) == all_of


class Waiter:
    """A request of the one client there is."""

    client, priority, prompt_tokens = "", 0, 1

    def __init__(self, number: int, was_started: bool, order: float) -> None:
        self.number, self.was_started, self.order = number, was_started, order

    @property
    def turn(self) -> Turn:
        return Turn(self.was_started, self.order, self.number)


@pytest.mark.parametrize("has_order", [False, True])
@given(st.lists(st.tuples(st.booleans(), st.sampled_from([-1.5, 0.0, 2.0])), max_size=9))
def test_a_client_alone_is_served_in_the_order_that_the_simulator_serves(
    has_order: bool,
    waiters: list[tuple[bool, float]],
) -> None:
    queue: FairQueue[Waiter] = FairQueue((lambda waiter: waiter.order) if has_order else None)
    for number, (was_started, order) in enumerate(waiters):
        queue.add(Waiter(number, was_started, order if has_order else 0.0))
    served = []
    while queue.has_next:
        served.append(queue.first())
        queue.remove(served[-1])
    for i, one in enumerate(served):
        for other in served[i + 1 :]:
            assert goes_before(one.turn, other.turn)
            assert not goes_before(other.turn, one.turn)
