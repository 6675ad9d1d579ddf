"""Which pool each machine stands in, shown to operators and set by them.

The life of a machine that is drained:

1. ``drain``: nothing new is placed on it; what it runs goes on.
2. The last charge is taken back (``ledger`` calls ``look``): the machine is told to end
   (``Shutdown``).
3. Its connection ends: ``left``. ``is_draining`` goes on saying so, and ``is_out_of_service`` keeps
   the launcher from starting it again. A machine that joins under its id later is not draining.
"""

import logging
from collections.abc import Callable
from typing import Protocol

import msgspec

from splitwise.cluster.roster import Roster
from splitwise.protocol.messages import Shutdown
from splitwise.scheduling.cluster_state import is_idle, set_draining
from splitwise.scheduling.pool import Pool

log = logging.getLogger(__name__)


class PoolMetrics(Protocol):
    """What is reported of pools."""

    def pool(self, name: str, pool: str | None) -> None: ...
    def role_changed(self, name: str, pool: str) -> None: ...
    def quarantined(self, name: str, is_kept_out: bool) -> None: ...


class UnknownMachine(Exception):
    """No machine ever had that name."""


class PoolError(Exception):
    """The machine is not in a state in which this can be set."""


class MachineView(msgspec.Struct, frozen=True):
    """A machine, as operators see it; the numbers are those of ``cluster_state.ClusterState``."""

    machine_id: str
    home: str
    pool: str
    up: bool
    draining: bool
    pending_tokens: int
    waiting: int
    kv_tokens: int
    kv_capacity_tokens: int
    role_changes: int
    quarantined: bool = False
    """It gets nothing new for a while, because requests failed there (``quarantine``)."""
    quiet: bool = False
    """It gets nothing new until something is heard of it (``silence``)."""


class Pools:
    """The pools of a cluster, for those who watch and run it."""

    def __init__(self, roster: Roster, metrics: PoolMetrics, on_change: Callable[[], None]) -> None:
        """``on_change`` is called when what waits may find room."""
        self._roster = roster
        self._metrics = metrics
        self._on_change = on_change
        self._seen: dict[int, Pool] = {}
        """Where each connected machine was seen last."""
        self._ending: set[int] = set()
        """Those that were told to end."""
        self._leaving: set[int] = set()
        """Those that want to end themselves."""
        self._draining: set[int] = set()
        """Those that drain, or have left for that reason."""
        self._quarantined: set[int] = set()
        self._quiet: set[int] = set()
        """Those of which nothing is heard."""

    # What operators do.

    def show(self) -> list[MachineView]:
        """Every machine that ever joined, in the order in which they did."""
        return [self._view(machine) for machine in range(len(self._roster.names))]

    def set_home(self, name: str, pool: Pool) -> MachineView:
        """Give a machine another home pool, at once; it keeps what it runs.

        Raises:
            UnknownMachine, PoolError: see there.
        """
        machine = self._connected(name)
        log.info("machine %s: home set to the %s pool", name, pool.label)
        self._roster.set_home(machine, pool)
        self.look(machine)
        self._on_change()
        return self._view(machine)

    def drain(self, name: str, draining: bool = True) -> MachineView:
        """Let a machine end what it has and leave; or, False, keep one that has not left yet.

        Raises:
            UnknownMachine, PoolError: see there.
        """
        machine = self._connected(name)
        self._leaving.discard(machine)
        if machine in self._ending and not draining:
            raise PoolError(f"machine {name!r} has been told to end; start it again")
        log.info("machine %s: %s", name, "draining" if draining else "draining no more")
        (self._draining.add if draining else self._draining.discard)(machine)
        self._open_or_close(machine)
        self.look(machine)
        self._on_change()
        return self._view(machine)

    # What others ask and tell.

    def leave(self, machine: int) -> None:
        """A machine wants to end: drain it. Unlike one that an operator drains it may come back."""
        self.drain(self._roster.names[machine])
        self._leaving.add(machine)

    def is_out_of_service(self, name: str) -> bool:
        """Whether an operator has drained the machine, so that nobody is to start it again."""
        return self.is_draining(name) and self._roster.index(name) not in self._leaving

    def is_connected(self, name: str) -> bool:
        """Whether the machine is in the cluster now."""
        return self._roster.index(name) in self._seen

    def home(self, name: str) -> Pool:
        """The home pool of a machine that has joined."""
        return Pool(self._roster.cluster.home[self._index(name)])

    def is_draining(self, name: str) -> bool:
        """Whether a machine drains, or has left for that reason."""
        machine = self._roster.index(name)
        return machine is not None and machine in self._draining

    def keep_out(self, machine: int, is_kept_out: bool) -> None:
        """Place nothing new on a connected machine for the time being; or do so again."""
        (self._quarantined.add if is_kept_out else self._quarantined.discard)(machine)
        self._metrics.quarantined(self._roster.names[machine], is_kept_out)
        self._open_or_close(machine)
        self._on_change()

    def set_quiet(self, machine: int, is_quiet: bool) -> None:
        """Nothing is heard of a connected machine, which therefore gets nothing new; or it is."""
        (self._quiet.add if is_quiet else self._quiet.discard)(machine)
        self._open_or_close(machine)
        self._on_change()

    @property
    def is_any_quiet(self) -> bool:
        """Whether nothing is heard of a machine that is connected."""
        return bool(self._quiet)

    def joined(self, machine: int) -> None:
        """A machine is connected."""
        self._ending.discard(machine)
        self._leaving.discard(machine)
        self._draining.discard(machine)
        self._seen[machine] = self._pool(machine)
        self._metrics.pool(self._roster.names[machine], self._seen[machine].label)

    def left(self, machine: int) -> None:
        """A machine is not connected any more."""
        del self._seen[machine]
        self._quiet.discard(machine)
        name = self._roster.names[machine]
        self._metrics.pool(name, None)
        if machine in self._quarantined:
            self._quarantined.remove(machine)
            self._metrics.quarantined(name, False)

    def look(self, machine: int) -> None:
        """Something may have moved this machine, or made it idle."""
        if machine not in self._seen:
            return  # It is lost; what it was charged is being taken back.
        cluster, was = self._roster.cluster, self._seen[machine]
        if was != cluster.pool[machine]:
            self._seen[machine] = now = self._pool(machine)
            self._tell_move(machine, was, now)
        is_ending = machine in self._draining and machine not in self._ending
        if is_ending and is_idle(cluster, machine):
            self._ending.add(machine)
            log.info("machine %s is drained and told to end", self._roster.names[machine])
            self._roster.link(machine).send(Shutdown())

    def _tell_move(self, machine: int, was: Pool, now: Pool) -> None:
        name, home = self._roster.names[machine], Pool(self._roster.cluster.home[machine])
        log.info(
            "machine %s: %s pool -> %s pool (home: %s)", name, was.label, now.label, home.label
        )
        self._metrics.role_changed(name, now.label)

    def _open_or_close(self, machine: int) -> None:
        is_closed = any(machine in who for who in (self._draining, self._quarantined, self._quiet))
        set_draining(self._roster.cluster, machine, is_closed)

    def _pool(self, machine: int) -> Pool:
        return Pool(self._roster.cluster.pool[machine])

    def _index(self, name: str) -> int:
        index = self._roster.index(name)
        if index is None:
            known = ", ".join(self._roster.names) or "none yet"
            raise UnknownMachine(f"no machine {name!r}; there are: {known}")
        return index

    def _connected(self, name: str) -> int:
        machine = self._index(name)
        if machine not in self._seen:
            raise PoolError(f"machine {name!r} is not connected; start it first")
        return machine

    def _view(self, machine: int) -> MachineView:
        cluster = self._roster.cluster
        return MachineView(
            machine_id=self._roster.names[machine],
            home=Pool(cluster.home[machine]).label,
            pool=self._pool(machine).label,
            up=bool(cluster.up[machine]),
            draining=machine in self._draining,
            quarantined=machine in self._quarantined,
            quiet=machine in self._quiet,
            pending_tokens=int(cluster.pending_tokens[machine]),
            waiting=int(cluster.waiting[machine]),
            kv_tokens=int(cluster.kv_tokens[machine]),
            kv_capacity_tokens=int(cluster.kv_capacity_tokens[machine]),
            role_changes=int(cluster.role_changes[machine]),
        )
