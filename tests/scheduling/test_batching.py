"""Machine-level rules, by hand and by property."""

from hypothesis import given
from hypothesis import strategies as st

from splitwise.scheduling import admission
from splitwise.scheduling.batching import (
    count_prompts,
    decode_places,
    is_aged,
    joins_batch,
    may_reserve,
    pick_victim,
)


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
