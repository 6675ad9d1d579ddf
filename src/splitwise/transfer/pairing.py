"""How the blocks of one cache fit into those of another, whose regions and ranks may differ."""

from dataclasses import dataclass

from splitwise.transfer.layout import CacheLayout, Plane


@dataclass(frozen=True)
class Place:
    """Of block ``b`` the ``nbytes`` from ``offset_bytes + b * stride_bytes`` of a region on."""

    region: int
    offset_bytes: int
    stride_bytes: int
    nbytes: int

    @property
    def is_dense(self) -> bool:
        """Whether blocks that follow each other leave no gap."""
        return self.nbytes == self.stride_bytes

    def joined(self, after: "Place") -> "Place | None":
        """Both as one, where ``after`` begins where this ends."""
        follows = Place(
            self.region, self.offset_bytes + self.nbytes, self.stride_bytes, after.nbytes
        )
        if after != follows:
            return None
        nbytes = self.nbytes + after.nbytes
        return Place(self.region, self.offset_bytes, self.stride_bytes, nbytes)


@dataclass(frozen=True)
class Strip:
    """What moves of each block in one piece: as many bytes from ``source`` as to ``target``."""

    source: Place
    target: Place


class LayoutPair:
    """A source's cache and a target's, by the heads that both hold.

    What moves does so in this order, whatever the memory of either looks like: layer by layer,
    strip by strip, and in each in the order of the block table.
    """

    def __init__(self, source: CacheLayout, target: CacheLayout) -> None:
        """
        Raises:
            ValueError: blocks of the one do not fit into the other, or they share no head.
        """
        if not target.accepts(source):
            raise ValueError(
                f"cache layouts differ, receiver {target}, sender {source}: "
                "run the same model, dtype, block size and engine on both machines"
            )
        self._source = source
        self._target = target
        self._first = max(source.first_head, target.first_head)
        last = min(source.first_head + source.heads, target.first_head + target.heads)
        self._heads = last - self._first
        if self._heads <= 0:
            raise ValueError(f"the sender's {source} and the receiver's {target} share no head")
        strips = [self._strips(layer) for layer in range(source.layers)]
        self.at_source = [[strip.source for strip in layer] for layer in strips]
        """By layer, then strip."""
        self.at_target = [[strip.target for strip in layer] for layer in strips]
        self.block_bytes = [sum(place.nbytes for place in layer) for layer in self.at_source]
        """What moves of a block, by layer."""
        self.all_layers_bytes = sum(self.block_bytes)

    @property
    def layers(self) -> int:
        return len(self.block_bytes)

    def _strips(self, layer: int) -> list[Strip]:
        strips: list[Strip] = []
        for source, target in zip(
            self._source.planes(layer), self._target.planes(layer), strict=True
        ):
            strip = Strip(
                self._place(source, self._source.first_head),
                self._place(target, self._target.first_head),
            )
            joined = _joined(strips[-1], strip) if strips else None
            if joined is not None:
                strips.pop()
            strips.append(joined or strip)
        return strips

    def _place(self, plane: Plane, first_held: int) -> Place:
        return Place(
            plane.region,
            plane.offset_bytes + (self._first - first_held) * plane.head_bytes,
            plane.stride_bytes,
            self._heads * plane.head_bytes,
        )


def _joined(strip: Strip, after: Strip) -> Strip | None:
    source, target = strip.source.joined(after.source), strip.target.joined(after.target)
    return None if source is None or target is None else Strip(source, target)
