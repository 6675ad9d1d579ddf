"""A machine's end of its transfers: the ends of its ranks as one.

1. ``begin`` and ``expect`` make a part for each pair of ranks that share heads (``ranks``), each a
   transfer of its own between the two.
2. What a part's end reports (on that end's thread) goes into the transfer's ``_Parts``.
3. When the last part has ended the transfer has: with Sent or Arrived where all parts did. Where
   one failed the others at this end are cancelled first, so that all blocks come back at once.

A transfer of one part, as between machines of one rank each, passes straight through: both ends
call it by the transfer's own id, and only their first ranks have to do with it (``ranks``).
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import msgspec

from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.events import (
    Arrived,
    Failed,
    OnReceiverEvent,
    OnSenderEvent,
    ReceiverEvent,
    SenderEvent,
    Sent,
    TransferStats,
)
from splitwise.transfer.ranks import part_id, parts_of, rank_id
from splitwise.transfer.receiver import KVReceiver
from splitwise.transfer.sender import KVSender

Event = ReceiverEvent | SenderEvent


@dataclass
class _Parts:
    """A transfer's parts at this end, by their ids: which rank has it, and how it ended."""

    ranks: dict[str, int]
    ended: list[Event] = field(default_factory=list)
    is_given_up: bool = False


class _Transfers:
    """The transfers of one end that have several parts."""

    def __init__(self, cancel: Callable[[int, str], None], first: int) -> None:
        """``cancel`` a part: its rank, its id. ``first`` is this end's first rank."""
        self._cancel = cancel
        self._first = first
        self.by_id: dict[str, _Parts] = {}
        self._transfer_of: dict[str, str] = {}
        self._lock = threading.Lock()

    def add(self, transfer_id: str, ranks: Mapping[str, int]) -> None:
        """Enter a transfer; ``ranks`` is who has its parts of this end, by id.

        Raises:
            ValueError: the id is in use.
        """
        with self._lock:
            if transfer_id in self.by_id:
                raise ValueError(f"transfer_id {transfer_id!r} is in use: take a new one a try")
            self.by_id[transfer_id] = _Parts(dict(ranks))
            for id_ in ranks:
                self._transfer_of[id_] = transfer_id

    def drop(self, transfer_id: str) -> None:
        """It was not begun after all."""
        with self._lock:
            parts = self.by_id.pop(transfer_id, None)
            for part in parts.ranks if parts is not None else ():
                del self._transfer_of[part]

    def parts(self, transfer_id: str) -> Mapping[str, int]:
        """Which rank has each part; of one that has ended nothing that a rank knows."""
        parts = self.by_id.get(transfer_id)
        return parts.ranks if parts is not None else {transfer_id: self._first}

    def on_event(self, report: Callable[[Event], None], event: Event) -> None:
        """A part has ended."""
        if event.transfer_id not in self._transfer_of:
            report(event)
            return
        with self._lock:
            transfer_id = self._transfer_of.pop(event.transfer_id)
            parts = self.by_id[transfer_id]
            parts.ended.append(event)
            is_over = len(parts.ended) == len(parts.ranks)
            if is_over:
                del self.by_id[transfer_id]
            gives_up = isinstance(event, Failed) and not parts.is_given_up
            parts.is_given_up = parts.is_given_up or gives_up
        if is_over:
            report(_outcome(transfer_id, parts.ended))
        elif gives_up:
            for part, rank in parts.ranks.items():
                self._cancel(rank, part)


_NOTHING = TransferStats("shared_memory", bytes=0, early_bytes=0, visible_s=0, puts=0)
"""What a rank has sent that had nothing to send."""


class MachineSender:
    """The senders of a machine's ranks, in their order."""

    def __init__(
        self,
        all_heads: int,
        ranks: int,
        make: Callable[[str, int, OnSenderEvent], KVSender],
        machine_id: str,
        on_event: OnSenderEvent,
        own: Sequence[int] | None = None,
    ) -> None:
        """``make`` makes a rank's sender: its id, its number, what it reports to. ``on_event`` is
        called once for each ``begin``, on a sender's thread. Where the ranks are in several
        processes ``own`` are those of this one, which does their share of each transfer."""
        self._all_heads = all_heads
        self._count = ranks
        self._on_event = on_event
        own = range(ranks) if own is None else own
        self._transfers = _Transfers(lambda rank, part: self._ranks[rank].cancel(part), own[0])
        report = partial(self._transfers.on_event, on_event)  # type: ignore[arg-type]
        self._ranks = {rank: make(rank_id(machine_id, rank, ranks), rank, report) for rank in own}

    def begin(
        self,
        transfer_id: str,
        target: Sequence[ReceiverAddress],
        blocks: Sequence[int],
        all_ready: bool = False,
        table_blocks: int | None = None,
    ) -> None:
        """As ``KVSender.begin``, to the ranks of a machine."""
        parts = parts_of(self._all_heads, self._count, len(target))
        if len(parts) == 1 and transfer_id not in self._transfers.by_id:
            self._ranks[0].begin(transfer_id, target[0], blocks, all_ready, table_blocks)
            return
        ids = {
            part_id(transfer_id, part, len(parts)): part
            for part in parts
            if part.source in self._ranks
        }
        if not ids:  # other ranks that hold the same heads send them
            self._on_event(Sent(transfer_id, _NOTHING))
            return
        self._transfers.add(transfer_id, {id_: part.source for id_, part in ids.items()})
        try:
            for id_, part in ids.items():
                self._ranks[part.source].begin(
                    id_, target[part.target], blocks, all_ready, table_blocks
                )
        except ValueError:
            self._transfers.drop(transfer_id)
            raise

    def extend(self, transfer_id: str, blocks: Sequence[int]) -> None:
        """As ``KVSender.extend``, of all ranks."""
        for part, rank in self._transfers.parts(transfer_id).items():
            self._ranks[rank].extend(part, blocks)

    def layer_ready(
        self, transfer_ids: Sequence[str], layer: int, upto: Sequence[int] | None = None
    ) -> None:
        """As ``KVSender.layer_ready``, of all ranks."""
        by_rank: dict[int, list[str]] = {rank: [] for rank in self._ranks}
        entries: dict[int, list[int]] = {rank: [] for rank in self._ranks}
        for index, transfer_id in enumerate(transfer_ids):
            for part, rank in self._transfers.parts(transfer_id).items():
                by_rank[rank].append(part)
                if upto is not None:
                    entries[rank].append(upto[index])
        for rank, parts in by_rank.items():
            if parts:
                self._ranks[rank].layer_ready(parts, layer, upto and entries[rank])

    def held(self, transfer_id: str, upto: int) -> None:
        """As ``KVSender.held``, of all ranks."""
        for part, rank in self._transfers.parts(transfer_id).items():
            self._ranks[rank].held(part, upto)

    def finish(self, transfer_id: str, payload: bytes) -> None:
        """As ``KVSender.finish``."""
        for part, rank in self._transfers.parts(transfer_id).items():
            self._ranks[rank].finish(part, payload)

    def cancel(self, transfer_id: str) -> None:
        """As ``KVSender.cancel``."""
        for part, rank in self._transfers.parts(transfer_id).items():
            self._ranks[rank].cancel(part)

    def close(self) -> None:
        for sender in self._ranks.values():
            sender.close()


class MachineReceiver:
    """The receivers of a machine's ranks, in their order."""

    def __init__(
        self,
        all_heads: int,
        ranks: int,
        make: Callable[[str, int, OnReceiverEvent], KVReceiver],
        machine_id: str,
        on_event: OnReceiverEvent,
        own: Sequence[int] | None = None,
    ) -> None:
        """As ``MachineSender``."""
        self._all_heads = all_heads
        self._count = ranks
        own = range(ranks) if own is None else own
        self._transfers = _Transfers(lambda rank, part: self._ranks[rank].cancel(part), own[0])
        report = partial(self._transfers.on_event, on_event)  # type: ignore[arg-type]
        self._ranks = {rank: make(rank_id(machine_id, rank, ranks), rank, report) for rank in own}
        self.addresses = [receiver.address for receiver in self._ranks.values()]
        """One a rank of this process; plain data, for senders."""

    def expect(
        self,
        transfer_id: str,
        source_id: str,
        source_ranks: int,
        blocks: Sequence[int],
        skipped: int = 0,
    ) -> None:
        """As ``KVReceiver.expect``, from a machine of so many ranks."""
        parts = parts_of(self._all_heads, source_ranks, self._count)
        if len(parts) == 1 and transfer_id not in self._transfers.by_id:
            self._ranks[0].expect(transfer_id, source_id, blocks, skipped)
            return
        ids = {
            part_id(transfer_id, part, len(parts)): part
            for part in parts
            if part.target in self._ranks
        }
        self._transfers.add(transfer_id, {id_: part.target for id_, part in ids.items()})
        try:
            for id_, part in ids.items():
                sender_id = rank_id(source_id, part.source, source_ranks)
                self._ranks[part.target].expect(id_, sender_id, blocks, skipped)
        except ValueError:
            self._transfers.drop(transfer_id)
            raise

    def cancel(self, transfer_id: str) -> None:
        """As ``KVReceiver.cancel``."""
        for part, rank in self._transfers.parts(transfer_id).items():
            self._ranks[rank].cancel(part)

    def close(self) -> None:
        for receiver in self._ranks.values():
            receiver.close()


def _outcome(transfer_id: str, ended: Sequence[Event]) -> Event:
    """Of a transfer whose parts have ended so: as the worst of them."""
    for event in ended:
        if isinstance(event, Failed):
            return Failed(transfer_id, event.reason)
    done = [event for event in ended if isinstance(event, Sent | Arrived)]
    if len(done) < len(ended):
        worst = next(event for event in ended if event not in done)
        return msgspec.structs.replace(worst, transfer_id=transfer_id)
    stats = _together([event.stats for event in done])
    return msgspec.structs.replace(done[0], transfer_id=transfer_id, stats=stats)


def _together(stats: Sequence[TransferStats]) -> TransferStats:
    return TransferStats(
        transport=stats[0].transport,
        bytes=sum(each.bytes for each in stats),
        early_bytes=sum(each.early_bytes for each in stats),
        visible_s=max(each.visible_s for each in stats),
        puts=sum(each.puts for each in stats),
    )
