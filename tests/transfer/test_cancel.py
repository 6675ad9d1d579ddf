"""Cancels from either end at any moment: one event each, and no write after it."""

import queue
import random
import signal
from collections.abc import Iterator

import pytest
from remote_machine import RemoteMachine
from transfer_machines import TRANSPORTS, Event, LocalMachine, Settings, content, machines, send_all

from splitwise.transfer import (
    Arrived,
    CacheLayout,
    Cancelled,
    Deadlines,
    Failed,
    Released,
    Sent,
)
from waiting import eventually

LAYOUT = CacheLayout.flat(layers=8, blocks=64, block_tokens=16, block_bytes=65_536)
MARK = 0xA5


@pytest.fixture(params=TRANSPORTS)
def pair(request: pytest.FixtureRequest) -> Iterator[tuple[LocalMachine, LocalMachine]]:
    prompt = Settings("prompt", LAYOUT, 1, transport=request.param)
    with machines(prompt, Settings("token", LAYOUT, 2)) as (first, second):
        yield first, second


@pytest.fixture(params=TRANSPORTS)
def remote_pair(request: pytest.FixtureRequest) -> Iterator[tuple[RemoteMachine, LocalMachine]]:
    """The prompt machine in its own process, so that it writes while the test runs."""
    prompt = RemoteMachine(Settings("prompt", LAYOUT, 1, transport=request.param))
    with machines(Settings("token", LAYOUT, 2)) as (token,):
        yield prompt, token
    prompt.close()


@pytest.mark.parametrize("seed", range(4))
def test_no_stray_write_whoever_cancels_whenever(
    remote_pair: tuple[RemoteMachine, LocalMachine], seed: int
) -> None:
    """Sixty transfers; as soon as one's blocks are given back unfilled they are marked, and a
    mark that is gone in the end is a write after the event."""
    prompt, token = remote_pair
    rng = random.Random(seed)
    free = list(range(LAYOUT.blocks))
    rng.shuffle(free)
    source_content = content(prompt.settings)
    held: dict[str, tuple[list[int], list[int]]] = {}
    marked: set[int] = set()
    broken: list[str] = []
    sender_events: dict[str, object] = {}
    receiver_events: dict[str, object] = {}

    def begin(index: int) -> None:
        name, length = f"t{index}", rng.randint(1, 12)
        source = rng.sample(range(LAYOUT.blocks), length)
        target = [free.pop() for _ in range(length)]
        marked.difference_update(target)
        held[name] = (source, target)
        # One in three goes in two chunks, of which the second's blocks are named between them.
        known = rng.randrange(length) if index % 3 == 1 else length
        steps = [
            lambda: token.receiver.expect(name, "prompt", target),
            lambda: prompt.post(
                *("sender.begin", name, token.address, source[:known], index % 3 == 0, length)
            ),
        ]
        rng.shuffle(steps)
        for step in steps:
            step()
        reports = [
            (layer, upto) for upto in sorted({known, length}) for layer in range(LAYOUT.layers)
        ]
        cuts = rng.sample(range(len(reports) + 2), 2)
        for number, (layer, upto) in enumerate(reports):
            if number == cuts[0] and rng.random() < 0.5:
                prompt.post("sender.cancel", name)
            if number == cuts[1] and rng.random() < 0.5:
                token.receiver.cancel(name)
            if number == LAYOUT.layers:
                prompt.post("sender.extend", name, source[known:])
            prompt.post("sender.layer_ready", [name], layer, [upto])
        prompt.post("sender.finish", name, name.encode())
        if rng.random() < 0.3:
            token.receiver.cancel(name)
        if rng.random() < 0.1:
            prompt.post("sender.cancel", name)

    def mark(event: Event) -> None:
        """At once, on the receiver's thread: the blocks are ours again."""
        source, target = held[event.transfer_id]
        if isinstance(event, Arrived):
            whole = bool((token.cache[:, target] == source_content[:, source]).all())
            broken.extend([] if whole else [event.transfer_id])
        token.cache[:, target] = MARK

    def take_receiver_event() -> None:
        event = token.event()
        assert event.transfer_id not in receiver_events
        receiver_events[event.transfer_id] = event
        if isinstance(event, Arrived):
            assert event.payload == event.transfer_id.encode()
        target = held[event.transfer_id][1]
        marked.update(target)
        free.extend(target)

    # A link is open from here on: a grant goes out at once, and so does its end.
    token.receiver.expect("first", "prompt", [1])
    prompt.call("sender.begin", "first", token.address, [1])
    prompt.call("sender.finish", "first", b"")
    assert isinstance(token.event(), Arrived)
    assert isinstance(prompt.event(), Sent)
    token.first = mark

    for index in range(60):
        while len(free) < 12:
            take_receiver_event()
        begin(index)
    while len(receiver_events) < 60:
        take_receiver_event()
    while len(sender_events) < 60:
        event = prompt.event()
        assert event.transfer_id not in sender_events
        sender_events[event.transfer_id] = event

    assert (token.cache[:, sorted(marked)] == MARK).all()
    assert not broken
    for name in held:
        ours, theirs = sender_events[name], receiver_events[name]
        assert isinstance(ours, Sent | Cancelled | Failed)
        assert isinstance(theirs, Arrived | Released | Failed)
        if isinstance(ours, Sent):
            assert isinstance(theirs, Arrived)
    assert token.events.empty() and prompt.no_event()


def test_sender_cancel_before_the_grant(pair: tuple[LocalMachine, LocalMachine]) -> None:
    prompt, token = pair
    prompt.sender.begin("t", token.address, [1, 2])
    prompt.sender.cancel("t")
    assert prompt.event() == Cancelled("t")
    token.receiver.expect("t", "prompt", [5, 6])
    # The link exists only for another transfer; the late grant is answered all the same.
    token.receiver.expect("other", "prompt", [7])
    prompt.sender.begin("other", token.address, [3])
    prompt.sender.finish("other", b"")
    events = {event.transfer_id: event for event in (token.event(), token.event())}
    assert events["t"] == Failed("t", "cancelled by the sender")
    assert isinstance(events["other"], Arrived)


def test_receiver_cancel_before_the_sender_begins(
    pair: tuple[LocalMachine, LocalMachine],
) -> None:
    prompt, token = pair
    token.receiver.expect("unlinked", "prompt", [1])
    token.receiver.cancel("unlinked")
    assert token.event() == Released("unlinked")
    token.receiver.expect("first", "prompt", [2])
    prompt.sender.begin("first", token.address, [2])
    prompt.sender.finish("first", b"")
    assert isinstance(token.event(), Arrived)
    token.receiver.expect("linked", "prompt", [1])  # granted over the open link
    token.receiver.cancel("linked")
    assert token.event() == Released("linked")


def test_cancel_after_the_end_or_of_nothing_is_silent(
    pair: tuple[LocalMachine, LocalMachine],
) -> None:
    prompt, token = pair
    for name in ("t", "u"):
        token.receiver.expect(name, "prompt", [1])
        prompt.sender.begin(name, token.address, [1])
        send_all(prompt.sender, name, LAYOUT.layers)
        assert isinstance(token.event(), Arrived)
        assert isinstance(prompt.event(), Sent)
        for unknown in (name, "never"):
            token.receiver.cancel(unknown)
            prompt.sender.cancel(unknown)
            prompt.sender.finish(unknown, b"")
            prompt.sender.layer_ready([unknown], 0)


def test_blocks_stay_reserved_while_a_stopped_process_might_still_write() -> None:
    prompt = RemoteMachine(Settings("prompt", LAYOUT, 1, transport="shared_memory"))
    with machines(Settings("token", LAYOUT, 2, deadlines=Deadlines(stop_s=0.1))) as (token,):
        for block, name in enumerate(("t", "u")):
            token.receiver.expect(name, "prompt", [block])
            prompt.call("sender.begin", name, token.address, [block])
            prompt.call("sender.layer_ready", [name], 0)
        source = content(prompt.settings)
        eventually(lambda: bool((token.cache[0, :2] == source[0, :2]).all()))
        prompt.kill(signal.SIGSTOP)
        for name in ("t", "u"):
            token.receiver.cancel(name)
            with pytest.raises(queue.Empty):
                token.events.get(timeout=0.3)  # several times the deadline for its word
        prompt.kill(signal.SIGCONT)
        released = {token.event(), token.event()}
        assert released == {Released("t"), Released("u")}
        assert isinstance(prompt.event(), Failed)
        assert isinstance(prompt.event(), Failed)
        prompt.close()


@pytest.mark.parametrize("is_dropped_before", [False, True])
def test_memory_that_a_sender_may_still_write_is_not_given_back_in_silence(
    is_dropped_before: bool,
) -> None:
    """The next session of a worker would use it."""
    prompt = RemoteMachine(Settings("prompt", LAYOUT, 1, transport="shared_memory"))
    with machines(Settings("token", LAYOUT, 2, deadlines=Deadlines(stop_s=0.2))) as (token,):
        token.receiver.expect("t", "prompt", [1])
        prompt.call("sender.begin", "t", token.address, [1])
        prompt.call("sender.layer_ready", ["t"], 0)
        source = content(prompt.settings)
        eventually(lambda: bool((token.cache[0, 1] == source[0, 1]).all()))
        prompt.kill(signal.SIGSTOP)
        if is_dropped_before:
            token.receiver.cancel("t")
            eventually(lambda: not token.receiver._links)
        with pytest.raises(TimeoutError, match="prompt may still write into the cache"):
            token.receiver.close()
        prompt.kill(signal.SIGCONT)
        prompt.close()


def test_over_tcp_a_stopped_process_cannot_hold_blocks() -> None:
    prompt = RemoteMachine(Settings("prompt", LAYOUT, 1, transport="tcp"))
    with machines(Settings("token", LAYOUT, 2)) as (token,):
        token.receiver.expect("t", "prompt", [1, 2])
        prompt.call("sender.begin", "t", token.address, [1, 2])
        prompt.call("sender.layer_ready", ["t"], 0)
        source = content(prompt.settings)
        eventually(lambda: bool((token.cache[0, 1:3] == source[0, 1:3]).all()))
        prompt.kill(signal.SIGSTOP)
        token.receiver.cancel("t")
        assert token.event() == Released("t")
        token.cache[:, 1:3] = MARK
        prompt.kill(signal.SIGCONT)
        assert isinstance(prompt.event(), Failed)
        prompt.call("sender.layer_ready", ["t"], 1)
        assert (token.cache[:, 1:3] == MARK).all()
        prompt.close()
