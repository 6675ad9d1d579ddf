"""What a transfer tells the worker, from the transfer's own thread."""

from collections.abc import Callable
from typing import Annotated

import msgspec

NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class TransferStats(msgspec.Struct, frozen=True):
    """What one transfer cost."""

    transport: Annotated[str, msgspec.Meta(pattern="^(shared_memory|tcp|cuda_ipc|nixl)$")]
    bytes: NotNegative
    early_bytes: NotNegative
    """Bytes put before ``finish`` was called. Over TCP: handed to the sender's kernel by then."""
    visible_s: Annotated[float, msgspec.Meta(ge=0, le=1e9)]
    """From ``finish`` to the arrival of all bytes and the signal. Between hosts, whose clocks do
    not compare, it ends when the sender has handed the last byte to its kernel."""
    puts: NotNegative
    """Copies (shared memory, CUDA) or pieces (TCP) it took."""


class Arrived(msgspec.Struct, frozen=True):
    """Receiver: every byte is in place, and no writer will touch the blocks again."""

    transfer_id: str
    payload: bytes
    stats: TransferStats


class Released(msgspec.Struct, frozen=True):
    """Receiver: the answer to ``cancel``. No writer will touch the blocks again."""

    transfer_id: str


class Sent(msgspec.Struct, frozen=True):
    """Sender: the receiver has everything. The source blocks may be freed."""

    transfer_id: str
    stats: TransferStats


class Cancelled(msgspec.Struct, frozen=True):
    """Sender: the answer to ``cancel``. The source blocks are not read any more."""

    transfer_id: str


class Failed(msgspec.Struct, frozen=True):
    """Either end: the transfer will not arrive. The blocks at this end may be freed at once."""

    transfer_id: str
    reason: str


ReceiverEvent = Arrived | Released | Failed
"""Exactly one for each ``expect``."""

SenderEvent = Sent | Cancelled | Failed
"""Exactly one for each ``begin``."""

OnReceiverEvent = Callable[[ReceiverEvent], None]
OnSenderEvent = Callable[[SenderEvent], None]
