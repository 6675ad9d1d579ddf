"""Workers on a Ray cluster: each in an actor that Ray places where its pool's machines belong.

1. ``connect`` makes this process a driver of the cluster.
2. For a worker an actor is asked for, with its cores, its GPU, and what its pool needs of a node.
   Where Ray finds no node in time, the worker counts as ended, and its end says what was missing.
3. The actor runs the ordinary ``splitwise worker`` as its child, as ``LocalLauncher`` does on the
   gateway's host; its log goes to Ray's logs and, from there, to the gateway's.
4. The actor ends with its worker, which frees the node. If the actor is lost, its node or the
   gateway, the worker ends too: the kernel and its lost scheduler both tell it.

Nodes need the same version of this package, and the model at the same path.
"""

import asyncio
import logging
import os
import socket
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Final

import msgspec

from splitwise.launch.launcher import (
    KILL_LIMIT_S,
    STOP_LIMIT_S,
    Launcher,
    LaunchError,
    LocalLauncher,
    WorkerSpec,
)
from splitwise.scheduling.pool import Pool

log = logging.getLogger(__name__)

PROBE_LIMIT_S: Final = 5.0
ACTOR_STOP_LIMIT_S: Final = STOP_LIMIT_S + KILL_LIMIT_S + 5.0
"""More than the actor itself gives its worker."""
ACTOR_KILL_LIMIT_S: Final = 5.0
"""What an actor has to end its worker in when that does not answer; it may be frozen, too."""
ACCELERATOR_SHARE: Final = 0.001
"""What Ray takes of a node's accelerator type, which only says what the node is."""
OWN_STORE_BYTES: Final = 80 * 2**20
"""Near Ray's least: nothing of a worker's goes through Ray's object store."""


class RayOptions(msgspec.Struct, frozen=True):
    """Where workers are placed."""

    address: str = "auto"
    """``HOST:PORT``, ``auto`` for the cluster of this host, or ``local`` for one of our own."""
    needs: dict[Pool, dict[str, float]] = {}
    """For a machine of each pool, the amounts of a node's custom resources it takes."""
    gpus: int = 0
    """GPUs a worker."""
    placement_limit_s: float = 60.0
    """How long Ray may look for a node, and start an actor there."""


class HostedWorker:
    """The actor: one worker and its process, on whatever node this is."""

    def __init__(self, machine_id: str) -> None:
        self._machine_id = machine_id
        self._launcher: LocalLauncher | None = None

    def __repr__(self) -> str:
        """What Ray puts before the lines of this actor's log."""
        return self._machine_id

    async def host(self) -> str:
        """The name of the host; that it is answered shows that the actor runs."""
        return socket.gethostname()

    async def run(self, spec: WorkerSpec, cluster_key: str) -> str:
        """Run the worker until it ends; returns how it ended with what last words."""
        self._launcher = LocalLauncher(cluster_key)
        await self._launcher.start([spec])
        _, how = await self._launcher.wait_for_exit()
        return how

    async def kill(self) -> None:
        """End a worker that does not answer."""
        if self._launcher is not None:
            self._launcher.kill(self._machine_id)

    async def stop(self) -> None:
        """End the worker, if it runs."""
        if self._launcher is not None:
            await self._launcher.stop()


class RayLauncher(Launcher):
    """Workers in actors of the Ray cluster that this process is connected to."""

    def __init__(self, options: RayOptions, cluster_key: str) -> None:
        super().__init__()
        self._ray = import_module("ray")
        self._options = options
        self._cluster_key = cluster_key
        self._placed: dict[str, Any] = {}
        """The actors that run, by machine id."""

    async def start(self, specs: list[WorkerSpec]) -> None:
        for spec in specs:
            self._watch(spec.machine_id, self._run(spec))

    def kill(self, machine_id: str) -> None:
        actor = self._placed.get(machine_id)
        if actor is None:
            return
        actor.kill.remote()
        loop = asyncio.get_running_loop()
        loop.call_later(ACTOR_KILL_LIMIT_S, self._kill_actor, machine_id, actor)

    def _kill_actor(self, machine_id: str, actor: Any) -> None:
        """Kill an actor itself, unless it has ended by now; its worker's end is told then."""
        if self._placed.get(machine_id) is actor:
            log.warning("the Ray actor of worker %s does not end it and is killed", machine_id)
            self._ray.kill(actor)

    async def stop(self) -> None:
        for watch, machine_id in self._watches.items():
            if machine_id in self._placed:
                self._placed[machine_id].stop.remote()
            else:
                watch.cancel()
        for machine_id, watch in (await self._running_after(ACTOR_STOP_LIMIT_S)).items():
            log.warning("the Ray actor of worker %s did not end in time and is killed", machine_id)
            watch.cancel()  # which kills it
        await self._running_after(KILL_LIMIT_S)

    async def _run(self, spec: WorkerSpec) -> str:
        """A worker from its placement to its end; returns how it ended."""
        asked = self._asked(spec)
        actor = self._new_actor(spec.machine_id, asked)
        try:
            async with asyncio.timeout(self._options.placement_limit_s):
                host = await actor.host.remote()
            log.info("worker %s is placed on %s", spec.machine_id, host)
            self._placed[spec.machine_id] = actor
            # The key goes with a call, which Ray neither lists nor logs, unlike a runtime
            # environment. Cores were dealt out for the gateway's host, not for that one.
            there = msgspec.structs.replace(spec, cores=[])
            return str(await actor.run.remote(there, self._cluster_key))
        except TimeoutError:
            return self._not_placed(spec, asked)
        except self._ray.exceptions.RayError as error:
            reason = textwrap.shorten(str(error).strip().splitlines()[-1], 300)
            return f"its Ray actor ended: {reason}"
        finally:
            self._placed.pop(spec.machine_id, None)
            self._ray.kill(actor)

    def _asked(self, spec: WorkerSpec) -> dict[str, float]:
        gpus = {"GPU": self._options.gpus} if self._options.gpus else {}
        return {"CPU": spec.threads, **gpus, **self._options.needs.get(spec.pool, {})}

    def _new_actor(self, machine_id: str, asked: dict[str, float]) -> Any:
        resources = {name: amount for name, amount in asked.items() if name not in ("CPU", "GPU")}
        placing = self._ray.remote(HostedWorker).options(
            num_cpus=asked["CPU"], num_gpus=asked.get("GPU", 0), resources=resources
        )
        return placing.remote(machine_id)

    def _not_placed(self, spec: WorkerSpec, asked: dict[str, float]) -> str:
        nodes = [
            f"{node['NodeManagerAddress']} ({_amounts(node['Resources'])})"
            for node in self._ray.nodes()
            if node["Alive"]
        ]
        return (
            f"not placed by Ray within {self._options.placement_limit_s:g} s: it needs "
            f"{_amounts(asked)} on one node, and the cluster has {', '.join(nodes)}, of which "
            f"{_amounts(self._ray.available_resources()) or 'nothing'} is free; change --threads, "
            f"--device or --ray-{spec.pool.label}, or add such a node"
        )


@contextmanager
def connect(address: str) -> Iterator[None]:
    """This process as a driver of a Ray cluster, on leaving no more.

    Ray's driver takes part in the cluster: this host must be one of its nodes.

    Raises:
        LaunchError: Ray is not installed, or does not answer there.
    """
    try:
        ray = import_module("ray")
    except ImportError as missing:
        raise LaunchError(
            "--launcher ray: not installed; pip install 'splitwise-llm[ray]'"
        ) from missing
    own = {
        "include_dashboard": False,
        "object_store_memory": OWN_STORE_BYTES,
        "_node_ip_address": "127.0.0.1",
    }
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing of ours is reported
    else:
        named = os.environ.get("RAY_ADDRESS", "auto") if address == "auto" else address
        _probe(named, ray.util.get_node_ip_address())
    try:
        ray.init(address=address, logging_level="ERROR", **(own if address == "local" else {}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise LaunchError(f"--ray {address}: {error}") from error
    try:
        yield
    finally:
        ray.shutdown()


def read_needs(option: str, text: str) -> dict[str, float]:
    """Resources of a node from an option's text: accelerator types, and ``NAME=AMOUNT``.

    Raises:
        ValueError: an amount is not a number above 0.
    """
    needs: dict[str, float] = {}
    for item in filter(None, text.split(",")):
        name, is_amount, amount = item.partition("=")
        if not is_amount:
            needs[f"accelerator_type:{name}"] = ACCELERATOR_SHARE
            continue
        try:
            needs[name] = float(amount)
        except ValueError:
            needs[name] = 0
        if not name or not needs[name] > 0:
            raise ValueError(
                f"{option} {item!r}: give an accelerator type, such as H100, or NAME=AMOUNT with "
                "an amount above 0"
            )
    return needs


def _probe(address: str, own_ip: str) -> None:
    """Ray itself would look for minutes, and at ``own_ip`` where it is given a loopback address.

    Raises:
        LaunchError: nobody listens there.
    """
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise LaunchError(f"--ray {address!r}: give HOST:PORT of the cluster's head, auto or local")
    dialled = own_ip if host in ("127.0.0.1", "localhost") else host.strip("[]")
    try:
        socket.create_connection((dialled, int(port)), PROBE_LIMIT_S).close()
    except OSError as error:
        raise LaunchError(
            f"--ray {address}: no Ray cluster answers there ({error}); give HOST:PORT of its head, "
            "auto or local"
        ) from error


def _amounts(resources: dict[str, float]) -> str:
    """Amounts for people, without the memory and the node names that Ray counts among them."""
    return ", ".join(
        f"{name} {amount:g}"
        for name, amount in sorted(resources.items())
        if "memory" not in name and not name.startswith("node:")
    )
