"""Whose fault an iteration that failed was."""

from hypothesis import given
from hypothesis import strategies as st

from splitwise.scheduling.isolation import NO_FAILURES, count_company, halves


def test_suspects_run_alone_and_nobody_waits_behind_them() -> None:
    assert count_company([]) == 0
    assert count_company([False, False]) == 2
    assert count_company([False, True, False]) == 1
    assert count_company([True, False]) == 1


@given(st.integers(2, 60), st.data())
def test_halving_finds_the_one_in_few_steps(batch: int, data: st.DataObject) -> None:
    guilty = data.draw(st.integers(0, batch - 1))
    groups, failed, steps = [range(batch)], list[int](), 0
    survived = list[int]()
    while groups:
        group, steps = groups.pop(0), steps + 1
        if guilty not in group:
            survived += group
        elif len(group) == 1:
            failed += group
        else:
            groups[:0] = halves(group)  # type: ignore[arg-type]
    assert failed == [guilty] and sorted([*survived, *failed]) == list(range(batch))
    assert steps <= 2 * (batch - 1).bit_length() + 1


def test_two_failures_make_a_suspect_and_company_is_not_charged_before() -> None:
    count = NO_FAILURES.failed_in_company()
    assert not count.is_suspect
    count = count.failed_in_company()
    assert count.is_suspect and count.charged == 0
    count = count.failed_in_company()
    assert count.charged == 1  # a machine that always says so does not have it tried for ever


def test_who_fails_alone_is_given_up_sooner() -> None:
    alone = unlucky = NO_FAILURES
    for _ in range(3):
        alone, unlucky = alone.failed(was_alone=True), unlucky.failed()
    assert alone.is_enough(max_failures=8) and not unlucky.is_enough(max_failures=8)
    assert unlucky.is_enough(max_failures=3)


def test_machines_that_go_under_many_are_charged_to_nobody_for_long() -> None:
    count = NO_FAILURES
    for lost in range(1, 9):
        count = count.lost_a_machine()
        assert count.charged == 0
        assert count.is_suspect == (lost >= 2)
    for _ in range(8):
        count = count.lost_a_machine()
    assert count.is_enough(max_failures=8)
