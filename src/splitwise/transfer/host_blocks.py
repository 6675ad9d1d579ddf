"""The blocks of a cache in host memory, as one end of a pair sees them."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import HostMemory
from splitwise.transfer.pairing import Place

Runs = Sequence[tuple[int, int]]
"""A block table, or a part of it, as (first block, length)."""


class Blocks(Protocol):
    """What may be read of a cache wherever it lies."""

    def by_strip(self, layer: int, runs: Runs) -> list[list[memoryview]]:
        """The bytes that move of these blocks in each strip of a layer."""


class HostBlocks:
    """``places`` is what moves at this end, by layer and strip."""

    def __init__(
        self, memory: HostMemory, layout: CacheLayout, places: Sequence[Sequence[Place]]
    ) -> None:
        self._regions = [
            memory.buffer[at : at + layout.region_bytes(index)]
            for index in range(len(layout.regions))
            for at in [layout.region_offset_bytes(index)]
        ]
        self._blocks = layout.blocks
        self._places = places

    def arrays(self, layer: int) -> list[npt.NDArray[np.uint8]]:
        """The layer's strips, each ``[blocks, nbytes]``."""
        return [
            np.ndarray(
                (self._blocks, place.nbytes),
                np.uint8,
                self._regions[place.region],
                place.offset_bytes,
                (place.stride_bytes, 1),
            )
            for place in self._places[layer]
        ]

    def spans(self, layer: int, runs: Runs) -> list[memoryview]:
        """``by_strip``, one strip after the other: straight in the cache, to be read or written."""
        return [  # not by way of by_strip: this is asked for every piece over TCP, at both ends
            self._regions[place.region][at : at + nbytes]
            for place in self._places[layer]
            for first, count in runs
            for at, nbytes in _spans(place, first, count)
        ]

    def by_strip(self, layer: int, runs: Runs) -> list[list[memoryview]]:
        return [
            [
                self._regions[place.region][at : at + nbytes]
                for first, count in runs
                for at, nbytes in _spans(place, first, count)
            ]
            for place in self._places[layer]
        ]


def _spans(place: Place, first: int, count: int) -> list[tuple[int, int]]:
    at = place.offset_bytes + first * place.stride_bytes
    if place.is_dense:
        return [(at, count * place.nbytes)]
    return [(at + block * place.stride_bytes, place.nbytes) for block in range(count)]
