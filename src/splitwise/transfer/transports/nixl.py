"""Between hosts with RDMA: the sender writes straight into the receiver's cache through NIXL.

1. Once the handshake is over the receiver opens a ``Window``: an agent of NIXL's for this link
   alone, with which its cache is registered. The sender gets the agent's metadata and the cache's
   address.
2. A put posts one write of all spans of a layer and polls until NIXL reports it done, which it
   does when the bytes are in place at the receiver. NIXL has no way to call a write back, so a
   put that does not end costs the link.
3. When the link ends, however it ends, the receiver closes the window before it gives blocks
   back. With the agent go the keys and connections, so what a lost or mute sender still has on
   its way finds no way in. To deregister the memory is not enough: over TCP it keeps none out.
   Nor would any of this stop a process on the same host that has mapped the cache, so UCX is not
   to use shared memory or CUDA IPC (``FENCED``); within a host there are our own transports.

UCX does the moving. It opens ports of its own, on the devices that ``UCX_NET_DEVICES`` names, and
they ask for no key: the workers' network must be one that others do not reach. NIXL parses the
metadata in C++, so that is taken only from a peer that has proved the cluster key, and nothing is
ever unpickled: addresses travel as integers in a frame of ours.

Without progress threads of NIXL's, which spin: the sender polls while it puts, the receiver while
a transfer is granted (UCX needs that to take in connections, and over TCP also the bytes).
"""

import asyncio
import functools
import logging
import os
import secrets
from collections.abc import Collection, Sequence
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from splitwise.transfer.errors import LinkError, LinkLost
from splitwise.transfer.frames import Window
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import CacheMemory, HostMemory
from splitwise.transfer.runs import merge_runs
from splitwise.transfer.transports.base import Fence, Lane, Moved, Transport
from splitwise.transfer.transports.cuda_ipc import DeviceMemory

FENCED = "^shm,cuda_ipc"
"""UCX_TLS where it is not set: all of UCX's ways but those that a closed window does not stop."""
EAGER_S = 200e-6
"""A write over RDMA is mostly done by then; only this long is asked without pause."""
LONGEST_PAUSE_S = 0.005
RECEIVER_PAUSE_S = 0.001

Spans = npt.NDArray[np.uint64]
"""A row a span: address, bytes, device index."""


class Agent:
    """An agent of NIXL's with one cache registered. Closing it fences the cache off."""

    def __init__(self, memory: CacheMemory, nbytes: int) -> None:
        """Takes a second or more the first time, and pins ``nbytes`` of memory.

        Raises:
            LinkError: NIXL does not work here.
        """
        api = _load()
        self._cache, self.kind, self.base, self.device_index = _locate(memory)
        try:
            config = api.nixl_agent_config(enable_prog_thread=False)
            self.nixl = api.nixl_agent(f"splitwise-{secrets.token_hex(8)}", config)
            self._registered = self.nixl.register_memory(
                [(self.base, nbytes, self.device_index, "")], self.kind
            )
        except nixl_errors() as error:
            raise LinkError(f"NIXL cannot register the cache: {error}") from error

    def close(self) -> None:
        """NIXL frees an agent, its connections and its keys when the last reference goes."""
        self.nixl.deregister_memory(self._registered)
        del self.nixl, self._registered, self._cache


class OpenWindow:
    """The receiver's end of one link."""

    def __init__(self, memory: CacheMemory, layout: CacheLayout) -> None:
        """
        Raises:
            LinkError: NIXL does not work here.
        """
        self._agent: Agent | None = Agent(memory, layout.total_bytes)
        self.message = Window(
            self._agent.nixl.get_agent_metadata(), self._agent.base, self._agent.device_index
        )
        self._polling = False

    async def poll(self, granted: Collection[object]) -> None:
        """Let UCX take in what comes, until nothing is ``granted`` any more. Once is enough.

        Raises:
            LinkError: NIXL has given up.
        """
        if self._polling:
            return
        self._polling = True
        try:
            while granted and self._agent is not None:
                self._agent.nixl.get_new_notifs()
                await asyncio.sleep(RECEIVER_PAUSE_S)
        except nixl_errors() as error:
            raise LinkError(f"NIXL: {error}") from error
        finally:
            self._polling = False

    def close(self) -> None:
        """On return the sender cannot write into the cache any more. Harmless twice."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None


class NixlTransport(Transport):
    """Writes from ``memory`` through the receiver's window."""

    name = "nixl"

    def __init__(
        self,
        memory: CacheMemory,
        layout: CacheLayout,
        window: Window,
        their_layout: CacheLayout,
        put_s: float,
    ) -> None:
        """``put_s``: how long one put may take before the link is given up.

        Raises:
            LinkError: NIXL does not work here, or cannot read what the receiver's said.
        """
        self._agent = Agent(memory, layout.total_bytes)
        self._layout = layout
        self._window = window
        self._their_layout = their_layout
        self._put_s = put_s
        self._closed = False
        try:
            self._peer = self._agent.nixl.add_remote_agent(window.metadata)
        except nixl_errors() as error:
            self._agent.close()
            raise LinkError(f"NIXL cannot reach the receiver's agent: {error}") from error

    def lane(self, number: int, source: Sequence[int], target: Sequence[int]) -> Lane:
        size = self._layout.block_bytes
        runs = merge_runs(source, target)
        here = [
            (self._agent.base + run.source * size, run.length * size, self._agent.device_index)
            for run in runs
        ]
        there = [
            (self._window.base + run.target * size, run.length * size, self._window.device_index)
            for run in runs
        ]
        return _Lane(self, np.array(here, np.uint64), np.array(there, np.uint64))

    async def write(self, layer: int, here: Spans, there: Spans) -> None:
        """Copy spans, given for the first layer, of ``layer``, and wait until they are in place.

        Raises:
            LinkError: the receiver is gone, or took nothing for too long.
        """
        nixl, kind = self._agent.nixl, self._agent.kind
        try:
            transfer = nixl.initialize_xfer(
                "WRITE",
                nixl.get_xfer_descs(_shifted(here, layer * self._layout.layer_bytes), kind),
                nixl.get_xfer_descs(_shifted(there, layer * self._their_layout.layer_bytes), kind),
                self._peer,
            )
            del nixl  # it must go with ``close``, also while this waits
            await self._until_done(transfer, self._agent.nixl.transfer(transfer))
        except nixl_errors() as error:
            raise LinkLost(f"NIXL: {error}") from error
        transfer.release()

    async def _until_done(self, transfer: Any, state: str) -> None:
        loop = asyncio.get_running_loop()
        started_s = loop.time()
        while state == "PROC":
            waited_s = loop.time() - started_s
            if waited_s > self._put_s:
                raise LinkError(f"the receiver has taken no data for {self._put_s:g} s")
            # A quarter of the time it has taken so far: never much too late, and soon rarely.
            pause_s = 0.0 if waited_s < EAGER_S else min(waited_s / 4, LONGEST_PAUSE_S)
            await asyncio.sleep(pause_s)
            if self._closed:
                raise LinkLost("this machine closed the connection")
            state = self._agent.nixl.check_xfer_state(transfer)
        if state != "DONE":
            raise LinkLost(f"NIXL: a write ended as {state}")

    def close(self) -> None:
        self._closed = True
        self._agent.close()


class _Lane(Lane):
    def __init__(self, transport: NixlTransport, here: Spans, there: Spans) -> None:
        self._transport = transport
        self._here = here
        self._there = there

    async def put(self, layer: int, fence: Fence, moved: Moved) -> int:
        if fence is not None:
            await asyncio.to_thread(cast(Any, fence).synchronize)
        await self._transport.write(layer, self._here, self._there)
        moved(int(self._here[:, 1].sum()))
        return len(self._here)


@functools.cache
def _load() -> Any:
    """NIXL's Python interface.

    Raises:
        LinkError: it is not installed, or not for this machine.
    """
    os.environ.setdefault("UCX_TLS", FENCED)
    os.environ.setdefault("NIXL_LOG_LEVEL", "WARN")  # else it reports each agent to stdout
    raise_exceptions = logging.raiseExceptions
    try:
        from nixl import _api
    except ImportError as error:
        raise LinkError(f"NIXL cannot be loaded: {error}") from error
    logging.raiseExceptions = raise_exceptions  # NIXL's import turns it off for the whole process
    return _api


@functools.cache
def nixl_errors() -> tuple[type[Exception], ...]:
    """All that NIXL raises. They have no class in common but Exception."""
    from nixl import _bindings

    return tuple(
        error
        for error in vars(_bindings).values()
        if isinstance(error, type) and issubclass(error, Exception)
    )


def _locate(memory: CacheMemory) -> tuple[object, str, int, int]:
    """What keeps the cache mapped, NIXL's name for its kind, its address, and its device."""
    if memory.device.startswith("cuda"):
        tensor = cast(DeviceMemory, memory).tensor
        return tensor, "VRAM", tensor.data_ptr(), tensor.device.index
    cache = np.frombuffer(cast(HostMemory, memory).buffer, np.uint8)
    return cache, "DRAM", cache.ctypes.data, 0


def _shifted(spans: Spans, nbytes: int) -> Spans:
    return spans + np.array([nbytes, 0, 0], np.uint64)
