"""The machines of a cluster: who is connected, and what the scheduler's arrays say of them.

A machine keeps its index for good, so that one that is lost and joins again finds its place.
"""

import asyncio
from dataclasses import asdict
from typing import Any, Protocol

import msgspec
import numpy as np

from splitwise.cluster.reach import Reach
from splitwise.protocol.messages import Register
from splitwise.scheduling.cluster_state import (
    ClusterState,
    bring_back,
    first_machines,
    new_cluster,
    read_singly,
    set_home,
    take_out,
    with_machine,
)
from splitwise.scheduling.pool import Pool
from splitwise.transfer import CacheLayout


class MachineLink(Protocol):
    """The way to a machine's worker."""

    register: Register

    def send(self, message: msgspec.Struct) -> None: ...


class Roster:
    """``links``, ``names`` and the arrays of ``cluster`` have one entry a machine; a lost one's
    link is None. A new machine makes a new ``cluster``, so nobody keeps one."""

    def __init__(self, model_name: str | None = None) -> None:
        """``model_name`` is the model that every machine must have; None takes the first's."""
        self._model_name = model_name
        self._places = new_cluster(np.zeros(0, np.int8), np.zeros(0, np.int64))
        """What ``cluster`` shows a part of, so that few machines that join move all the others."""
        self.cluster: ClusterState = read_singly(self._places)
        self.links: list[MachineLink | None] = []
        self.names: list[str] = []
        self._connected: set[int] = set()
        self._indices: dict[str, int] = {}
        self._homes: dict[int, Pool] = {}
        """Where operators put machines."""
        self.largest_tokens = 0
        """The largest cache of any machine that ever joined."""
        self.vocab_size = 0
        """Of the model, as the machine says that joined last."""
        self.reach = Reach()
        self._block_tokens = 1
        self._joined = asyncio.Event()

    def add(self, link: MachineLink) -> int:
        """Enter a machine, new or lost before; returns its index.

        Raises:
            ValueError: its model or cache does not fit those of the others, or its id is taken.
        """
        register = link.register
        if self._model_name not in (None, register.model.name):
            raise ValueError(
                f"model {register.model.name!r} is not the cluster's {self._model_name!r}; start "
                "the worker with the same --model, or say by --model-name that it is"
            )
        if self._connected:
            any_other = self.links[next(iter(self._connected))]
            assert any_other is not None
            _check_same_model(any_other.register, register)
        register.layout.of_rank(0, len(register.addresses))
        capacity = register.layout.blocks * register.layout.block_tokens
        decodes = register.max_decodes
        index = self._indices.get(register.machine_id)
        if index is None:
            index = len(self.links)
            self._indices[register.machine_id] = index
            if index == len(self._places.home):
                self._places = with_machine(self._places, register.pool, capacity, spare=index)
            self.cluster = read_singly(first_machines(self._places, index + 1))
            bring_back(self.cluster, index, register.pool, capacity, decodes)
            self.links.append(link)
            self.names.append(register.machine_id)
        elif self.links[index] is not None:
            raise ValueError(
                f"machine_id {register.machine_id!r} is in the cluster already; "
                "give each worker a --machine-id of its own"
            )
        else:
            self.links[index] = link
            home = self._homes.get(index, register.pool)
            bring_back(self.cluster, index, home, capacity, decodes)
        self._block_tokens = register.layout.block_tokens
        self._connected.add(index)
        self.reach.add(index, register.addresses)
        self.largest_tokens = max(self.largest_tokens, capacity)
        self.vocab_size = register.model.vocab_size
        self._joined.set()
        return index

    def remove(self, index: int) -> str:
        """A machine is lost; returns its id."""
        self.links[index] = None
        self._connected.remove(index)
        self.reach.remove(index)
        take_out(self.cluster, index)
        return self.names[index]

    def index(self, name: str) -> int | None:
        """The machine of that id, connected or lost; None if there never was one."""
        return self._indices.get(name)

    def set_home(self, index: int, pool: Pool) -> None:
        """Give a machine another home, which it keeps when it is lost and comes back."""
        self._homes[index] = pool
        set_home(self.cluster, index, pool)

    def link(self, index: int) -> MachineLink:
        """The way to a machine that is connected."""
        link = self.links[index]
        assert link is not None, "only connected machines are picked and heard"
        return link

    async def wait_for(self, number: int) -> None:
        """Wait until ``number`` machines are connected; the caller sets the deadline."""
        while len(self._connected) < number:
            self._joined.clear()
            await self._joined.wait()

    def cache_tokens(self, tokens: int) -> int:
        """The cache, in whole blocks, that ``tokens`` tokens take on any of these machines."""
        return -(-tokens // self._block_tokens) * self._block_tokens

    def max_context_tokens(self) -> int:
        """The longest request that some connected machine can hold (0 without machines). One that
        its token machine turns out too small for goes on where there is room for it."""
        limits = [
            min(link.register.model.max_context_tokens, int(capacity))
            for link, capacity in zip(self.links, self.cluster.kv_capacity_tokens, strict=True)
            if link is not None
        ]
        return max(limits, default=0)


def _check_same_model(ours: Register, theirs: Register) -> None:
    """
    Raises:
        ValueError: the machines could not take over each other's requests, or caches.
    """
    if theirs.model != ours.model:
        raise ValueError(
            f"its model has {_differences(asdict(theirs.model), asdict(ours.model))}, as on "
            f"{ours.machine_id}; start every worker of a cluster with the same model, dtype and "
            "--vllm-args"
        )
    if not ours.layout.accepts(theirs.layout):
        raise ValueError(
            f"its cache has {_differences(_shape(theirs.layout), _shape(ours.layout))}, as on "
            f"{ours.machine_id}; start every worker of a cluster with the same --engine, release "
            "and block size"
        )


def _differences(theirs: dict[str, Any], ours: dict[str, Any]) -> str:
    differ = (name for name, value in theirs.items() if value != ours[name])
    return ", ".join(f"{name} {theirs[name]!r} in place of {ours[name]!r}" for name in differ)


def _shape(layout: CacheLayout) -> dict[str, Any]:
    """What must be the same for blocks of one cache to fit into another (``accepts``)."""
    planes = (layout.planes(layer) for layer in range(layout.layers))
    return {
        "layers": layout.layers,
        "block_tokens": layout.block_tokens,
        "all_heads": layout.all_heads,
        "form": layout.form,
        "head_bytes": sorted({tuple(plane.head_bytes for plane in each) for each in planes}),
    }
