"""A machine's ranks: what is asked of all of them at once, wherever they run.

One rank runs in this process, several in processes of their own, which vLLM starts. There ``wake``
cannot reach us: what they have to say is heard in the next step.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

import msgspec

from splitwise.transfer import CacheLayout, ReceiverAddress

if TYPE_CHECKING:
    from splitwise.engine.vllm.rank_side import OpenEnds, RankSide

CallRanks = Callable[..., list[Any]]
"""Runs a function in every rank, its vLLM worker before the other ``args``."""


class Ranks:
    """All of a machine's, in their order."""

    def __init__(self, call: CallRanks, count: int) -> None:
        self._call = call
        self.count = count
        first: CacheLayout = call(_layout)[0]
        self.layout = msgspec.structs.replace(first, first_head=0, heads=first.all_heads)
        """Of the whole machine's cache."""
        self._here = _rank_side() if count == 1 else None

    @property
    def steps(self) -> int:
        """Layers computed so far, as far as it is known here."""
        return self._here.steps if self._here is not None else 0

    @property
    def can_wake(self) -> bool:
        """Whether the ``wake`` of ``open`` is called."""
        return self._here is not None

    def open(self, open_ends: "OpenEnds", wake: Callable[[], None]) -> list[ReceiverAddress]:
        """Open the ends of a session, one pair a rank."""
        args = (open_ends, wake if self.can_wake else None)
        return [address for addresses in self._call(_open, args=args) for address in addresses]

    def close(self) -> None:
        """As ``RankSide.close``, of all."""
        self._call(_close)


def _rank_side() -> "RankSide":
    from vllm.distributed.kv_transfer import get_kv_transfer_group

    from splitwise.engine.vllm.connector import SplitwiseConnector

    return cast(SplitwiseConnector, get_kv_transfer_group()).rank_side


def _layout(_: Any) -> CacheLayout:
    return _rank_side().layout


def _open(_: Any, open_ends: "OpenEnds", wake: Callable[[], None] | None) -> list[ReceiverAddress]:
    return _rank_side().open(open_ends, wake)


def _close(_: Any) -> None:
    _rank_side().close()
