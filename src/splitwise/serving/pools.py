"""Which pool each machine stands in: said in the log and in the metrics."""

import logging
from typing import Protocol

from splitwise.scheduling.pools import Pool
from splitwise.serving.roster import Roster

log = logging.getLogger(__name__)


class PoolMetrics(Protocol):
    """What is reported of pools."""

    def pool(self, name: str, pool: str | None) -> None: ...
    def role_changed(self, name: str, pool: str) -> None: ...


class Pools:
    """The pools of a cluster, for those who watch it."""

    def __init__(self, roster: Roster, metrics: PoolMetrics) -> None:
        self._roster = roster
        self._metrics = metrics
        self._seen: dict[int, Pool] = {}
        """Where each connected machine was seen last."""

    def joined(self, machine: int) -> None:
        """A machine is connected."""
        self._seen[machine] = self._pool(machine)
        self._metrics.pool(self._roster.names[machine], self._seen[machine].label)

    def left(self, machine: int) -> None:
        """A machine is not connected any more."""
        del self._seen[machine]
        self._metrics.pool(self._roster.names[machine], None)

    def look(self, machine: int) -> None:
        """Something may have moved this machine, or made it idle."""
        was, now = self._seen.get(machine), self._pool(machine)
        if was is None or was is now:
            return
        self._seen[machine] = now
        name, home = self._roster.names[machine], Pool(self._roster.cluster.home[machine])
        log.info(
            "machine %s: %s pool -> %s pool (home: %s)", name, was.label, now.label, home.label
        )
        self._metrics.role_changed(name, now.label)

    def _pool(self, machine: int) -> Pool:
        return Pool(self._roster.cluster.pool[machine])
