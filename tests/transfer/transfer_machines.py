"""Machines for the transfer tests: a cache with a sender and a receiver, here or in a process.

``LocalMachine`` lives in the test's process. ``RemoteMachine`` is one in a process of its own,
spawned, to which calls go over a pipe and from which events come back.
"""

import multiprocessing
import multiprocessing.connection
import os
import queue
import signal
import time
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

# NIXL's own connections stay on loopback, too.
os.environ.setdefault("UCX_NET_DEVICES", "lo")

NEEDS_NIXL = pytest.mark.skipif(not nixl_installed(), reason="NIXL, an extra, is not installed")
TRANSPORTS = ("shared_memory", "tcp", pytest.param("nixl", marks=NEEDS_NIXL))
KEY = "a cluster key"
WAIT_S = 20.0
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


class LocalMachine:
    """Cache, sender and receiver. ``events`` holds what either has reported."""

    def __init__(self, settings: Settings, on_event: Callable[[Event], None] | None = None) -> None:
        layout = settings.layout
        self.settings = settings
        self.memory = HostMemory(layout.total_bytes)
        self.cache = np.frombuffer(self.memory.buffer, np.uint8).reshape(
            layout.layers, layout.blocks, layout.block_bytes(0)
        )
        self.cache[:] = content(settings)
        self.events: queue.Queue[Event] = queue.Queue()
        report = on_event or self._report
        self.first: Callable[[Event], None] | None = None
        """Called with each event at once, on the thread that reports it."""
        self.receiver = KVReceiver(
            self.memory,
            layout,
            settings.machine_id,
            settings.key,
            report,
            transports=settings.transports,
            deadlines=settings.deadlines,
            tls=settings.tls,
        )
        self.sender = KVSender(
            self.memory,
            layout,
            settings.machine_id,
            settings.key,
            report,
            transport=settings.transport,
            checksum=settings.checksum,
            deadlines=settings.deadlines,
            tls=settings.tls,
        )

    @property
    def address(self) -> ReceiverAddress:
        return self.receiver.address

    def _report(self, event: Event) -> None:
        if self.first is not None:
            self.first(event)
        self.events.put(event)

    def event(self) -> Event:
        return self.events.get(timeout=WAIT_S)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        self.memory.close()


def ends_of_one_rank(
    memory: CacheMemory, layout: CacheLayout, name: str, key: str, on_event: Callable[[Any], None]
) -> tuple[MachineReceiver, MachineSender]:
    """The ends of a machine that is one rank."""

    def receiver(rank_id: str, _: int, report: OnReceiverEvent) -> KVReceiver:
        return KVReceiver(memory, layout, rank_id, key, report)

    def sender(rank_id: str, _: int, report: OnSenderEvent) -> KVSender:
        return KVSender(memory, layout, rank_id, key, report)

    heads = layout.all_heads
    return (
        MachineReceiver(heads, 1, receiver, name, on_event),
        MachineSender(heads, 1, sender, name, on_event),
    )


class RemoteMachine:
    """A machine in a process of its own."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        context = multiprocessing.get_context("spawn")
        self._calls, calls = context.Pipe()
        self._unanswered = 0
        self._events, events = context.Pipe(duplex=False)
        self.process = context.Process(target=_machine, args=(settings, calls, events), daemon=True)
        self.process.start()
        calls.close()
        events.close()
        self.address: ReceiverAddress = self._answer()

    def call(self, method: str, *args: Any) -> None:
        """``method`` is dotted: ``sender.begin``."""
        self.post(method, *args)
        self._settle()

    def post(self, method: str, *args: Any) -> None:
        """``call`` that does not wait; the next ``call`` does."""
        self._calls.send((method, args))
        self._unanswered += 1
        while self._unanswered and self._calls.poll(0):  # lest the pipe fill up
            self._unanswered -= 1
            self._answer()

    def event(self) -> Event:
        assert self._events.poll(WAIT_S), "no event"
        event: Event = self._events.recv()
        return event

    def _settle(self) -> None:
        while self._unanswered:
            self._unanswered -= 1
            self._answer()

    def no_event(self) -> bool:
        return not self._events.poll(0)

    def kill(self, signal_number: int = signal.SIGKILL) -> None:
        assert self.process.pid is not None
        os.kill(self.process.pid, signal_number)

    def close(self) -> None:
        self.kill(signal.SIGCONT)
        self._settle()
        self._calls.close()
        self.process.join(WAIT_S)
        assert self.process.exitcode == 0
        self._events.close()

    def reap(self) -> None:
        """After ``kill``."""
        self.process.join(WAIT_S)
        self._calls.close()
        self._events.close()

    def _answer(self) -> Any:
        assert self._calls.poll(WAIT_S), "the machine's process does not answer"
        answer = self._calls.recv()
        if isinstance(answer, Exception):
            raise answer
        return answer


def _machine(
    settings: Settings,
    calls: multiprocessing.connection.Connection,
    events: multiprocessing.connection.Connection,
) -> None:
    machine = LocalMachine(settings, _reporter(events))
    calls.send(machine.address)
    while True:
        try:
            method, args = calls.recv()
        except EOFError:
            break
        part, _, name = method.partition(".")
        try:
            getattr(getattr(machine, part), name)(*args)
            calls.send(None)
        except ValueError as error:
            calls.send(error)
    machine.close()


def _reporter(events: multiprocessing.connection.Connection) -> Callable[[Event], None]:
    waiting: queue.Queue[Event] = queue.Queue()

    def report(event: Event) -> None:  # from two threads, which must not mix in the pipe
        waiting.put(event)
        with waiting.mutex:
            while waiting.queue:
                events.send(waiting.queue.popleft())

    return report


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


def eventually(condition: Callable[[], bool]) -> None:
    """Wait for what no event announces."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s, "it never came to be"
        time.sleep(0.001)


def send_all(
    sender: KVSender, transfer_id: str, layers: int, payload: bytes = b"first token"
) -> None:
    """The engine's part, all at once."""
    for layer in range(layers):
        sender.layer_ready([transfer_id], layer)
    sender.finish(transfer_id, payload)
