"""The token machine's end: reserves blocks for a transfer and says when they are filled, or free.

The life of an incoming transfer. It is an ``Incoming``; everything happens on the receiver's
thread, where each listener, each link and each TCP stream has one task.

1. ``expect`` (worker's thread) enters the transfer. Its Grant, the blocks, goes to the sender
   at once, or as soon as the sender has dialled in and says that it is Ready.
2. The sender fills the blocks: by itself through shared memory, CUDA IPC or NIXL, or by pieces that
   this thread receives into them (TCP). Each end tells the other of progress that it cannot see.
3. The sender's Done, and the last piece, end it: Arrived (or Failed, where checksums differ; they
   are computed on a thread beside). The Answer tells the sender, which then frees its own blocks.
4. ``cancel``, or a deadline since the last progress, sends a Revoke. Blocks that the sender writes
   by itself are given back (Released, Failed) only on its Stopped or Done, or when its end of the
   link is closed: until then a put may still be under way. Over NIXL this end can stop that: it
   ends the link of a sender that keeps silent, and closes the window (``windows``) before. Blocks
   that only this thread writes are given back at once, or, on a device, when it has passed the
   copies that are queued.
5. The sender's Stopped and the end of its link give Failed. A sender that breaks the protocol
   is refused with the reason and its link dropped, which comes to the same.
"""

import asyncio
import logging
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import cast

import msgspec

from splitwise.protocol.handshake.tls import ClusterTls
from splitwise.transfer.channel import Channel
from splitwise.transfer.checksum import mismatch
from splitwise.transfer.deadlines import GRACE_S, Deadlines
from splitwise.transfer.device_blocks import DeviceMemory, blocks_of, queue_of
from splitwise.transfer.errors import Closing, LinkError, LinkLost
from splitwise.transfer.events import (
    Arrived,
    Failed,
    OnReceiverEvent,
    ReceiverEvent,
    Released,
)
from splitwise.transfer.frames import (
    Answer,
    AnyMessage,
    Done,
    Grant,
    Handles,
    Hello,
    Progress,
    Ready,
    Refused,
    Revoke,
    Stopped,
    Welcome,
)
from splitwise.transfer.handshake import check_layout
from splitwise.transfer.incoming import Incoming, Pieces, SenderLink
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.link import Link
from splitwise.transfer.listener import ListenAt, Listener
from splitwise.transfer.memory import CacheMemory, HostMemory
from splitwise.transfer.pairing import LayoutPair
from splitwise.transfer.staging import as_stream_end
from splitwise.transfer.thread import LoopThread
from splitwise.transfer.transports.choice import CUDA_IPC, NIXL, ONE_SIDED, SHARED_MEMORY
from splitwise.transfer.transports.cuda_ipc import export
from splitwise.transfer.transports.nixl import OpenWindow
from splitwise.transfer.transports.own_end import own_end
from splitwise.transfer.transports.shared_memory import hand_over
from splitwise.transfer.transports.tcp import receive_pieces
from splitwise.transfer.windows import Windows

logger = logging.getLogger(__name__)


class KVReceiver:
    """Takes transfers into ``memory``. All methods may be called from any thread.

    ``on_event`` is called on the receiver's thread, once for each ``expect``, and must be quick.
    """

    def __init__(
        self,
        memory: CacheMemory,
        layout: CacheLayout,
        machine_id: str,
        cluster_key: str,
        on_event: OnReceiverEvent,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        announce: tuple[str, int] | None = None,
        transports: Sequence[str] | None = None,
        sends: str | None = None,
        deadlines: Deadlines | None = None,
        tls: ClusterTls | None = None,
    ) -> None:
        """
        Args:
            host, port: the address to listen on, under which senders reach it; port 0 picks one.
            announce: the address under which they do, where it is another.
            transports: to offer, best first; None offers all that the memory allows.
            sends: the transport that the machine's own sender is told to take, for others to know.
            tls: what TCP connections have to speak; None: none.

        Raises:
            ValueError: a transport that the memory does not allow, or an empty key.
            OSError: ``host`` is not an address of this machine, or the port is taken.
        """
        if not cluster_key:
            raise ValueError("cluster_key is empty: give all machines of the cluster the same one")
        if memory.nbytes < layout.total_bytes:
            raise ValueError(f"{memory.nbytes} bytes cannot hold {layout.total_bytes} of {layout}")
        own = own_end(memory.device)
        possible = own.transports
        offers = tuple(possible if transports is None else transports)
        if not offers or not set(offers) <= set(possible):
            raise ValueError(
                f"transports {offers} for a cache on {memory.device}: "
                f"choose from {', '.join(possible)}"
            )
        self._memory = memory
        self._layout = layout
        self._on_event = on_event
        self._deadlines = deadlines or Deadlines()
        self._transfers: dict[str, Incoming] = {}
        self._links: dict[int, SenderLink] = {}
        self._not_lost: set[SenderLink] = set()
        """Given up here, but their senders have not let go of the cache."""
        self._links_made = 0
        listener = Listener(
            machine_id,
            cluster_key,
            ListenAt(host, port, announce),
            replace(own, transports=offers),
            self._deadlines,
            tls,
        )
        self.address = msgspec.structs.replace(listener.address, sends=sends or "")
        """Plain data, for senders."""
        self._thread = LoopThread("kv-receiver")
        self._windows = Windows(
            memory, layout, self._thread, self._links.values, self._grant_waiting
        )
        on_device = memory.device.startswith("cuda")
        self._queue = queue_of(cast(DeviceMemory, memory)) if on_device else None
        self._thread.call(listener.open, self._thread, self._check, self._welcome, self._serve)

    def expect(
        self, transfer_id: str, sender_id: str, blocks: Sequence[int], skipped: int = 0
    ) -> None:
        """Reserve ``blocks``, in the order of the request's block table, for machine ``sender_id``.

        Of that table the first ``skipped`` entries are here already, and do not move: ``blocks``
        are for those that follow (none, where all are). They belong to the transfer until its
        event.

        Raises:
            ValueError: the id is in use, or a block is outside the cache.
        """
        if skipped < 0:
            raise ValueError(f"skipped is {skipped}: give how many entries are here, 0 for none")
        if blocks or not skipped:
            self._layout.check_blocks(blocks)
        if transfer_id in self._transfers:
            raise ValueError(f"transfer_id {transfer_id!r} is in use: take a new one a try")
        incoming = Incoming(transfer_id, sender_id, list(blocks), skipped)
        self._transfers[transfer_id] = incoming
        self._thread.call(self._expect, incoming)

    def cancel(self, transfer_id: str) -> None:
        """Give the blocks back; Released follows, unless the transfer has ended by then."""
        self._thread.call(self._cancel, transfer_id)

    def close(self) -> None:
        """Fail all transfers, close all links and join the thread. Harmless twice.

        Raises:
            TimeoutError: a sender that writes into the cache by itself has not let go of it: the
                memory must not be used for anything else, so the process had better end.
        """
        self._thread.close(self._farewell, 2 * self._deadlines.stop_s)
        if self._queue is not None:
            self._queue.close()

    # From here on everything runs on the receiver's thread.

    def _expect(self, incoming: Incoming) -> None:
        if incoming.outcome is not None:
            return
        self._watch(incoming)
        # The newest link, should a sender have restarted. One that opened just now has granted it.
        for over in reversed(self._links.values()):
            is_here = over.is_ready and over.sender_id == incoming.sender_id
            if is_here and incoming.over is None:
                self._grant(incoming, over)

    def _grant(self, incoming: Incoming, over: SenderLink) -> None:
        if over.window is not None and over.window.is_retired:
            return  # until it has another
        incoming.note_progress()
        incoming.told_s = incoming.progress_s
        incoming.over = over
        incoming.number = over.next_transfer
        over.next_transfer += 1
        over.transfers[incoming.number] = incoming
        if not over.one_sided:
            incoming.pieces = Pieces(self._layout.layers, incoming.blocks)
        if over.window is not None:
            self._windows.granted(incoming, over)
        over.link.send(
            Grant(incoming.number, incoming.transfer_id, incoming.blocks, incoming.skipped)
        )

    def _cancel(self, transfer_id: str) -> None:
        if (incoming := self._transfers.get(transfer_id)) is not None:
            self._stop(incoming, Released(transfer_id))

    def _stop(self, incoming: Incoming, outcome: Failed | Released) -> None:
        """Have no more written into the blocks, then end with ``outcome``."""
        if incoming.outcome is not None:
            return
        if incoming.over is None:
            self._conclude(incoming, outcome)
            return
        reason = outcome.reason if isinstance(outcome, Failed) else "cancelled by the receiver"
        incoming.over.link.send(Revoke(incoming.number, reason))
        if not incoming.over.one_sided or incoming.done is not None:
            self._conclude(incoming, outcome)
            return
        incoming.outcome = outcome
        incoming.note_progress()
        self._watch(incoming)

    def _watch(self, incoming: Incoming) -> None:
        """Give a transfer up once nothing has moved for too long; else look again later."""
        is_stopping = incoming.outcome is not None
        limit_s = self._deadlines.stop_s if is_stopping else self._deadlines.idle_s
        left_s = incoming.progress_s + limit_s - time.monotonic()
        if left_s <= 0 and not incoming.is_overdue:
            incoming.is_overdue, left_s = True, GRACE_S
        if left_s > 0:
            if incoming.timer is not None:
                incoming.timer.cancel()
            loop = asyncio.get_running_loop()
            incoming.timer = loop.call_later(left_s, self._watch, incoming)
        elif incoming.over is not None and is_stopping:
            sender = incoming.over.sender_id
            reason = f"{sender} has not said within {limit_s:g} s it stopped"
            incoming.over.link.fail(LinkError(reason))
        else:
            reason = f"nothing of it has come for {limit_s:g} s"
            self._stop(incoming, Failed(incoming.transfer_id, reason))

    def _conclude(self, incoming: Incoming, event: ReceiverEvent) -> None:
        """The one place where a transfer ends."""
        incoming.outcome = event
        if incoming.stores:
            incoming.when_stored = partial(self._conclude, incoming, event)
            return
        self._windows.ended(incoming)
        if incoming.timer is not None:
            incoming.timer.cancel()
        if incoming.over is not None:
            del incoming.over.transfers[incoming.number]
        del self._transfers[incoming.transfer_id]
        try:
            self._on_event(event)
        except Exception:  # a bug of the worker's, that must not cost the other transfers
            logger.exception("on_event broke on %s", event)

    def _check(self, hello: Hello) -> None:
        check_layout(self._layout, hello.layout)
        if hello.link is None:
            return
        over = self._links.get(hello.link)
        if over is None or over.sender_id != hello.machine_id or over.one_sided:
            raise LinkError(f"{hello.machine_id} has no link {hello.link} that takes streams")

    def _welcome(self, hello: Hello) -> Welcome:
        if hello.link is not None:
            return Welcome(hello.link, self._layout)
        self._links_made += 1
        return Welcome(self._links_made, self._layout)

    async def _serve(self, channel: Channel, hello: Hello, welcome: Welcome) -> None:
        """A connection's task, from the handshake to its end."""
        if hello.link is not None:
            await self._serve_stream(channel, hello.link)
            return
        if hello.transport == SHARED_MEMORY:
            hand_over(channel, cast(HostMemory, self._memory))
        if hello.transport == CUDA_IPC:
            await channel.send_message(Handles(export(cast(DeviceMemory, self._memory))))
        window = await self._open_window(channel) if hello.transport == NIXL else None
        pair = LayoutPair(hello.layout, self._layout)
        over = SenderLink(
            Link(channel),
            hello.machine_id,
            one_sided=hello.transport in ONE_SIDED,
            window=window,
            transport=hello.transport,
            task=asyncio.current_task(),
            pair=pair,
            blocks=blocks_of(self._memory, self._layout, pair.at_target),
        )
        self._links[welcome.link] = over
        await self._serve_link(over, welcome.link)

    async def _open_window(self, channel: Channel) -> OpenWindow:
        try:
            window = await self._windows.current()
        except LinkError as refusal:
            await channel.send_message(Refused(str(refusal)))
            raise
        await channel.send_message(window.message)
        return window

    def _grant_waiting(self, over: SenderLink) -> None:
        if not over.is_ready:
            return
        for incoming in list(self._transfers.values()):  # others' threads add to it
            if incoming.over is None and incoming.sender_id == over.sender_id:
                self._grant(incoming, over)

    async def _serve_link(self, over: SenderLink, number: int) -> None:
        reason = "broken"
        try:
            while True:
                self._on_frame(over, await over.link.receive())
        except LinkLost as error:
            reason = str(error)
        except LinkError as error:
            reason = str(error)
            level = logging.INFO if isinstance(error, Closing) else logging.WARNING
            logger.log(level, "dropping the link from %s: %s", over.sender_id, reason)
            del self._links[number]
            await self._part(over, reason)
        finally:
            self._links.pop(number, None)
            over.link.close()
            for stream in over.streams:
                stream.close()
            for incoming in list(over.transfers.values()):
                failed = Failed(incoming.transfer_id, f"link from {over.sender_id}: {reason}")
                self._on_link_lost(incoming, incoming.outcome or failed)

    def _on_link_lost(self, incoming: Incoming, outcome: ReceiverEvent) -> None:
        if incoming.window is None:
            self._conclude(incoming, outcome)
            return
        incoming.outcome = outcome
        self._windows.lost(incoming, partial(self._conclude, incoming, outcome))

    async def _part(self, over: SenderLink, reason: str) -> None:
        """Refuse a sender. Returns once it cannot write into the cache, or can be kept from it."""
        over.link.send(Refused(reason))
        if over.one_sided and over.window is None:
            self._not_lost.add(over)
            await over.link.until_lost()
            self._not_lost.remove(over)
            return
        await over.link.flush()

    async def _serve_stream(self, channel: Channel, link: int) -> None:
        over = self._links.get(link)
        if over is None:
            raise LinkError(f"link {link} ended before its stream was open")
        over.streams.append(channel)
        try:
            await receive_pieces(
                channel,
                as_stream_end(over.blocks, self._queue),
                over.pair.block_bytes,
                over.find,
                self._landed,
                self._deadlines.tell_period_s,
            )
        except LinkError as error:
            over.link.fail(error)

    def _on_frame(self, over: SenderLink, message: AnyMessage) -> None:
        match message:
            case Ready():
                over.is_ready = True
                self._grant_waiting(over)
            case Done():
                incoming = self._live(over, message.number)
                if incoming is not None:
                    self._on_done(incoming, message)
            case Progress():
                moving = over.find(message.number)
                if moving is not None:
                    moving.hear(message.moved_bytes)
            case Stopped():
                incoming = self._live(over, message.number)
                if incoming is not None:
                    failed = Failed(incoming.transfer_id, message.reason)
                    self._conclude(incoming, incoming.outcome or failed)
            case _:
                raise LinkError(f"{type(message).__name__} is not for a receiver")

    def _live(self, over: SenderLink, number: int) -> Incoming | None:
        """A granted transfer, None for one that has ended here.

        Raises:
            LinkError: never granted.
        """
        incoming = over.find(number)
        if incoming is not None and incoming.done is not None:
            raise LinkError(f"transfer {number} was signalled before")
        return incoming

    def _on_done(self, incoming: Incoming, done: Done) -> None:
        if done.checksums is not None and len(done.checksums) != self._layout.layers:
            raise LinkError(f"{len(done.checksums)} checksums for {self._layout.layers} layers")
        incoming.done = done
        incoming.note_progress()
        if incoming.outcome is not None:
            self._conclude(incoming, incoming.outcome)  # it was to stop, and puts no more
        elif incoming.pieces is None or incoming.pieces.complete:
            self._complete(incoming, done)

    def _landed(self, incoming: Incoming) -> None:
        if incoming.done is not None and incoming.pieces is not None and incoming.pieces.complete:
            self._complete(incoming, incoming.done)

    def _complete(self, incoming: Incoming, done: Done) -> None:
        if done.checksums is None or not incoming.blocks:
            self._answer(incoming, done, "")
            return
        work = self._verify(incoming, done, done.checksums)
        self._thread.spawn(work, f"verifies {incoming.transfer_id}")

    async def _verify(self, incoming: Incoming, done: Done, checksums: list[list[int]]) -> None:
        """Off this thread, which others need meanwhile; they hear that it goes on."""
        loop = asyncio.get_running_loop()

        assert incoming.over is not None
        over, period_s = incoming.over, self._deadlines.tell_period_s

        def verified(layer: int) -> None:
            nbytes = len(incoming.blocks) * over.pair.block_bytes[layer]
            loop.call_soon_threadsafe(incoming.moved, nbytes, period_s)

        error = await asyncio.to_thread(mismatch, over.blocks, incoming.blocks, checksums, verified)
        if incoming.outcome is None:  # else it has ended meanwhile
            self._answer(incoming, done, error)

    def _answer(self, incoming: Incoming, done: Done, error: str) -> None:
        assert incoming.over is not None
        link = incoming.over.link
        if error:
            link.send(Answer(incoming.number, error=error))
            self._conclude(incoming, Failed(incoming.transfer_id, error))
            return
        stats = incoming.stats(done)
        link.send(Answer(incoming.number, stats))
        self._conclude(incoming, Arrived(incoming.transfer_id, done.payload, stats))

    async def _farewell(self) -> None:
        links = [*self._links.values(), *self._not_lost]
        tasks = [over.task for over in links if over.task is not None]
        self._windows.closing()
        for over in self._links.values():
            over.link.fail(Closing("the receiver was closed"))
        if tasks:
            await asyncio.wait(tasks, timeout=self._deadlines.stop_s)
        for incoming in list(self._transfers.values()):
            if incoming.over is None:
                self._conclude(incoming, Failed(incoming.transfer_id, "the receiver was closed"))
        self._windows.close()
        if self._not_lost:
            names = ", ".join(sorted(over.sender_id for over in self._not_lost))
            raise TimeoutError(
                f"{names} may still write into the cache: end this process, and start it anew"
            )
