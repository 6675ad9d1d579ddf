"""Who may pass one that finds no room, and who is parked."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from splitwise.scheduling.waiting import Tried, WaitingLine, may_pass

CAPACITY = 100


@dataclass(eq=False)
class One:
    number: int
    size: int
    client: str = ""
    priority: int = 0
    was_started: bool = False

    @property
    def prompt_tokens(self) -> int:
        return self.size


class Machine:
    """One cache, and the line before it."""

    def __init__(self) -> None:
        self.line: WaitingLine[One] = WaitingLine(lambda one: one.size, lambda: CAPACITY)
        self.free = CAPACITY
        self.largest = CAPACITY
        self.running: list[One] = []
        self.order: list[int] = []

    def wait(self, *ones: One) -> None:
        for one in ones:
            self.line.add(one)
        self.go_through()

    def end(self, one: One) -> None:
        self.running.remove(one)
        self.free += one.size
        self.go_through()

    def go_through(self, now_s: float = 0.0) -> list[One]:
        return self.line.go_through(self._try, now_s)

    def _try(self, one: One) -> Tried:
        if one.size > self.largest:
            return Tried.NO_MACHINE
        if one.size > self.free:
            return Tried.NO_ROOM
        self.free -= one.size
        self.running.append(one)
        self.order.append(one.number)
        return Tried.STARTED


def test_small_ones_pass_a_large_one_until_they_took_as_much_as_it_needs() -> None:
    m = Machine()
    holder = One(1, 90)
    m.wait(holder, One(2, 80))
    m.wait(*(One(number, 10) for number in range(3, 13)))
    assert m.order == [1, 3]  # there was room for one
    for number in range(3, 10):
        m.end(next(one for one in m.running if one.number == number))
    assert m.order == [1, *range(3, 11)]  # eight of 10 passed one of 80
    m.end(next(one for one in m.running if one.number == 10))
    assert m.free == 10 and m.order[-1] == 10  # now it holds up the others
    m.end(holder)
    assert m.order[9] == 2 and m.order[10] == 11


def test_equals_and_higher_priorities_are_not_passed() -> None:
    m = Machine()
    m.wait(One(1, 70), One(2, 60), One(3, 31), One(4, 30, priority=1))
    assert m.order == [1]
    assert not may_pass(1, CAPACITY // 4, 0, CAPACITY)  # a small one is soon served


def test_who_fits_no_machine_holds_up_nobody_until_a_larger_one_comes() -> None:
    m = Machine()
    m.largest = 50
    large = One(1, 80)
    m.line.add(large)
    m.line.add(One(2, 40))
    assert m.go_through(now_s=7.0) == [large] and m.order == [2]
    assert list(m.line) == [large] and len(m.line) == 1 and m.line.is_clear
    assert m.line.parked_since_s(large) == 7.0
    m.line.unpark(lambda tokens: tokens <= 50)
    assert m.line.is_clear
    m.largest = CAPACITY
    m.line.unpark(lambda tokens: tokens <= CAPACITY)
    m.end(m.running[0])
    assert m.order == [2, 1] and m.line.parked_since_s(large) is None


@given(
    st.lists(
        st.tuples(st.sampled_from([5, 20, 60, 100]), st.sampled_from("abc"), st.integers(0, 2)),
        min_size=1,
        max_size=40,
    ),
    st.randoms(use_true_random=False),
)
def test_everybody_is_served_and_none_is_passed_by_more_than_its_size(
    requests: list[tuple[int, str, int]], rng: object
) -> None:
    m = Machine()
    ones = [One(i, *request) for i, request in enumerate(requests)]
    for i, one in enumerate(ones):
        m.wait(one)
        if i % 3 == 0 and m.running:
            m.end(rng.choice(m.running))  # type: ignore[attr-defined]
    while m.running:
        m.end(rng.choice(m.running))  # type: ignore[attr-defined]
    assert sorted(m.order) == list(range(len(ones))) and not len(m.line)
    for one in ones:  # of the same client and priority only who passed it can go before it
        before = m.order[: m.order.index(one.number)]
        younger = [ones[n] for n in before if n > one.number]
        passed = [o for o in younger if (o.client, o.priority) == (one.client, one.priority)]
        assert sum(o.size for o in passed) <= one.size
