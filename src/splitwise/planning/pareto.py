"""Which clusters are not worse than another in everything that counts."""

from collections.abc import Sequence

from splitwise.planning.search import Found


def front(found: Sequence[Found]) -> list[Found]:
    """Those that no other beats in cost, power and rate together, cheapest first; no doubles."""
    unique = {(one.design.name, one.rate_per_s): one for one in found}
    kept = [one for one in unique.values() if not any(dominates(o, one) for o in unique.values())]
    return sorted(kept, key=lambda one: (one.design.dollars_per_hour, one.design.watts))


def dominates(one: Found, other: Found) -> bool:
    """Whether ``one`` is as good in all three and better in at least one."""
    ours, theirs = _takes(one), _takes(other)
    return ours != theirs and all(a <= b for a, b in zip(ours, theirs, strict=True))


def _takes(one: Found) -> tuple[float, ...]:
    """To be kept low; rounded, as the same machines summed in another order differ a little."""
    return (round(one.design.dollars_per_hour, 6), round(one.design.watts, 6), -one.rate_per_s)
