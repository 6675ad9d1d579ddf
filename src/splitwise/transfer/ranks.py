"""Which ranks of one machine send what they hold of a cache to which of another."""

from dataclasses import dataclass
from functools import cache


@dataclass(frozen=True)
class Part:
    """Of a transfer from machine to machine: what a rank of the source holds for one of the target.

    A transfer of its own, between these two."""

    source: int
    target: int


@cache
def parts_of(all_heads: int, sources: int, targets: int) -> tuple[Part, ...]:
    """The parts in which each target rank gets each of its heads once.

    Of several source ranks that hold the same head the one at the nearest place sends it, so that
    they share the work. So a single part is always one between the two first ranks.

    Raises:
        ValueError: heads and ranks do not divide.
    """
    for ranks in (sources, targets):
        if all_heads % ranks and ranks % all_heads:
            raise ValueError(f"{all_heads} KV heads cannot be dealt out to {ranks} ranks")
    parts: list[Part] = []
    for target in range(targets):
        wanted = heads_of(target, targets, all_heads)
        nearest = sorted(range(sources), key=lambda rank: abs(rank * targets - target * sources))
        for source in nearest:
            if held := wanted & heads_of(source, sources, all_heads):
                wanted -= held
                parts.append(Part(source, target))
    return tuple(parts)


def heads_of(rank: int, ranks: int, all_heads: int) -> set[int]:
    """What a rank holds (as ``CacheLayout.of_rank``)."""
    first = rank * all_heads // ranks
    return set(range(first, first + max(1, all_heads // ranks)))


def part_id(transfer_id: str, part: Part, parts: int) -> str:
    """What both ends call a part of a transfer that has so many."""
    return transfer_id if parts == 1 else f"{transfer_id}/{part.source}-{part.target}"


def rank_id(machine_id: str, rank: int, ranks: int) -> str:
    """What a rank is called on its links."""
    return machine_id if ranks == 1 else f"{machine_id}#{rank}"
