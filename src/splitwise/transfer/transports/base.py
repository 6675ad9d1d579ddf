"""The seam between a transfer and the wire: how a layer's blocks get into the receiver's cache.

1. With the grant a link's ``Transport`` opens the transfer's ``Lane``.
2. The lane prepares a ``Stretch`` for entries of the block table as they are written: all of them,
   or those of a chunk of the prompt.
3. The stretch is put layer by layer.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar

from splitwise.transfer.host_blocks import Blocks

Moved = Callable[[int], bool]
"""Told how many more bytes of a put are made; says whether to go on."""

Fence = object
"""What a device must pass before a layer may be read; None in host memory. See ``cuda_ipc``."""


class Stretch(ABC):
    """Entries of a transfer's block table that follow each other, prepared for all layers."""

    @abstractmethod
    async def put(self, layer: int, fence: Fence, moved: Moved) -> int:
        """Put these blocks of one layer, and return in how many copies or pieces.

        ``moved`` hears of every few megabytes; where it says so the rest is left out. On return the
        source may change, and nothing is under way: the bytes are in place, or, over TCP, in the
        kernel's hands.

        Raises:
            LinkError: the peer does not take them, or is gone.
        """


Lane = Callable[[int, Sequence[int]], Stretch]
"""One transfer's way into the blocks it was granted. Of ``first`` and ``source`` it makes the
stretch in which block ``source[i]`` here becomes the granted block ``first + i`` there."""


class Transport(ABC):
    """The sender's end of one link's data path. Lives on the sender's thread."""

    name: ClassVar[str]
    source: Blocks
    """This end's blocks."""

    @abstractmethod
    def lane(self, number: int, target: Sequence[int]) -> Lane:
        """Of transfer ``number``, which was granted the blocks ``target``."""

    @abstractmethod
    def close(self) -> None:
        """Let go of the receiver's memory or of the streams to it. No put is under way."""
