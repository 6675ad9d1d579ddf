"""The shape of a paged KV cache in memory: the one thing sender and receiver must agree on.

A cache is a list of regions, each a stretch of memory of its own: one for all layers, one a layer,
or keys and values apart. Inside a block the heads come first, so that what one rank of a
tensor-parallel machine holds of a block is one contiguous piece (``of_rank``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import msgspec

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
Index = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Layers = Annotated[int, msgspec.Meta(ge=1, le=4096)]


class Region(msgspec.Struct, frozen=True, array_like=True):
    """A stretch of memory, in this order: ``[layers, blocks, parts, heads, head_bytes]``.

    ``head_bytes`` is what one head takes of a block and part in one layer. A region has one part
    where a head's keys and values follow each other, or where it holds only one of the two; two
    where each block has the keys of all heads before their values.
    """

    first_layer: Index
    layers: Layers
    head_bytes: Count
    parts: Annotated[int, msgspec.Meta(ge=1, le=16)] = 1


@dataclass(frozen=True)
class Plane:
    """One part of every block in one layer: of block ``b`` it holds the heads that begin
    ``offset_bytes + b * stride_bytes`` into the region."""

    region: int
    offset_bytes: int
    stride_bytes: int
    head_bytes: int


class CacheLayout(msgspec.Struct, frozen=True):
    """What a rank holds: ``heads`` KV heads from ``first_head`` on, of a model's ``all_heads``.

    A block holds ``block_tokens`` tokens. Regions are in the order of what they hold of a layer:
    keys before values.
    """

    layers: Layers
    blocks: Count
    block_tokens: Count
    heads: Count
    all_heads: Count
    regions: tuple[Region, ...]
    first_head: Index = 0
    form: str = ""
    """How a head's bytes are laid out, where an engine other than our own does it: sizes alone do
    not tell."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a layer lies in no region, or there is more than the layers or heads.
        """
        if self.first_head + self.heads > self.all_heads:
            raise ValueError(
                f"heads {self.first_head} to {self.first_head + self.heads} of {self.all_heads}"
            )
        held = {
            layer
            for region in self.regions
            for layer in range(region.first_layer, region.first_layer + region.layers)
        }
        if held != set(range(self.layers)):
            raise ValueError(f"{self.layers} layers, but the regions hold {sorted(held)[:10]} ...")

    @classmethod
    def flat(
        cls, layers: int, blocks: int, block_tokens: int, block_bytes: int, heads: int = 1
    ) -> Self:
        """One region; ``block_bytes`` is a block in one layer, keys and values of a head together.

        Raises:
            ValueError: that is not so many bytes for each head.
        """
        if block_bytes % heads:
            raise ValueError(f"block_bytes is {block_bytes}: not a multiple of {heads} heads")
        return cls(
            layers, blocks, block_tokens, heads, heads, (_all(layers, block_bytes // heads),)
        )

    @property
    def total_bytes(self) -> int:
        return sum(self.region_bytes(index) for index in range(len(self.regions)))

    def region_bytes(self, index: int) -> int:
        region = self.regions[index]
        return region.layers * self.blocks * region.parts * self.heads * region.head_bytes

    def region_offset_bytes(self, index: int) -> int:
        """Where a region begins in memory that holds one after the other."""
        return sum(self.region_bytes(before) for before in range(index))

    def block_bytes(self, layer: int) -> int:
        """What a block takes in one layer."""
        return sum(self.heads * plane.head_bytes for plane in self.planes(layer))

    def planes(self, layer: int) -> list[Plane]:
        """Where ``layer`` lies, in the order of the regions."""
        planes = []
        for index, region in enumerate(self.regions):
            if not region.first_layer <= layer < region.first_layer + region.layers:
                continue
            part_bytes = self.heads * region.head_bytes
            stride_bytes = region.parts * part_bytes
            first = (layer - region.first_layer) * self.blocks * stride_bytes
            planes += [
                Plane(index, first + part * part_bytes, stride_bytes, region.head_bytes)
                for part in range(region.parts)
            ]
        return planes

    def blocks_for(self, tokens: int) -> int:
        """Blocks that hold ``tokens`` tokens."""
        return -(-tokens // self.block_tokens)

    def of_rank(self, rank: int, ranks: int) -> "CacheLayout":
        """The part of this whole cache that a rank holds, with as many blocks.

        Where there are more ranks than heads several hold the same one.

        Raises:
            ValueError: heads and ranks do not divide.
        """
        if self.all_heads % ranks and ranks % self.all_heads:
            raise ValueError(f"{self.all_heads} KV heads cannot be dealt out to {ranks} ranks")
        return msgspec.structs.replace(
            self,
            first_head=rank * self.all_heads // ranks,
            heads=max(1, self.all_heads // ranks),
        )

    def accepts(self, other: "CacheLayout") -> bool:
        """Whether blocks of ``other`` can be put into this cache. Block counts, ranks and regions
        may differ, as long as each layer has the same parts of as many bytes a head, laid out
        alike."""
        mine = (self.layers, self.block_tokens, self.all_heads, self.form)
        theirs = (other.layers, other.block_tokens, other.all_heads, other.form)
        return mine == theirs and all(
            [plane.head_bytes for plane in self.planes(layer)]
            == [plane.head_bytes for plane in other.planes(layer)]
            for layer in range(self.layers)
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


def _all(layers: int, head_bytes: int) -> Region:
    return Region(first_layer=0, layers=layers, head_bytes=head_bytes)
