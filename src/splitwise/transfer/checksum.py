"""Optional integrity check: of a layer one crc32 a strip, over what moves of it.

The order is the request's, not the memory's, so sender and receiver agree whatever blocks they
use and however the table was cut, merged and striped, and blocks in the wrong place show.
"""

import zlib
from collections.abc import Callable, Sequence

from splitwise.transfer.host_blocks import Blocks
from splitwise.transfer.runs import contiguous


def layer_checksum(
    cache: Blocks, layer: int, blocks: Sequence[int], before: Sequence[int] = ()
) -> list[int]:
    """The crc32 of ``blocks`` in each strip of one layer; ``before`` is that of those before."""
    strips = cache.by_strip(layer, contiguous(blocks))
    checksums = list(before) or [0] * len(strips)
    for index, spans in enumerate(strips):
        for span in spans:
            checksums[index] = zlib.crc32(span, checksums[index])
    return checksums


def mismatch(
    cache: Blocks,
    blocks: Sequence[int],
    checksums: Sequence[list[int]],
    verified: Callable[[int], object],
) -> str:
    """Why ``blocks`` cannot be taken; empty where they can. ``verified`` hears of each layer."""
    for layer, expected in enumerate(checksums):
        actual = layer_checksum(cache, layer, blocks)
        verified(layer)
        if actual != expected:
            return f"layer {layer} arrived with checksum {_hex(actual)}, sent with {_hex(expected)}"
    return ""


def _hex(checksums: Sequence[int]) -> str:
    return " ".join(map(hex, checksums))
