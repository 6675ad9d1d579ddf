"""Which of the connected machines can send a cache to which, as far as their words tell."""

from collections.abc import Sequence
from typing import NamedTuple

from splitwise.scheduling.reach import groups_of
from splitwise.transfer import ReceiverAddress
from splitwise.transfer.transports.choice import can_reach


class _Kind(NamedTuple):
    """Machines alike in all that decides whether they can speak to another."""

    hosts: tuple[str, ...]
    ends: tuple[tuple[str, tuple[str, ...], bool, str], ...]


class Reach:
    """Kept up as machines join and are lost; looked through when a request is placed after that."""

    def __init__(self) -> None:
        self._machines: dict[int, Sequence[ReceiverAddress]] = {}
        self._choosy: set[int] = set()
        """Machines that will not, or cannot, do with TCP."""
        self._groups: list[Sequence[int]] | None = None

    def add(self, machine: int, addresses: Sequence[ReceiverAddress]) -> None:
        self._machines[machine] = addresses
        self._groups = None
        if any(address.sends or "tcp" not in address.transports for address in addresses):
            self._choosy.add(machine)

    def remove(self, machine: int) -> None:
        del self._machines[machine]
        self._choosy.discard(machine)
        self._groups = None

    def groups(self) -> list[Sequence[int]]:
        """Machines, by groups in which each reaches each; none where all machines are one group."""
        if not self._choosy:
            return []
        if self._groups is None:
            self._groups = self._found()
        return self._groups

    def _found(self) -> list[Sequence[int]]:
        kinds: dict[_Kind, list[int]] = {}
        for machine, addresses in self._machines.items():
            kinds.setdefault(_kind(addresses), []).append(machine)
        examples = [self._machines[machines[0]] for machines in kinds.values()]
        reaches = [[can_reach(a, b) for b in examples] for a in examples]
        members = list(kinds.values())
        groups: list[Sequence[int]] = [
            [machine for kind in sorted(group) for machine in members[kind]]
            for group in groups_of(reaches)
        ]
        return [] if len(groups) == 1 else groups


def _kind(addresses: Sequence[ReceiverAddress]) -> _Kind:
    return _Kind(
        tuple(address.host_identity for address in addresses),
        tuple((a.device.partition(":")[0], a.transports, a.rdma, a.sends) for a in addresses),
    )
