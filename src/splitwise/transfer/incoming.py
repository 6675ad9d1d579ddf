"""One transfer as the receiver sees it."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from splitwise.transfer.channel import Channel
from splitwise.transfer.device_blocks import DeviceBlocks
from splitwise.transfer.errors import LinkError
from splitwise.transfer.events import ReceiverEvent, TransferStats
from splitwise.transfer.frames import Done, Progress
from splitwise.transfer.host_blocks import HostBlocks
from splitwise.transfer.link import Link
from splitwise.transfer.pairing import LayoutPair
from splitwise.transfer.transports.nixl import OpenWindow


@dataclass(eq=False)
class SenderLink:
    """An open link from one sender, with the transfers granted over it."""

    link: Link
    sender_id: str
    transport: str
    one_sided: bool
    """The sender writes into our cache by itself: only its word, or its end, makes that stop."""
    window: OpenWindow | None
    """Through this (NIXL), which is everybody's; closing it makes that stop, too."""
    task: "asyncio.Task[None] | None"
    pair: LayoutPair
    blocks: HostBlocks | DeviceBlocks
    """This end's, as they fit that sender's."""
    is_ready: bool = False
    """Its transport is open at the sender's end, too: it takes grants."""
    streams: list[Channel] = field(default_factory=list)
    transfers: "dict[int, Incoming]" = field(default_factory=dict)
    next_transfer: int = 0

    def find(self, number: int) -> "Incoming | None":
        """The live transfer ``number``, None for one that has ended.

        Raises:
            LinkError: never granted.
        """
        if number >= self.next_transfer:
            raise LinkError(f"transfer {number} was never granted on this link")
        return self.transfers.get(number)


@dataclass(eq=False, slots=True)
class Incoming:
    """Expected, then granted over a link; gone with its one event."""

    transfer_id: str
    sender_id: str
    blocks: list[int]
    skipped: int
    """So many entries of the request's block table come before ``blocks``, and are here already."""
    timer: asyncio.TimerHandle | None = None
    progress_s: float = field(default_factory=time.monotonic)
    """When something last happened to it, or moved."""
    moved_bytes: int = 0
    """Landed here, then verified."""
    told_s: float = 0.0
    """When the sender last heard of progress, or was granted it."""
    heard_bytes: int = 0
    """Progress that the sender has told of."""
    is_overdue: bool = False
    """Its deadline has passed; it has one last chance to show progress."""
    over: SenderLink | None = None
    number: int = -1
    done: Done | None = None
    outcome: ReceiverEvent | None = None
    """Set once it is stopped or over: nothing is written any more, and this is its event."""
    pieces: "Pieces | None" = None
    """What has arrived, where the receiver does the writing (TCP)."""
    stores: int = 0
    """Copies into its blocks that a device has not passed yet; it does not end before."""
    window: OpenWindow | None = None
    """What it was granted through (NIXL), while its sender may write."""
    when_stored: Callable[[], None] | None = None

    @contextmanager
    def storing(self) -> Iterator[bool]:
        """Around such a copy. Gives whether it may be made: not once the transfer is over."""
        may_store = self.outcome is None
        self.stores += may_store
        try:
            yield may_store
        finally:
            self.stores -= may_store
            if not self.stores and self.when_stored is not None:
                self.when_stored()

    def note_progress(self) -> None:
        self.progress_s = time.monotonic()
        self.is_overdue = False

    def moved(self, nbytes: int, tell_period_s: float) -> None:
        """So many more bytes have landed or are verified; the sender hears of it now and then."""
        self.moved_bytes += nbytes
        self.note_progress()
        if self.over is not None and self.progress_s - self.told_s >= tell_period_s:
            self.told_s = self.progress_s
            self.over.link.send(Progress(self.number, self.moved_bytes))

    def hear(self, moved_bytes: int) -> None:
        """The sender says how far it is."""
        if moved_bytes > self.heard_bytes:
            self.heard_bytes = moved_bytes
            self.note_progress()

    def stats(self, done: Done) -> TransferStats:
        """What it cost, as seen the moment it is complete."""
        assert self.over is not None
        visible_s = done.put_s
        if done.finished_s is not None:
            visible_s = time.monotonic() - done.finished_s
        return TransferStats(
            transport=self.over.transport,
            bytes=len(self.blocks) * self.over.pair.all_layers_bytes,
            early_bytes=done.early_bytes,
            visible_s=visible_s,
            puts=done.puts,
        )


class Pieces:
    """Which chunks of a transfer have come over the streams, each exactly once."""

    def __init__(self, layers: int, blocks: list[int]) -> None:
        self._layers = layers
        self._blocks = blocks
        self._seen = bytearray(layers * len(blocks))
        self._missing = len(self._seen)

    @property
    def complete(self) -> bool:
        return self._missing == 0

    def place(self, layer: int, first: int, count: int) -> list[int]:
        """The ``count`` blocks of the table from its ``first`` entry on.

        Raises:
            LinkError: outside what was granted, or sent before.
        """
        if layer >= self._layers or not 0 < count <= len(self._blocks) - first:
            raise LinkError(
                f"piece of layer {layer}, entries {first} to {first + count}, for a transfer of "
                f"{self._layers} layers and {len(self._blocks)} blocks"
            )
        at = layer * len(self._blocks) + first
        if any(self._seen[at : at + count]):
            raise LinkError(f"piece of layer {layer}, entries from {first}, came twice")
        self._seen[at : at + count] = b"\1" * count
        return self._blocks[first : first + count]

    def landed(self, count: int) -> None:
        self._missing -= count
