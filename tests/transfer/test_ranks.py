"""Caches between machines of one rank and several, byte for byte as numpy slices them by hand."""

import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from transfer_machines import KEY, Event

from splitwise.transfer import (
    Arrived,
    CacheLayout,
    Cancelled,
    Failed,
    HostMemory,
    KVReceiver,
    KVSender,
    MachineReceiver,
    MachineSender,
    ReceiverAddress,
    Released,
    Sent,
)
from splitwise.transfer.events import OnReceiverEvent, OnSenderEvent
from splitwise.transfer.layout import Region
from splitwise.transfer.ranks import Part, heads_of, parts_of
from waiting import WAIT_S, eventually

LAYERS, BLOCKS, HEADS, K_BYTES = 3, 10, 4, 24
"""``K_BYTES``: a head's keys, and as many for its values, of a block in one layer."""
SOURCE, TARGET = [7, 2, 3, 9], [0, 5, 6, 1]
Cache = npt.NDArray[np.uint8]
"""``[layers, blocks, heads, keys and values, K_BYTES]``: what the cache means, however it lies."""

REGIONS = {
    "flat": (Region(0, LAYERS, 2 * K_BYTES),),
    "one a layer": tuple(Region(layer, 1, 2 * K_BYTES) for layer in range(LAYERS)),
    "keys and values apart": (Region(0, LAYERS, K_BYTES), Region(0, LAYERS, K_BYTES)),
    "apart, one a layer": tuple(Region(n // 2, 1, K_BYTES) for n in range(2 * LAYERS)),
    "apart in a block": (Region(0, LAYERS, K_BYTES, 2),),
}


@dataclass
class Machine:
    """Of fake ranks, each with memory of its own."""

    layout: CacheLayout
    memories: list[HostMemory]
    receiver: MachineReceiver
    sender: MachineSender
    events: "queue.Queue[Event]"

    def event(self) -> Event:
        return self.events.get(timeout=WAIT_S)

    def write(self, cache: Cache) -> None:
        for rank, memory in enumerate(self.memories):
            for view, part in self._views(rank, memory, cache):
                view[:] = part

    def matches(self, cache: Cache) -> bool:
        return all(
            (view == part).all()
            for rank, memory in enumerate(self.memories)
            for view, part in self._views(rank, memory, cache)
        )

    def _views(self, rank: int, memory: HostMemory, cache: Cache) -> Iterator[tuple[Cache, Cache]]:
        """Each region of a rank, and what belongs there: sliced by hand."""
        count = len(self.memories)
        own = HEADS // count if count <= HEADS else 1
        first = rank * HEADS // count
        held = cache[:, :, first : first + own]
        at = 0
        is_value = 0
        for region in self.layout.regions:
            layers = held[region.first_layer : region.first_layer + region.layers]
            if region.head_bytes == 2 * K_BYTES:
                part = layers.reshape(region.layers, BLOCKS, own * 2 * K_BYTES)
            elif region.parts == 2:
                part = layers.swapaxes(2, 3).reshape(region.layers, BLOCKS, 2 * own * K_BYTES)
            else:
                part = layers[:, :, :, is_value].reshape(region.layers, BLOCKS, own * K_BYTES)
                is_value = 1 - is_value
            view = np.frombuffer(memory.buffer, np.uint8)[at : at + part.size]
            at += part.size
            yield view.reshape(part.shape), part
        assert at == memory.nbytes


@dataclass
class Apart:
    """The ends of ranks that run in processes of their own, as one."""

    ends: list[Any]

    @property
    def addresses(self) -> list[ReceiverAddress]:
        return [end.addresses[0] for end in self.ends]

    def __getattr__(self, name: str) -> Callable[..., None]:
        def of_each(*arguments: object) -> None:
            for end in self.ends:
                getattr(end, name)(*arguments)

        return of_each


@contextmanager
def machine(
    name: str,
    regions: str,
    ranks: int,
    transport: str = "tcp",
    checksum: bool = False,
    apart: bool = False,
) -> Iterator[Machine]:
    whole = CacheLayout(LAYERS, BLOCKS, 16, HEADS, HEADS, REGIONS[regions])
    layouts = [whole.of_rank(rank, ranks) for rank in range(ranks)]
    with ExitStack() as on_exit:
        memories = [HostMemory(layout.total_bytes) for layout in layouts]
        for memory in memories:
            on_exit.callback(memory.close)
        events: queue.Queue[Event] = queue.Queue()

        def receiver(rank_id: str, rank: int, report: OnReceiverEvent) -> KVReceiver:
            return KVReceiver(memories[rank], layouts[rank], rank_id, KEY, report)

        def sender(rank_id: str, rank: int, report: OnSenderEvent) -> KVSender:
            return KVSender(
                *(memories[rank], layouts[rank], rank_id, KEY, report),
                transport=transport,
                checksum=checksum,
            )

        processes = [(rank,) for rank in range(ranks)] if apart else [tuple(range(ranks))]
        receivers = [
            MachineReceiver(HEADS, ranks, receiver, name, events.put, own) for own in processes
        ]
        senders = [MachineSender(HEADS, ranks, sender, name, events.put, own) for own in processes]
        for end in (*receivers, *senders):
            on_exit.callback(end.close)
        receiving: Any = Apart(receivers) if apart else receivers[0]
        sending: Any = Apart(senders) if apart else senders[0]
        yield Machine(whole, memories, receiving, sending, events)


def draw(seed: int) -> Cache:
    shape = (LAYERS, BLOCKS, HEADS, 2, K_BYTES)
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def moved(source: Cache, target: Cache) -> Cache:
    """By hand."""
    expected = target.copy()
    expected[:, TARGET] = source[:, SOURCE]
    return expected


def transfer(prompt: Machine, token: Machine, ranks: int, name: str = "t") -> None:
    token.receiver.expect(name, "prompt", ranks, TARGET)
    prompt.sender.begin(name, token.receiver.addresses, SOURCE)
    for layer in range(LAYERS):
        prompt.sender.layer_ready([name], layer)
    prompt.sender.finish(name, b"first token")


@pytest.mark.parametrize("transport", ["shared_memory", "tcp"])
@pytest.mark.parametrize(
    ("sources", "targets"), [(1, 1), (2, 2), (1, 2), (2, 1), (4, 2), (8, 2), (2, 8), (8, 8)]
)
def test_every_rank_gets_its_heads(sources: int, targets: int, transport: str) -> None:
    before, after = draw(1), draw(2)
    with (
        machine("prompt", "flat", sources, transport, checksum=True) as prompt,
        machine("token", "flat", targets) as token,
    ):
        prompt.write(before)
        token.write(after)
        transfer(prompt, token, sources)
        arrived, sent = token.event(), prompt.event()
        assert isinstance(arrived, Arrived), arrived
        assert isinstance(sent, Sent), sent
        assert arrived.transfer_id == sent.transfer_id == "t"
        assert arrived.payload == b"first token"
        copies = max(1, targets // HEADS)  # of a head, where more ranks than heads hold it
        assert arrived.stats.bytes == LAYERS * len(SOURCE) * HEADS * 2 * K_BYTES * copies
        assert token.matches(moved(before, after))
        assert prompt.matches(before)
        assert token.events.empty() and prompt.events.empty()


@pytest.mark.parametrize(
    ("sources", "targets"), [(2, 2), (1, 2), (2, 1), (4, 2), (8, 2), (2, 8), (8, 8)]
)
def test_ranks_in_processes_of_their_own_do_their_share(sources: int, targets: int) -> None:
    """Each of them says once how it ended, also where others have sent what it holds."""
    before, after = draw(1), draw(2)
    with (
        machine("prompt", "flat", sources, checksum=True, apart=True) as prompt,
        machine("token", "flat", targets, apart=True) as token,
    ):
        prompt.write(before)
        token.write(after)
        transfer(prompt, token, sources)
        assert {(type(event), event.transfer_id) for event in said(token)} == {(Arrived, "t")}
        assert {(type(event), event.transfer_id) for event in said(prompt)} == {(Sent, "t")}
        assert token.matches(moved(before, after))


def said(machine: Machine) -> list[Event]:
    events = [machine.event() for _ in machine.memories]
    assert machine.events.empty()
    return events


@pytest.mark.parametrize("transport", ["shared_memory", "tcp"])
@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("flat", "one a layer"),
        ("one a layer", "flat"),
        ("keys and values apart", "apart, one a layer"),
        ("apart in a block", "keys and values apart"),
        ("apart, one a layer", "apart in a block"),
        ("apart in a block", "apart in a block"),
    ],
)
@pytest.mark.parametrize(("sources", "targets"), [(1, 1), (1, 2), (2, 1)])
def test_regions_of_either_end_are_its_own_affair(
    source: str, target: str, sources: int, targets: int, transport: str
) -> None:
    before, after = draw(3), draw(4)
    with (
        machine("prompt", source, sources, transport, checksum=True) as prompt,
        machine("token", target, targets) as token,
    ):
        prompt.write(before)
        token.write(after)
        transfer(prompt, token, sources)
        assert isinstance(event := token.event(), Arrived), event
        assert isinstance(event := prompt.event(), Sent), event
        assert token.matches(moved(before, after))


@pytest.mark.parametrize("transport", ["shared_memory", "tcp"])
@pytest.mark.parametrize("regions", ["flat", "apart, one a layer"])
@pytest.mark.parametrize(("sources", "targets"), [(1, 2), (2, 1), (4, 2)])
def test_ranks_by_chunks(sources: int, targets: int, regions: str, transport: str) -> None:
    """To a machine that holds the first block already."""
    before, after = draw(5), draw(6)
    with (
        machine("prompt", regions, sources, transport, checksum=True) as prompt,
        machine("token", regions, targets) as token,
    ):
        prompt.write(before)
        token.write(after)
        token.receiver.expect("t", "prompt", sources, TARGET[1:], skipped=1)
        prompt.sender.begin("t", token.receiver.addresses, SOURCE[:2], table_blocks=4)
        prompt.sender.held("t", 1)
        for layer in range(LAYERS):
            prompt.sender.layer_ready(["gone", "t"], layer, [7, 2])
        prompt.sender.extend("t", SOURCE[2:])
        for layer in range(LAYERS - 1):
            prompt.sender.layer_ready(["t"], layer, [3])
        prompt.sender.finish("t", b"")
        assert isinstance(event := token.event(), Arrived), event
        assert event.stats.bytes == LAYERS * 3 * HEADS * 2 * K_BYTES
        assert isinstance(event := prompt.event(), Sent), event
        expected = after.copy()
        expected[:, TARGET[1:]] = before[:, SOURCE[1:]]
        assert token.matches(expected)


def parts_granted(token: Machine) -> int:
    links = [over for rank in token.receiver._ranks.values() for over in list(rank._links.values())]
    return sum(len(over.transfers) for over in links)


def test_what_is_not_alike_is_refused() -> None:
    with machine("prompt", "flat", 1) as prompt, machine("token", "apart in a block", 1) as token:
        prompt.sender.begin("t", token.receiver.addresses, SOURCE)
        event = prompt.event()
        assert isinstance(event, Failed) and "cache layouts differ" in event.reason


def test_a_cancel_ends_all_parts_in_one_event() -> None:
    with machine("prompt", "flat", 2) as prompt, machine("token", "flat", 4) as token:
        token.receiver.expect("t", "prompt", 2, TARGET)
        prompt.sender.begin("t", token.receiver.addresses, SOURCE)
        prompt.sender.layer_ready(["t"], 0)
        eventually(lambda: parts_granted(token) == 4)
        token.receiver.cancel("t")
        ended = token.event()
        # The sender, told of one part, may give up another before the receiver comes to that.
        assert isinstance(ended, Released | Failed) and ended.transfer_id == "t"
        assert isinstance(prompt.event(), Failed)
        token.receiver.expect("u", "prompt", 2, TARGET)
        prompt.sender.begin("u", token.receiver.addresses, SOURCE)
        prompt.sender.cancel("u")
        assert prompt.event() == Cancelled("u")
        assert isinstance(token.event(), Failed)
        assert token.events.empty() and prompt.events.empty()


def test_one_part_that_fails_takes_the_others_with_it() -> None:
    """And the machine's word comes when the last of them has ended, not before."""
    with machine("prompt", "flat", 2) as prompt, machine("token", "flat", 2) as token:
        token.receiver.expect("t", "prompt", 2, TARGET)
        prompt.sender.begin("t", token.receiver.addresses, SOURCE)
        prompt.sender.layer_ready(["t"], 0)
        ranks = token.receiver._ranks.values()
        eventually(lambda: parts_granted(token) == 2)
        prompt.sender._ranks[1].cancel("t/1-1")
        event = token.event()
        assert isinstance(event, Failed) and event.transfer_id == "t"
        assert not any(rank._transfers for rank in ranks)
        event = prompt.event()
        assert isinstance(event, Failed | Cancelled) and event.transfer_id == "t"
        # Nothing is left: the same machines go on.
        prompt.write(draw(1))
        transfer(prompt, token, 2, "again")
        assert isinstance(event := token.event(), Arrived), event


@pytest.mark.parametrize("heads", [1, 4, 8])
@pytest.mark.parametrize("sources", [1, 2, 4, 8])
@pytest.mark.parametrize("targets", [1, 2, 4, 8])
def test_each_head_of_each_target_comes_from_one_source(
    heads: int, sources: int, targets: int
) -> None:
    got: list[tuple[int, int]] = []
    for part in parts_of(heads, sources, targets):
        shared = heads_of(part.source, sources, heads) & heads_of(part.target, targets, heads)
        assert shared
        got += [(part.target, head) for head in shared]
    wanted = [(t, head) for t in range(targets) for head in heads_of(t, targets, heads)]
    assert sorted(got) == sorted(wanted)


@pytest.mark.parametrize("heads", [1, 2, 4, 8])
def test_a_single_part_is_one_between_the_first_ranks(heads: int) -> None:
    ranks = [n for n in range(1, 9) if heads % n == 0 or n % heads == 0]
    all_parts = [parts_of(heads, sources, targets) for sources in ranks for targets in ranks]
    assert {parts for parts in all_parts if len(parts) == 1} == {(Part(0, 0),)}


def test_ranks_that_hold_the_same_heads_share_the_work() -> None:
    assert parts_of(2, 4, 4) == (Part(0, 0), Part(1, 1), Part(2, 2), Part(3, 3))


def test_heads_that_cannot_be_dealt_out() -> None:
    with pytest.raises(ValueError, match="4 KV heads cannot be dealt out to 3 ranks"):
        parts_of(4, 1, 3)
    with pytest.raises(ValueError, match="4 KV heads cannot be dealt out to 3 ranks"):
        CacheLayout.flat(1, 1, 1, 8, heads=4).of_rank(0, 3)
