"""The seam between a transfer and the wire: how a layer's blocks get into the receiver's cache."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from splitwise.transfer.host_blocks import Blocks

Moved = Callable[[int], bool]
"""Told how many more bytes of a put are made; says whether to go on."""

Fence = object
"""What a device must pass before a layer may be read; None in host memory. See ``cuda_ipc``."""


class Lane(ABC):
    """One transfer's way from its source blocks into the blocks it was granted."""

    @abstractmethod
    async def put(self, layer: int, fence: Fence, moved: Moved) -> int:
        """Put all blocks of one layer, and return in how many copies or pieces.

        ``moved`` hears of every few megabytes; where it says so the rest is left out. On return the
        source may change, and nothing is under way: the bytes are in place, or, over TCP, in the
        kernel's hands.

        Raises:
            LinkError: the peer does not take them, or is gone.
        """


class Transport(ABC):
    """The sender's end of one link's data path. Lives on the sender's thread."""

    name: ClassVar[str]
    source: Blocks
    """This end's blocks."""

    @abstractmethod
    def lane(self, number: int, source: Sequence[int], target: Sequence[int]) -> Lane:
        """Prepare transfer ``number``: block ``source[i]`` here becomes ``target[i]`` there."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the receiver's memory or of the streams to it. No put is under way."""
