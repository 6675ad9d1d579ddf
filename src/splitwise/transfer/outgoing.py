"""One transfer as the sender sees it, and what can happen to it."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field

from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.events import Cancelled, Failed, SenderEvent, Sent, TransferStats
from splitwise.transfer.peer import Peer
from splitwise.transfer.transports.base import Fence, Lane


@dataclass(frozen=True)
class LayerReady:
    """Engine: this layer's keys and values are written once ``fence`` has passed."""

    layer: int
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


@dataclass(frozen=True)
class Answered:
    """Receiver: all there, and what it cost."""

    stats: TransferStats


@dataclass(frozen=True)
class Stop:
    """Anyone: no more puts; ``outcome`` ends the transfer."""

    outcome: Cancelled | Failed


Happening = LayerReady | Finish | Granted | Answered | Stop


@dataclass(eq=False)
class Outgoing:
    """From ``begin`` to its one event. Others write to ``mailbox``; its own task does the rest."""

    transfer_id: str
    address: ReceiverAddress
    blocks: list[int]
    layers: int
    progress_s: float = field(default_factory=time.monotonic)
    """When something last happened to it, or moved."""
    mailbox: deque[Happening] = field(default_factory=deque)
    waiting: deque[LayerReady] = field(default_factory=deque)
    """Ready and not yet put."""
    reported: set[int] = field(default_factory=set)
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
    put_layers: int = 0
    put_bytes: int = 0
    puts: int = 0
    checksums: dict[int, int] = field(default_factory=dict)

    @property
    def may_put(self) -> bool:
        return self.grant is not None and bool(self.waiting)

    @property
    def may_signal(self) -> bool:
        return self.finish is not None and self.put_layers == self.layers and not self.settled

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
            case Finish():
                self.finish = happening
                self.note_all_layers(happening.fence)
            case Granted():
                pass  # the sender has set it; the note wakes the task
            case Answered():
                return Sent(self.transfer_id, happening.stats)
            case Stop():
                return happening.outcome
        return None

    def note_all_layers(self, fence: Fence) -> None:
        """Those that were not reported before are ready, too."""
        if len(self.reported) == self.layers:
            return
        for layer in range(self.layers):
            if layer not in self.reported:
                self._layer_ready(LayerReady(layer, fence))

    def _layer_ready(self, ready: LayerReady) -> Failed | None:
        if not 0 <= ready.layer < self.layers or ready.layer in self.reported:
            reason = f"layer {ready.layer} was reported twice, or is not one of {self.layers}"
            return Failed(self.transfer_id, reason)
        self.reported.add(ready.layer)
        self.waiting.append(ready)
        return None

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
