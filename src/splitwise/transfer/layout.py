"""The shape of a paged KV cache in memory: the one thing sender and receiver must agree on."""

from collections.abc import Sequence
from typing import Annotated

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]


class CacheLayout(msgspec.Struct, frozen=True):
    """A cache is ``layers x blocks`` chunks of ``block_bytes``, layer after layer.

    One chunk holds the keys and the values of ``block_tokens`` tokens in one layer. What lies
    inside a chunk is the engine's business; a transfer moves whole chunks. Blocks that follow
    each other are contiguous within a layer.
    """

    layers: Count
    blocks: Count
    block_tokens: Count
    block_bytes: Count

    @property
    def layer_bytes(self) -> int:
        return self.blocks * self.block_bytes

    @property
    def total_bytes(self) -> int:
        return self.layers * self.layer_bytes

    def offset_bytes(self, layer: int, block: int) -> int:
        """Where the chunk of ``block`` in ``layer`` begins, in bytes from the cache's start."""
        return layer * self.layer_bytes + block * self.block_bytes

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold ``tokens`` tokens."""
        return -(-tokens // self.block_tokens)

    def accepts(self, other: "CacheLayout") -> bool:
        """Whether chunks of ``other`` can be put into this cache (block counts may differ)."""
        return (self.layers, self.block_tokens, self.block_bytes) == (
            other.layers,
            other.block_tokens,
            other.block_bytes,
        )

    def check_blocks(self, blocks: Sequence[int]) -> None:
        """
        Raises:
            ValueError: no block, a block outside the cache, or one named twice.
        """
        if not blocks:
            raise ValueError("blocks is empty: a transfer moves at least one")
        if not 0 <= min(blocks) <= max(blocks) < self.blocks:
            raise ValueError(f"blocks {min(blocks)} to {max(blocks)} of a cache of {self.blocks}")
        if len(set(blocks)) != len(blocks):
            raise ValueError(f"a block is named twice in {list(blocks)}")
