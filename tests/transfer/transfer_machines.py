"""Machines for the transfer tests: a cache with a sender and a receiver, in the test's process.

``remote_machine`` has those in a process of their own.
"""

import os
import queue
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from splitwise.protocol.handshake.tls import ClusterTls
from splitwise.transfer import (
    CacheLayout,
    CacheMemory,
    Deadlines,
    HostMemory,
    KVReceiver,
    KVSender,
    MachineReceiver,
    MachineSender,
    ReceiverAddress,
    ReceiverEvent,
    SenderEvent,
)
from splitwise.transfer.events import OnReceiverEvent, OnSenderEvent
from splitwise.transfer.transports.nixl import Agent
from splitwise.transfer.transports.own_end import nixl_installed
from waiting import WAIT_S

# NIXL's own connections stay on loopback, too.
os.environ.setdefault("UCX_NET_DEVICES", "lo")

NEEDS_NIXL = pytest.mark.skipif(not nixl_installed(), reason="NIXL, an extra, is not installed")
TRANSPORTS = ("shared_memory", "tcp", pytest.param("nixl", marks=NEEDS_NIXL))
KEY = "a cluster key"
Event = ReceiverEvent | SenderEvent


@dataclass
class Settings:
    """What a machine is made of."""

    machine_id: str
    layout: CacheLayout
    seed: int
    key: str = KEY
    transport: str | None = None
    transports: tuple[str, ...] | None = None
    checksum: bool = False
    deadlines: Deadlines = field(default_factory=Deadlines)
    tls: ClusterTls | None = None


def content(settings: Settings) -> npt.NDArray[np.uint8]:
    """What the machine's cache holds at first: (layers, blocks, block_bytes)."""
    layout = settings.layout
    shape = (layout.layers, layout.blocks, layout.block_bytes(0))
    return np.random.default_rng(settings.seed).integers(0, 256, shape, dtype=np.uint8)


class MachineEnds:
    """A cache with a receiver, which listens, and a sender; ``events`` holds what either has
    reported."""

    def __init__(
        self,
        memory: CacheMemory,
        settings: Settings,
        on_event: Callable[[Event], None] | None = None,
    ) -> None:
        self.events: queue.Queue[Event] = queue.Queue()
        self.memory = memory

        def end(make: Callable[..., Any], **own: Any) -> Any:
            return make(
                *(memory, settings.layout, settings.machine_id, settings.key),
                on_event or self.events.put,
                deadlines=settings.deadlines,
                tls=settings.tls,
                **own,
            )

        self.receiver: KVReceiver = end(KVReceiver, transports=settings.transports)
        self.sender: KVSender = end(
            KVSender, transport=settings.transport, checksum=settings.checksum
        )

    def event(self) -> Event:
        return self.events.get(timeout=WAIT_S)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        self.memory.close()


class LocalMachine(MachineEnds):
    """Of ``settings``, its cache in host memory."""

    def __init__(self, settings: Settings, on_event: Callable[[Event], None] | None = None) -> None:
        layout = settings.layout
        self.settings = settings
        self.first: Callable[[Event], None] | None = None
        """Called with each event at once, on the thread that reports it."""
        memory = HostMemory(layout.total_bytes)
        self.cache = np.frombuffer(memory.buffer, np.uint8).reshape(
            layout.layers, layout.blocks, layout.block_bytes(0)
        )
        self.cache[:] = content(settings)
        super().__init__(memory, settings, on_event or self._report)

    @property
    def address(self) -> ReceiverAddress:
        return self.receiver.address

    def _report(self, event: Event) -> None:
        if self.first is not None:
            self.first(event)
        self.events.put(event)


def ends_of_one_rank(
    memory: CacheMemory,
    layout: CacheLayout,
    name: str,
    key: str,
    on_event: Callable[[Any], None],
    checksum: bool = False,
) -> tuple[MachineReceiver, MachineSender]:
    """The ends of a machine that is one rank."""

    def receiver(rank_id: str, _: int, report: OnReceiverEvent) -> KVReceiver:
        return KVReceiver(memory, layout, rank_id, key, report)

    def sender(rank_id: str, _: int, report: OnSenderEvent) -> KVSender:
        return KVSender(memory, layout, rank_id, key, report, checksum=checksum)

    heads = layout.all_heads
    return (
        MachineReceiver(heads, 1, receiver, name, on_event),
        MachineSender(heads, 1, sender, name, on_event),
    )


@contextmanager
def machines(*all_settings: Settings) -> Iterator[list[LocalMachine]]:
    """Local machines, closed at the end."""
    with ExitStack() as on_exit:
        made = [LocalMachine(settings) for settings in all_settings]
        for machine in made:
            on_exit.callback(machine.close)
        yield made


def warm_up(transport: str) -> None:
    """Load what a transport needs, so that no short deadline has to cover that."""
    if transport == "nixl":
        with HostMemory(4096) as memory:
            Agent(memory, CacheLayout.flat(1, 1, 16, memory.nbytes)).close()


def send_all(
    sender: KVSender, transfer_id: str, layers: int, payload: bytes = b"first token"
) -> None:
    """The engine's part, all at once."""
    for layer in range(layers):
        sender.layer_ready([transfer_id], layer)
    sender.finish(transfer_id, payload)
