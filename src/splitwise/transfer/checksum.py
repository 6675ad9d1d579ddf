"""Optional integrity check: one crc32 a layer, over what moves of it in the pair's order.

The order is the request's, not the memory's, so sender and receiver agree whatever blocks they
use and however the runs were merged and striped, and blocks in the wrong place show.
"""

import zlib
from collections.abc import Callable, Sequence

from splitwise.transfer.host_blocks import Blocks
from splitwise.transfer.runs import contiguous


def layer_checksum(cache: Blocks, layer: int, blocks: Sequence[int]) -> int:
    """The crc32 of ``blocks`` in one layer."""
    checksum = 0
    for span in cache.spans(layer, contiguous(blocks)):
        checksum = zlib.crc32(span, checksum)
    return checksum


def mismatch(
    cache: Blocks,
    blocks: Sequence[int],
    checksums: Sequence[int],
    verified: Callable[[int], object],
) -> str:
    """Why ``blocks`` cannot be taken; empty where they can. ``verified`` hears of each layer."""
    for layer, expected in enumerate(checksums):
        actual = layer_checksum(cache, layer, blocks)
        verified(layer)
        if actual != expected:
            return f"layer {layer} arrived with checksum {actual:#x}, sent with {expected:#x}"
    return ""
