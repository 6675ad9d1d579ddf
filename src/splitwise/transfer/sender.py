"""The prompt machine's end: puts each layer into the token machine's cache while the next computes.

The life of an outgoing transfer. It is an ``Outgoing`` with a mailbox and a task of its own on the
sender's thread; the ``Exchange`` keeps the links and writes to the mailbox what comes over them.

1. ``begin`` (worker's thread) enters the transfer and starts its task. Where there is no link to
   the receiver yet, the exchange dials. A block table that is not known to its end yet grows by
   ``extend`` (engine's thread), chunk by chunk of the prompt.
2. The receiver's Grant reaches the mailbox; where it comes before ``begin`` it is kept till then.
3. ``layer_ready`` and ``held`` (engine's thread) drop a note into the mailbox of each transfer in
   the batch: up to which entry of the table a layer is written. As soon as there is a grant, what
   is ready is put in the order in which that was said (a one-piece transfer is ready when it
   begins), but for the first entries that the receiver skips. Between two puts the mailbox comes
   first, and a put ends early for a stop that lies in it. Now and then Progress tells the receiver
   what is put.
4. ``finish`` (worker's thread) brings the payload. When the last is put, one Done goes out.
5. The receiver's Answer ends the transfer: Sent, or Failed; its Progress until then says that it
   is worth waiting for. So do ``cancel`` (Cancelled), a Revoke, a lost link and a deadline since
   the last progress (``_watch``: Failed); then Stopped tells the receiver that no put is
   under way and none will start.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import cast

from splitwise.protocol.handshake.tls import ClusterTls
from splitwise.transfer.address import ReceiverAddress, host_identity
from splitwise.transfer.checksum import layer_checksum
from splitwise.transfer.deadlines import GRACE_S, Deadlines
from splitwise.transfer.device_blocks import DeviceMemory, queue_of, record_fence
from splitwise.transfer.errors import LinkError
from splitwise.transfer.events import Cancelled, Failed, OnSenderEvent, SenderEvent
from splitwise.transfer.exchange import Exchange
from splitwise.transfer.frames import PAYLOAD_LIMIT_BYTES, Done, Progress
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import CacheMemory
from splitwise.transfer.outgoing import Due, Finish, Happening, Held, LayerReady, Outgoing, Stop
from splitwise.transfer.peer import SenderConfig
from splitwise.transfer.thread import LoopThread
from splitwise.transfer.transports.base import Fence
from splitwise.transfer.transports.nixl import SharedAgent
from splitwise.transfer.transports.own_end import nixl_hint, own_end

logger = logging.getLogger(__name__)


class KVSender:
    """Sends blocks of ``memory`` to receivers. All methods may be called from any thread.

    ``on_event`` is called on the sender's thread, once for each ``begin``, and must be quick.
    """

    def __init__(
        self,
        memory: CacheMemory,
        layout: CacheLayout,
        machine_id: str,
        cluster_key: str,
        on_event: OnSenderEvent,
        *,
        transport: str | None = None,
        streams: int = 4,
        checksum: bool = False,
        deadlines: Deadlines | None = None,
        tls: ClusterTls | None = None,
    ) -> None:
        """
        Args:
            transport: force one; None takes the best that both ends can do.
            streams: parallel TCP connections a link.
            checksum: have every transfer verified at the receiver; costs a pass over the bytes
                at either end.
            tls: as the receivers have it; over TCP what travels is encrypted then.
        """
        if not cluster_key:
            raise ValueError("cluster_key is empty: give all machines of the cluster the same one")
        possible = own_end(memory.device).transports
        if transport is not None and transport not in possible:
            raise ValueError(
                f"transport {transport!r} cannot send a cache on {memory.device}: "
                f"choose from {', '.join(possible)}{nixl_hint(transport)}"
            )
        if streams < 1:
            raise ValueError(f"streams is {streams}: a TCP link needs at least 1")
        self._layout = layout
        self._on_event = on_event
        self._checksum = checksum
        self._deadlines = deadlines or Deadlines()
        self._agent = SharedAgent(memory, layout)
        on_device = memory.device.startswith("cuda")
        self._queue = queue_of(cast(DeviceMemory, memory)) if on_device else None
        config = SenderConfig(
            memory=memory,
            layout=layout,
            machine_id=machine_id,
            cluster_key=cluster_key,
            transport=transport,
            streams=streams,
            deadlines=self._deadlines,
            agent=self._agent,
            queue=self._queue,
            tls=tls,
        )
        self._fence = _fence_recorder(memory.device)
        self._transfers: dict[str, Outgoing] = {}
        self._thread = LoopThread("kv-sender")
        self._exchange = Exchange(config, self._thread, self._transfers)

    def begin(
        self,
        transfer_id: str,
        address: ReceiverAddress,
        blocks: Sequence[int],
        all_ready: bool = False,
        table_blocks: int | None = None,
    ) -> None:
        """Start to send ``blocks``, a request's block table, to the receiver at ``address``.

        ``blocks`` may be the table's beginning (or empty): then ``table_blocks`` is how long it
        will be in all, and ``extend`` brings the rest. ``all_ready`` says that all layers of
        ``blocks`` are written, or queued on the current stream, already: they go in one piece.
        ``transfer_id`` is the one that the receiver expects, and names one attempt: a retry takes a
        new one.

        Raises:
            ValueError: the id is in use, a block is outside the cache, or there are more than
                ``table_blocks``.
        """
        if table_blocks is None:
            table_blocks = len(blocks)
        if blocks or not table_blocks:
            self._layout.check_blocks(blocks)
        if len(blocks) > table_blocks:
            raise ValueError(f"{len(blocks)} blocks where table_blocks is {table_blocks}")
        if transfer_id in self._transfers:
            raise ValueError(f"transfer_id {transfer_id!r} is in use: take a new one a try")
        transfer = Outgoing(transfer_id, address, list(blocks), table_blocks, self._layout.layers)
        if all_ready:
            transfer.note_all_layers(len(blocks), self._fence())
        self._transfers[transfer_id] = transfer
        self._thread.call(self._start, transfer)

    def extend(self, transfer_id: str, blocks: Sequence[int]) -> None:
        """Engine's thread: the next entries of the block table. Wakes nobody: that does the word
        that something of them is written.

        Ignored for a transfer that has ended.

        Raises:
            ValueError: a block is outside the cache or named twice, or there are more than
                ``table_blocks``.
        """
        transfer = self._transfers.get(transfer_id)
        if transfer is None or not blocks:
            return
        self._layout.check_blocks(blocks)
        if len(transfer.blocks) + len(blocks) > transfer.table_blocks:
            raise ValueError(
                f"{len(blocks)} blocks more where {len(transfer.blocks)} of {transfer.table_blocks}"
                f" were known of transfer {transfer_id!r}: table_blocks of begin is all of them"
            )
        if not set(blocks).isdisjoint(transfer.blocks):
            raise ValueError(f"of {list(blocks)} a block was named before in {transfer_id!r}")
        transfer.blocks += blocks

    def layer_ready(
        self, transfer_ids: Sequence[str], layer: int, upto: Sequence[int] | None = None
    ) -> None:
        """Engine's thread: this layer's keys and values of these transfers are written: of each the
        first ``upto[i]`` entries of its block table, by None the whole table.

        May come again for a layer as more is written; an ``upto`` that does not grow is harmless,
        but a layer that was complete must not come again: the transfer fails, as it does where the
        table is not known so far. On a device: queued on the current stream. Ids of transfers that
        have ended are ignored. Costs microseconds.

        Raises:
            ValueError: not as many ``upto`` as transfers.
        """
        fence = self._fence()
        if upto is None:
            self._thread.call(self._note, transfer_ids, LayerReady(layer, fence))
            return
        notes = [LayerReady(layer, fence, entries) for entries in upto]
        self._thread.call(self._note_each, list(zip(transfer_ids, notes, strict=True)))

    def held(self, transfer_id: str, upto: int) -> None:
        """Engine's thread: all layers of the first ``upto`` entries of the block table are written,
        as where this machine held them before the prompt began. Else as ``layer_ready``, but that
        it may repeat what was said."""
        self._thread.call(self._post, transfer_id, Held(upto, self._fence()))

    def finish(self, transfer_id: str, payload: bytes) -> None:
        """All layers are written; signal the receiver, with ``payload``, once all are put.

        What was not reported yet counts as ready now; where the block table is not known to its
        end the transfer fails. Ignored for a transfer that has ended.

        Raises:
            ValueError: the payload is too long.
        """
        if len(payload) > PAYLOAD_LIMIT_BYTES:
            raise ValueError(
                f"payload of {len(payload)} bytes: at most {PAYLOAD_LIMIT_BYTES} go with a signal"
            )
        transfer = self._transfers.get(transfer_id)
        if transfer is None:
            return
        finish = Finish(payload, self._fence(), time.monotonic(), transfer.put_bytes)
        self._thread.call(transfer.post, finish)

    def cancel(self, transfer_id: str) -> None:
        """Stop; Cancelled follows, unless the transfer has ended by then."""
        self._thread.call(self._post, transfer_id, Stop(Cancelled(transfer_id)))

    def close(self) -> None:
        """Cancel all transfers, close all links and join the thread. Harmless twice."""
        self._thread.close(self._farewell, 2 * self._deadlines.stop_s)
        self._agent.close()
        if self._queue is not None:
            self._queue.close()

    # From here on everything runs on the sender's thread.

    def _start(self, transfer: Outgoing) -> None:
        transfer.task = self._thread.spawn(self._run(transfer), f"transfer {transfer.transfer_id}")
        self._watch(transfer)
        self._exchange.reach(transfer)

    def _note(self, transfer_ids: Sequence[str], ready: LayerReady) -> None:
        for transfer_id in transfer_ids:
            self._post(transfer_id, ready)

    def _note_each(self, notes: Sequence[tuple[str, LayerReady]]) -> None:
        for transfer_id, ready in notes:
            self._post(transfer_id, ready)

    def _post(self, transfer_id: str, happening: Happening) -> None:
        if (transfer := self._transfers.get(transfer_id)) is not None:
            transfer.post(happening)

    async def _run(self, transfer: Outgoing) -> None:
        """A transfer's task: everything from ``begin`` to its event."""
        try:
            outcome = await self._carry(transfer)
        except LinkError as error:
            # A put that broke off leaves the link of no use to the others. What of it is on its
            # way only the link's end can stop, so that, and no Stopped, is the last word.
            if transfer.grant is not None:
                transfer.grant.peer.fail(error)
                transfer.settled = True
            outcome = Failed(transfer.transfer_id, str(error))
        except Exception as error:
            logger.exception("transfer %s broke", transfer.transfer_id)
            outcome = Failed(transfer.transfer_id, f"{type(error).__name__}: {error}")
        if transfer.timer is not None:
            transfer.timer.cancel()
        self._exchange.settle(transfer, outcome)
        del self._transfers[transfer.transfer_id]
        try:
            self._on_event(outcome)
        except Exception:
            logger.exception("on_event broke on %s", outcome)

    async def _carry(self, transfer: Outgoing) -> SenderEvent:
        while True:
            if transfer.mailbox:
                outcome = transfer.take(transfer.mailbox.popleft())
                if outcome is not None:
                    return outcome
            elif transfer.may_put:
                await self._put(transfer, transfer.waiting.popleft())
                await asyncio.sleep(0)  # let frames and calls of others in, a stop above all
            elif transfer.may_signal:
                self._signal(transfer)
            else:
                await transfer.until_mail()

    def _watch(self, transfer: Outgoing) -> None:
        """Give a transfer up once nothing has moved for too long; else look again later."""
        limit_s = self._deadlines.answer_s if transfer.settled else self._deadlines.idle_s
        left_s = transfer.progress_s + limit_s - time.monotonic()
        if left_s <= 0 and transfer.is_overdue:
            reason = f"waited too long for {transfer.waits_for}"
            transfer.post(Stop(Failed(transfer.transfer_id, reason)))
            return
        transfer.is_overdue = left_s <= 0
        if transfer.timer is not None:
            transfer.timer.cancel()
        transfer.timer = asyncio.get_running_loop().call_later(
            GRACE_S if transfer.is_overdue else left_s, self._watch, transfer
        )

    async def _put(self, transfer: Outgoing, due: Due) -> None:
        assert transfer.grant is not None
        first, layer = max(due.first, transfer.grant.skipped), due.layer
        if first >= due.after:
            return
        stretch, moved = transfer.prepared(first, due.after), partial(self._moved, transfer)
        transfer.puts += await stretch.put(layer, due.fence, moved)
        if transfer.is_stopping or not self._checksum:
            return
        transfer.checksums[layer] = await asyncio.to_thread(
            layer_checksum,
            transfer.grant.peer.blocks,
            layer,
            transfer.blocks[first : due.after],
            transfer.checksums.get(layer, ()),
        )

    def _moved(self, transfer: Outgoing, nbytes: int) -> bool:
        """Note, and tell the receiver if it is time, that so much more is put; False to stop."""
        assert transfer.grant is not None
        transfer.moved(nbytes)
        if transfer.progress_s - transfer.told_s >= self._deadlines.tell_period_s:
            transfer.told_s = transfer.progress_s
            transfer.grant.peer.send(Progress(transfer.grant.number, transfer.put_bytes))
        return not transfer.is_stopping

    def _signal(self, transfer: Outgoing) -> None:
        assert transfer.grant is not None and transfer.finish is not None
        transfer.settled = True
        self._watch(transfer)  # for the answer, which may take less long
        finish = transfer.finish
        same_host = transfer.address.host_identity == host_identity()
        checksums = None
        if self._checksum:
            checksums = [transfer.checksums.get(layer, []) for layer in range(transfer.layers)]
        transfer.grant.peer.send(
            Done(
                number=transfer.grant.number,
                payload=finish.payload,
                early_bytes=finish.early_bytes,
                puts=transfer.puts,
                put_s=time.monotonic() - finish.finished_s,
                finished_s=finish.finished_s if same_host else None,
                checksums=checksums,
            )
        )

    async def _farewell(self) -> None:
        transfers = list(self._transfers.values())
        for transfer in transfers:
            transfer.post(Stop(Cancelled(transfer.transfer_id)))
        try:
            async with asyncio.timeout(self._deadlines.stop_s):
                await asyncio.gather(*(transfer.task for transfer in transfers if transfer.task))
                await self._exchange.flush()
        except TimeoutError:
            logger.warning("closed the sender before all receivers took its last word")


def _fence_recorder(device: str) -> Callable[[], Fence]:
    if not device.startswith("cuda"):
        return lambda: None
    return lambda: record_fence(device)
