"""One rank's half of the connector: its cache, the two ends of its transfers, and the steps.

1. ``register`` notes the cache once vLLM has made it. ``open`` makes the ends, once a session.
2. A step begins with ``bind``: orders become calls to the ends.
3. ``layer_done`` hands over what the step's chunks have filled in that layer, several layers
   together where they are small; after the last one short prompts begin, in one piece.
4. ``take`` gives what the ends have said since (they put it into ``_sent`` and ``_received``, from
   their threads).
"""

import queue
import threading
from collections.abc import Callable, Mapping

import torch

from splitwise.engine.vllm.layout import read_layout
from splitwise.engine.vllm.orders import Begin, RankNews, StepOrders
from splitwise.transfer import (
    CacheLayout,
    CacheMemory,
    MachineReceiver,
    MachineSender,
    ReceiverAddress,
)
from splitwise.transfer.events import OnReceiverEvent, OnSenderEvent, ReceiverEvent, SenderEvent

STOP_LIMIT_S = 30.0
PUT_BYTES = 4 << 20
"""Layers are handed over together until they make up this much."""

OpenEnds = Callable[
    [CacheMemory, CacheLayout, int, int, OnSenderEvent, OnReceiverEvent],
    tuple[MachineSender, MachineReceiver],
]
"""Opens the ends of a rank, by its number of so many."""


class RankSide:
    """What runs where the cache is."""

    def __init__(self, all_heads: int, rank: int, ranks: int) -> None:
        self._all_heads = all_heads
        self._rank = rank
        self._ranks = ranks
        self.steps = 0
        """Layers computed so far."""
        self._sent: queue.SimpleQueue[SenderEvent] = queue.SimpleQueue()
        self._received: queue.SimpleQueue[ReceiverEvent] = queue.SimpleQueue()
        self._under_way: set[str] = set()
        """Begun, and not over."""
        self._stopping: dict[str, threading.Event] = {}
        self._orders = StepOrders()
        self._whole: list[Begin] = []
        self._together = 1

    def register(self, caches: Mapping[str, torch.Tensor], memory: CacheMemory) -> None:
        """
        Raises:
            ModelError: the cache lies in memory in a way that cannot be transferred.
        """
        self.layout, self._places = read_layout(caches, self._all_heads, self._rank, self._ranks)
        self._memory = memory
        self._last = self.layout.layers - 1

    def open(self, open_ends: OpenEnds, wake: Callable[[], None] | None) -> list[ReceiverAddress]:
        """Open the ends of a session; ``wake`` is called when ``take`` would give something."""

        def on_sender_event(event: SenderEvent) -> None:
            self._under_way.discard(event.transfer_id)
            if (stopped := self._stopping.get(event.transfer_id)) is not None:
                stopped.set()
            self._sent.put(event)
            if wake is not None:
                wake()

        def on_receiver_event(event: ReceiverEvent) -> None:
            self._received.put(event)
            if wake is not None:
                wake()

        self._sender, self._receiver = open_ends(
            self._memory, self.layout, self._rank, self._ranks, on_sender_event, on_receiver_event
        )
        return self._receiver.addresses

    def close(self) -> None:
        """Close the ends; every transfer has its event then.

        Raises:
            TimeoutError: a sender that writes into the cache by itself has not let go of it.
        """
        self._sender.close()
        self._receiver.close()

    # A step.

    def halt(self, orders: StepOrders) -> None:
        """Have the transfers of preempted prompts read nothing more: their blocks are about to be
        others'.

        Raises:
            TimeoutError: one goes on.
        """
        for request_id in orders.preempted:
            self._stopping[request_id] = threading.Event()
        for request_id in orders.preempted:
            self._sender.cancel(request_id)
        for request_id in orders.preempted:
            stopped = self._stopping[request_id]
            if request_id in self._under_way and not stopped.wait(STOP_LIMIT_S):
                raise TimeoutError(f"transfer {request_id} does not stop")
            del self._stopping[request_id]

    def bind(self, orders: StepOrders) -> None:
        """What is to be done before the step computes."""
        self._orders = orders
        self._whole = list(orders.whole)
        if orders.is_empty:
            return
        for expect in orders.expects:
            self._receiver.expect(
                expect.request_id,
                expect.source_id,
                expect.source_ranks,
                expect.blocks,
                expect.skipped,
            )
        for request_id in orders.refusals:
            self._receiver.cancel(request_id)
        for request_id in orders.stops - orders.preempted:
            self._sender.cancel(request_id)
        for request_id, payload in orders.finishes.items():
            self._sender.finish(request_id, payload)
        for begin in orders.begins:
            self._begin(begin)
            if begin.held:
                self._sender.held(begin.request_id, begin.held)
        for request_id, blocks in orders.extends.items():
            self._sender.extend(request_id, blocks)
        full = sum(orders.fills.values())
        layer_bytes = max(1, full * self.layout.block_bytes(0))
        self._together = max(1, PUT_BYTES // layer_bytes)

    def layer_done(self, name: str) -> None:
        """A layer's keys and values of this step are written, or queued on the current stream."""
        self.steps += 1
        orders, layer = self._orders, self._places[name]
        is_last = layer == self._last
        if orders.fills and (is_last or (layer + 1) % self._together == 0):
            ids, full = list(orders.fills), list(orders.fills.values())
            for ready in range(layer - layer % self._together, layer + 1):
                self._sender.layer_ready(ids, ready, full)
        if is_last:
            self.step_done()

    def step_done(self) -> None:
        """All layers are, whether each was told of or not (a CUDA graph tells of none)."""
        for begin in self._whole:
            self._begin(begin, all_ready=True)
        self._whole = []

    def take(self) -> RankNews:
        """What has ended since."""
        news = RankNews()
        while not self._sent.empty():
            sent = self._sent.get()
            news.sent.setdefault(sent.transfer_id, []).append(sent)
        while not self._received.empty():
            received = self._received.get()
            news.received.setdefault(received.transfer_id, []).append(received)
        return news

    def _begin(self, begin: Begin, all_ready: bool = False) -> None:
        self._under_way.add(begin.request_id)
        self._sender.begin(
            begin.request_id, begin.target, begin.blocks, all_ready, begin.table_blocks
        )
