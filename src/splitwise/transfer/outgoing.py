"""One transfer as the sender sees it, and what can happen to it."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.events import Cancelled, Failed, SenderEvent, Sent, TransferStats
from splitwise.transfer.peer import Peer
from splitwise.transfer.transports.base import Fence, Lane, Stretch


@dataclass(frozen=True)
class LayerReady:
    """Engine: keys and values of the table's first ``upto`` entries, of all that it will have where
    that is None, are written in this layer once ``fence`` has passed."""

    layer: int
    fence: Fence
    upto: int | None = None


@dataclass(frozen=True)
class Held:
    """Engine: those of the first ``upto`` entries are written in all layers."""

    upto: int
    fence: Fence


@dataclass(frozen=True)
class Finish:
    """Worker: all layers are written, and this goes with the signal."""

    payload: bytes
    fence: Fence
    finished_s: float
    early_bytes: int


@dataclass(frozen=True)
class Granted:
    """Receiver: put it over this lane."""

    peer: Peer
    number: int
    lane: Lane
    skipped: int
    """So many first entries of the table are there already."""


@dataclass(frozen=True)
class Answered:
    """Receiver: all there, and what it cost."""

    stats: TransferStats


@dataclass(frozen=True)
class Stop:
    """Anyone: no more puts; ``outcome`` ends the transfer."""

    outcome: Cancelled | Failed


Happening = LayerReady | Held | Finish | Granted | Answered | Stop


@dataclass(frozen=True)
class Due:
    """Entries ``first`` to ``after`` of the table, written in ``layer`` and to be put."""

    layer: int
    first: int
    after: int
    fence: Fence


@dataclass(eq=False, slots=True)
class Outgoing:
    """From ``begin`` to its one event. Others write to ``mailbox``; its own task does the rest."""

    transfer_id: str
    address: ReceiverAddress
    blocks: list[int]
    """The block table as far as it is known; ``extend`` adds to its end from another thread."""
    table_blocks: int
    """How long it will be."""
    layers: int
    progress_s: float = field(default_factory=time.monotonic)
    """When something last happened to it, or moved."""
    mailbox: deque[Happening] = field(default_factory=deque)
    waiting: deque[Due] = field(default_factory=deque)
    """Ready and not yet put, in the order in which that was said."""
    ready: list[int] = field(init=False)
    """By layer: so many entries of the table are."""
    grant: Granted | None = None
    finish: Finish | None = None
    settled: bool = False
    """The receiver has been told the last of it: Done or Stopped."""
    is_stopping: bool = False
    """A Stop lies in the mailbox: a put that is under way need not go on."""
    told_s: float = 0.0
    """When the receiver last heard of progress, or granted it."""
    heard_bytes: int = 0
    """Progress that the receiver has told of."""
    task: "asyncio.Task[None] | None" = None
    timer: asyncio.TimerHandle | None = None
    is_overdue: bool = False
    """Its deadline has passed; it has one last chance to show progress."""
    _reader: "asyncio.Future[None] | None" = None
    """Its task, while that waits for mail."""
    put_bytes: int = 0
    puts: int = 0
    checksums: dict[int, list[int]] = field(default_factory=dict)
    """By layer: of what is put."""
    stretch: Stretch | None = None
    """The one that was put last, from ``stretch_at``: most are put in one layer after another."""
    stretch_at: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        self.ready = [0] * self.layers

    @property
    def may_put(self) -> bool:
        return self.grant is not None and bool(self.waiting)

    @property
    def may_signal(self) -> bool:
        is_all_due = self.grant is not None and self.finish is not None
        return is_all_due and not self.waiting and not self.settled

    def post(self, happening: Happening) -> None:
        """Tell its task what has happened."""
        self.is_stopping = self.is_stopping or isinstance(happening, Stop)
        self.mailbox.append(happening)
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)

    async def until_mail(self) -> None:
        """Wait for what happens next."""
        self._reader = asyncio.get_running_loop().create_future()
        await self._reader

    def moved(self, nbytes: int) -> None:
        """So many more bytes are put."""
        self.put_bytes += nbytes
        self.progress_s = time.monotonic()

    def hear(self, moved_bytes: int) -> None:
        """The receiver says how far it is."""
        if moved_bytes > self.heard_bytes:
            self.heard_bytes = moved_bytes
            self.progress_s = time.monotonic()

    def take(self, happening: Happening) -> SenderEvent | None:
        """Note what has happened. Returns the transfer's event where this ends it."""
        self.progress_s = time.monotonic()
        match happening:
            case LayerReady():
                return self._layer_ready(happening)
            case Held():
                return self._held(happening)
            case Finish():
                return self._finish(happening)
            case Granted():
                pass  # the sender has set it; the note wakes the task
            case Answered():
                return Sent(self.transfer_id, happening.stats)
            case Stop():
                return happening.outcome
        return None

    def note_all_layers(self, upto: int, fence: Fence) -> None:
        """The first ``upto`` entries are ready wherever that was not reported before."""
        if min(self.ready) >= upto:
            return
        for layer in range(self.layers):
            self._note(layer, upto, fence)

    def prepared(self, first: int, after: int) -> Stretch:
        """These entries, for the lane that was granted."""
        if self.stretch is None or self.stretch_at != (first, after):
            assert self.grant is not None
            place = first - self.grant.skipped
            self.stretch = self.grant.lane(place, self.blocks[first:after])
            self.stretch_at = first, after
        return self.stretch

    def _layer_ready(self, ready: LayerReady) -> Failed | None:
        layer, upto = ready.layer, self.table_blocks if ready.upto is None else ready.upto
        if not 0 <= layer < self.layers or self.ready[layer] == self.table_blocks:
            reason = f"layer {layer} was reported twice, or is not one of {self.layers}"
            return Failed(self.transfer_id, reason)
        if upto > len(self.blocks):
            return self._too_far(f"layer {layer} was", upto)
        self._note(layer, upto, ready.fence)
        return None

    def _held(self, held: Held) -> Failed | None:
        if held.upto > len(self.blocks):
            return self._too_far("all layers were", held.upto)
        self.note_all_layers(held.upto, held.fence)
        return None

    def _finish(self, finish: Finish) -> Failed | None:
        if len(self.blocks) < self.table_blocks:
            return self._too_far("all layers were", self.table_blocks)
        self.finish = finish
        self.note_all_layers(self.table_blocks, finish.fence)
        return None

    def _note(self, layer: int, upto: int, fence: Fence) -> None:
        first = self.ready[layer]
        if upto > first:
            self.ready[layer] = upto
            self.waiting.append(Due(layer, first, upto, fence))

    def _too_far(self, what: str, upto: int) -> Failed:
        known = f"{len(self.blocks)} of {self.table_blocks} are known: extend it first"
        return Failed(
            self.transfer_id, f"{what} reported for the table's first {upto} blocks, but {known}"
        )

    @property
    def waits_for(self) -> str:
        """What a transfer that has run out of time was waiting for."""
        if self.finish is None:
            return "the prompt to finish"
        if self.grant is None:
            return f"{self.address.machine_id} to grant blocks"
        if not self.settled:
            return "its puts"
        return f"{self.address.machine_id} to answer"
