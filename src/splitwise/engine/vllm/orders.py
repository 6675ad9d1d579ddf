"""What the two sides of the connector say to each other, once a step each way."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Self

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorMetadata,
    KVConnectorWorkerMetadata,
)

from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.events import ReceiverEvent, SenderEvent


@dataclass(frozen=True)
class Begin:
    """A prompt's first chunk is in this step. ``blocks`` is the table so far, of ``table_blocks``
    in all; the first ``held`` were there before."""

    request_id: str
    target: Sequence[ReceiverAddress]
    blocks: list[int]
    table_blocks: int
    held: int


@dataclass(frozen=True)
class Expect:
    """A cache will come; the first ``skipped`` blocks of its table are here."""

    request_id: str
    source_id: str
    source_ranks: int
    blocks: list[int]
    skipped: int


@dataclass
class StepOrders(KVConnectorMetadata):
    """To every rank, before the step computes."""

    expects: list[Expect] = field(default_factory=list)
    begins: list[Begin] = field(default_factory=list)
    extends: dict[str, list[int]] = field(default_factory=dict)
    """Blocks that this step's chunk adds to a table."""
    fills: dict[str, int] = field(default_factory=dict)
    """So many blocks of a table are full when a layer of this step is done."""
    whole: list[Begin] = field(default_factory=list)
    """Short prompts: begun when the last layer is done."""
    finishes: dict[str, bytes] = field(default_factory=dict)
    """Transfers whose first token is known, with it."""
    stops: set[str] = field(default_factory=set)
    """Transfers out that are wanted no more. Nothing of those in ``preempted`` may be read when
    the step writes into blocks."""
    refusals: set[str] = field(default_factory=set)
    """Transfers in that are wanted no more."""
    preempted: set[str] = field(default_factory=set)

    @property
    def is_empty(self) -> bool:
        """Whether it changes nothing."""
        return not any(vars(self).values())


@dataclass
class RankNews(KVConnectorWorkerMetadata):
    """From a rank, after the step: how transfers ended, by request."""

    sent: dict[str, list[SenderEvent]] = field(default_factory=dict)
    received: dict[str, list[ReceiverEvent]] = field(default_factory=dict)

    def aggregate(self, other: KVConnectorWorkerMetadata) -> Self:
        assert isinstance(other, RankNews)
        for request_id, sent in other.sent.items():
            self.sent.setdefault(request_id, []).extend(sent)
        for request_id, received in other.received.items():
            self.received.setdefault(request_id, []).extend(received)
        return self
