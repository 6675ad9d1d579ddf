"""The optional integrity check, against crc32 of bytes put together by hand."""

import zlib

import numpy as np

from splitwise.transfer import CacheLayout, HostMemory
from splitwise.transfer.checksum import layer_checksum
from splitwise.transfer.host_blocks import HostBlocks
from splitwise.transfer.pairing import LayoutPair

LAYOUT = CacheLayout.flat(layers=3, blocks=8, block_tokens=16, block_bytes=100)


def test_is_the_crc_of_the_chunks_in_table_order() -> None:
    with HostMemory(LAYOUT.total_bytes) as memory:
        blocks = HostBlocks(memory, LAYOUT, LayoutPair(LAYOUT, LAYOUT).at_source)
        cache = np.frombuffer(memory.buffer, np.uint8).reshape(3, 8, 100)
        cache[:] = np.random.default_rng(1).integers(0, 256, cache.shape)
        table = [6, 7, 2, 0]
        assert layer_checksum(blocks, 1, table) == [zlib.crc32(cache[1, table].tobytes())]


def test_chunks_in_each_others_place_show() -> None:
    with HostMemory(LAYOUT.total_bytes) as memory:
        blocks = HostBlocks(memory, LAYOUT, LayoutPair(LAYOUT, LAYOUT).at_source)
        cache = np.frombuffer(memory.buffer, np.uint8).reshape(3, 8, 100)
        cache[:] = np.random.default_rng(2).integers(0, 256, cache.shape)
        right = layer_checksum(blocks, 0, [1, 2, 3])
        assert layer_checksum(blocks, 0, [1, 3, 2]) != right
        cache[0, [2, 3]] = cache[0, [3, 2]]
        assert layer_checksum(blocks, 0, [1, 2, 3]) != right
        assert layer_checksum(blocks, 0, [1, 3, 2]) == right
