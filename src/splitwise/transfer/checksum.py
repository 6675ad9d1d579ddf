"""Optional integrity check: one crc32 a layer, over its chunks in the order of the block table.

The order is the request's, not the memory's, so sender and receiver agree whatever blocks they
use and however the runs were merged and striped, and chunks in the wrong place show.
"""

import zlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import CacheMemory, HostMemory
from splitwise.transfer.runs import contiguous

if TYPE_CHECKING:
    from splitwise.transfer.transports.cuda_ipc import DeviceMemory


def layer_checksum(
    memory: CacheMemory, layout: CacheLayout, layer: int, blocks: Sequence[int]
) -> int:
    """The crc32 of ``blocks`` in one layer. A device's cache is read through host memory."""
    checksum = 0
    for block, count in contiguous(blocks):
        at = layout.offset_bytes(layer, block)
        checksum = zlib.crc32(_read(memory, at, count * layout.block_bytes), checksum)
    return checksum


def mismatch(
    memory: CacheMemory,
    layout: CacheLayout,
    blocks: Sequence[int],
    checksums: Sequence[int],
    verified: Callable[[int], object],
) -> str:
    """Why ``blocks`` cannot be taken; empty where they can. ``verified`` hears of bytes read."""
    for layer, expected in enumerate(checksums):
        actual = layer_checksum(memory, layout, layer, blocks)
        verified(len(blocks) * layout.block_bytes)
        if actual != expected:
            return f"layer {layer} arrived with checksum {actual:#x}, sent with {expected:#x}"
    return ""


def _read(memory: CacheMemory, at: int, nbytes: int) -> memoryview:
    if isinstance(memory, HostMemory):
        return memory.buffer[at : at + nbytes]
    tensor = cast("DeviceMemory", memory).tensor
    return memoryview(tensor[at : at + nbytes].cpu().numpy())
