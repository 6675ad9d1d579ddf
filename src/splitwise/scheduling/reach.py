"""Machines that cannot speak to each other are not given one request.

Kinds of machines differ in what they offer and take for a transfer, and in the host that they are
on. A request is placed within a group of kinds that all reach each other both ways: there every
pair will do, and a machine that stands alone in its group computes both phases.
"""

from collections.abc import Sequence


def groups_of(reaches: Sequence[Sequence[bool]]) -> list[set[int]]:
    """Groups that have each kind in one at least; ``reaches[a][b]`` says that ``a`` can send to
    ``b``.

    One for each kind: with it all others, in their order, that reach every one taken so far.
    """
    groups: list[set[int]] = []
    for kind in range(len(reaches)):
        group = {kind}
        for other in range(len(reaches)):
            if all(reaches[other][one] and reaches[one][other] for one in group):
                group.add(other)
        if group not in groups:
            groups.append(group)
    return groups


def least_pending_first(
    groups: Sequence[Sequence[int]], pending_tokens: Sequence[int]
) -> list[Sequence[int]]:
    """Groups of machines in the order in which a request tries them."""
    return sorted(groups, key=lambda group: min(pending_tokens[machine] for machine in group))
