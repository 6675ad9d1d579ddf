"""The waiting queue against a slow, obvious model, and the shares that it gives."""

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwise.scheduling import fair_level
from splitwise.scheduling.fair_queue import FairQueue
from splitwise.scheduling.keyed_heap import KeyedHeap


@dataclass(eq=False)
class Request:
    number: int
    client: str = "c"
    priority: int = 0
    prompt_tokens: int = 1
    was_started: bool = False


@dataclass
class Model:
    """The rules of ``fair_queue`` over plain lists, looked through at every step."""

    order: Callable[[Request], float] | None = None
    waiting: list[Request] = field(default_factory=list)
    served: dict[tuple[int, str], int] = field(default_factory=dict)
    last: dict[int, int] = field(default_factory=dict)

    def fresh(self, priority: int, client: str | None = None) -> list[Request]:
        return [
            request
            for request in self.waiting
            if request.priority == priority
            and not request.was_started
            and client in (None, request.client)
        ]

    def lift(self, priority: int, client: str) -> None:
        if self.fresh(priority, client):
            return
        least = self.last.get(priority, 0)
        self.served[priority, client] = max(self.served.get((priority, client), 0), least)

    def add(self, request: Request) -> None:
        if not request.was_started:
            self.lift(request.priority, request.client)
        self.waiting.append(request)

    def first(self) -> Request:
        def order(request: Request) -> tuple[float, ...]:
            turn = 0.0
            if not request.was_started:
                turn = self.served[request.priority, request.client]
                turn = turn if self.order is None else self.order(request)
            return request.priority, not request.was_started, turn, request.number

        # Of one client's requests the oldest; so among clients with equal counters it is the one
        # whose oldest is older.
        return min(self.waiting, key=order)

    def start(self, request: Request) -> None:
        if not request.was_started:
            self.last[request.priority] = self.served[request.priority, request.client]
            self.serve(request, request.prompt_tokens)
        self.remove(request)

    def remove(self, request: Request) -> None:
        self.waiting.remove(request)
        if all(other.priority != request.priority for other in self.waiting):
            self.last.pop(request.priority, None)
            for key in [key for key in self.served if key[0] == request.priority]:
                del self.served[key]

    def serve(self, request: Request, tokens: int) -> None:
        if all(other.priority != request.priority for other in self.waiting):
            return
        self.lift(request.priority, request.client)
        self.served[request.priority, request.client] += tokens

    def to_displace(self, client: str, priority: int) -> Request | None:
        for lowest in sorted({r.priority for r in self.waiting}, reverse=True):
            if lowest < priority:
                return None
            counts = Counter(request.client for request in self.fresh(lowest))
            if not counts:
                continue
            if lowest == priority and max(counts.values()) <= counts[client] + 1:
                continue
            oldest = {c: min(r.number for r in self.fresh(lowest, c)) for c in counts}
            longest = min(counts, key=lambda c: (-counts[c], oldest[c]))
            return max(self.fresh(lowest, longest), key=lambda r: r.number)
        return None


steps = st.lists(
    st.tuples(
        st.sampled_from(["add", "add", "add", "start", "start", "serve", "cancel", "retry"]),
        st.integers(0, 30),
        st.sampled_from("abc"),
        st.sampled_from([-1, 0, 0, 7]),
        st.integers(1, 40),
    ),
    max_size=120,
)


def few_tokens_first(request: Request) -> float:
    return request.prompt_tokens // 8 / 2


@pytest.mark.parametrize("order", [None, few_tokens_first])
@given(steps)
@settings(max_examples=300, deadline=None)
def test_it_does_what_the_rules_say(
    order: Callable[[Request], float] | None, steps: list[tuple[str, int, str, int, int]]
) -> None:
    queue, model = FairQueue[Request](order), Model(order)
    running: list[Request] = []
    for number, (what, pick, client, priority, tokens) in enumerate(steps):
        if what == "add":
            request = Request(number, client, priority, tokens)
            queue.add(request)
            model.add(request)
        elif what == "start" and len(queue):
            first = queue.first()
            assert first is model.first()
            model.start(first)
            queue.start(first)
            assert first.was_started
            running.append(first)
        elif what == "serve" and running:
            queue.serve(running[pick % len(running)], tokens)
            model.serve(running[pick % len(running)], tokens)
        elif what == "cancel" and model.waiting:
            request = model.waiting[pick % len(model.waiting)]
            queue.remove(request)
            model.remove(request)
        elif what == "retry" and running:
            request = running.pop(pick % len(running))
            queue.add(request)
            model.add(request)
        if pick % 3 == 0:
            look_behind(queue, model)
        assert len(queue) == len(model.waiting)
        assert set(queue) == set(model.waiting)
        assert queue.prompt_tokens == sum(request.prompt_tokens for request in model.waiting)
        assert queue.to_displace(client, priority) is model.to_displace(client, priority)
    while model.waiting:
        first = queue.first()
        assert first is model.first()
        model.start(first)
        queue.start(first)
    assert len(queue) == 0 and not queue._levels and not queue._priorities


def look_behind(queue: FairQueue[Request], model: Model) -> None:
    """Let up to three stand aside; who stands behind them is what it would be without them."""
    others, aside = Model(model.order, list(model.waiting), model.served), list[Request]()
    while others.waiting and len(aside) < 3:
        aside.append(queue.first())
        assert aside[-1] is others.first()
        others.waiting.remove(aside[-1])
        queue.set_aside(aside[-1])
    assert queue.has_next == bool(others.waiting)
    for request in reversed(aside):
        queue.put_back(request)


def test_who_gives_way_is_the_newest_whatever_order_they_go_in() -> None:
    """Also after the newest, which goes first, stood aside."""
    queue = FairQueue[Request](lambda request: -request.number)
    requests = [Request(number) for number in range(3)]
    for request in requests:
        queue.add(request)
    assert queue.first() is requests[2]
    queue.set_aside(requests[2])
    queue.put_back(requests[2])
    assert queue.to_displace("other", 0) is requests[2]


def drain(queue: FairQueue[Request], outputs: dict[str, int], tokens: int) -> Counter[str]:
    """Serve requests, each with its client's output, until so many tokens are; who got them."""
    served: Counter[str] = Counter()
    while served.total() < tokens:
        request = queue.first()
        queue.start(request)
        queue.serve(request, outputs[request.client])
        served[request.client] += request.prompt_tokens + outputs[request.client]
    return served


@pytest.mark.parametrize(
    "sizes",
    [
        {"few long": (900, 100), "many short": (20, 10)},
        {"all prompt": (1000, 1), "all output": (1, 1000)},
        {"a": (50, 50), "b": (500, 5), "c": (5, 300)},
    ],
)
def test_greedy_clients_get_equal_shares_by_tokens(sizes: dict[str, tuple[int, int]]) -> None:
    queue = FairQueue[Request]()
    number = 0
    for client, (prompt, _) in sizes.items():  # one client's all come before the next one's
        for _ in range(12_000):
            queue.add(Request(number, client, prompt_tokens=prompt))
            number += 1
    served = drain(queue, {client: output for client, (_, output) in sizes.items()}, 200_000)
    mean = served.total() / len(sizes)
    assert all(abs(tokens - mean) < 0.02 * mean for tokens in served.values()), served


def test_a_light_client_waits_as_if_alone() -> None:
    """Beside one with 10,000 requests it never waits for more than the one in front of it."""
    queue = FairQueue[Request]()
    for number in range(10_000):
        queue.add(Request(number, "heavy", prompt_tokens=100))
    draw = random.Random(1)
    number = 10_000
    for _ in range(200):
        for _ in range(draw.randint(1, 5)):
            first = queue.first()
            queue.start(first)
            queue.serve(first, 100)
        light = Request(number, "light", prompt_tokens=10)
        number += 1
        queue.add(light)
        before = 0
        while (first := queue.first()) is not light:
            queue.start(first)
            before += 1
        assert before <= 1
        queue.start(light)


def test_a_claim_cannot_be_saved_up() -> None:
    """A client that comes late gets its share from then on, not what it did not use before."""
    queue = FairQueue[Request]()
    for number in range(2_000):
        queue.add(Request(number, "early", prompt_tokens=100))
    drain(queue, {"early": 0}, 100_000)
    for number in range(2_000, 4_000):
        queue.add(Request(number, "late", prompt_tokens=100))
    assert drain(queue, {"early": 0, "late": 0}, 20_000) == {"early": 10_000, "late": 10_000}


def test_nothing_is_charged_twice() -> None:
    queue = FairQueue[Request]()
    requests = [Request(number, "ab"[number % 2], prompt_tokens=100) for number in range(20)]
    for request in requests:
        queue.add(request)
    first = queue.first()
    for _ in range(50):  # preempted again and again
        queue.start(first)
        queue.add(first)
        assert queue.first() is first
    queue.start(first)
    order = []
    while len(queue):
        order.append(queue.first().client)
        queue.start(queue.first())
    assert order == [*"ba" * 9, "b"]


def test_at_the_limit_the_greediest_gives_way_until_shares_are_equal() -> None:
    queue = FairQueue[Request]()
    for number in range(100):
        queue.add(Request(number, "heavy"))
    for number in range(100, 200):
        victim = queue.to_displace("light", 0)
        if victim is None:
            break
        assert victim.client == "heavy"
        queue.remove(victim)
        queue.add(Request(number, "light"))
    assert Counter(request.client for request in queue) == {"heavy": 50, "light": 50}
    assert max(r.number for r in queue if r.client == "heavy") == 49  # its newest went
    assert queue.to_displace("heavy", 0) is None
    assert queue.to_displace("heavy", 1) is None
    urgent = queue.to_displace("heavy", -1)
    assert urgent is not None and urgent.number == 49


def test_what_was_started_is_never_displaced() -> None:
    queue = FairQueue[Request]()
    for number in range(3):
        queue.add(Request(number, was_started=True))
    assert queue.to_displace("other", -1) is None


def test_clients_that_left_are_forgotten_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """Under load without a pause from ever new addresses."""
    monkeypatch.setattr(fair_level, "MAX_IDLE_CLIENTS", 50)
    queue = FairQueue[Request]()
    for number in range(5_000):
        queue.add(Request(number, f"client {number}"))
        queue.add(Request(number + 10_000, "steady"))
        queue.start(queue.first())
    level = queue._levels[0]
    assert len(level._lines) <= len(level._next) + 101


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(-5, 5)), max_size=200))
def test_the_heap_gives_the_least_and_keeps_little_that_is_outdated(
    steps: list[tuple[int, int]],
) -> None:
    heap, keys = KeyedHeap[int](), dict[int, tuple[int, ...]]()
    for item, key in steps:
        if key == 0 and item in keys:
            heap.remove(item)
            del keys[item]
        else:
            heap.set(item, (key, item))
            keys[item] = (key, item)
        assert len(heap) == len(keys) and set(heap) == set(keys)
        if keys:
            assert heap.first() == min(keys, key=keys.__getitem__)
        assert len(heap._entries) <= 2 * len(keys) + 16
