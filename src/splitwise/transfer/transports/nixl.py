"""Between hosts with RDMA: the sender writes straight into the receiver's cache through NIXL.

1. A receiver has one ``OpenWindow``: an agent of NIXL's with which its cache is registered. Once
   the handshake of a link is over the sender gets the agent's metadata and where each region lies.
   A sender has one agent, too, and prepares the descriptors of all blocks once a link.
2. A put posts a write of some blocks at a time, by their numbers, and polls until NIXL reports it
   done, which it does when the bytes are in place at the receiver. NIXL has no way to call a write
   back, so a put that does not end costs the link.
3. A link that is lost, or whose sender keeps silent, with transfers under way: the window takes no
   more grants, and is closed once the transfers that others have in it have ended. Only then the
   lost one's blocks are given back. With the agent go the keys and connections, so what a lost or
   mute sender still has on its way finds no way in. To deregister the memory is not enough: over
   TCP it keeps none out. All other links are sent a new window meanwhile, and grants go on through
   that.
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
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from splitwise.transfer.device_blocks import DeviceMemory
from splitwise.transfer.errors import LinkError, LinkLost
from splitwise.transfer.frames import Window
from splitwise.transfer.host_blocks import Blocks
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import CacheMemory, HostMemory
from splitwise.transfer.pairing import LayoutPair, Place
from splitwise.transfer.transports.base import Fence, Lane, Moved, Stretch, Transport

FENCED = "^shm,cuda_ipc"
"""UCX_TLS where it is not set: all of UCX's ways but those that a closed window does not stop."""
EAGER_S = 200e-6
"""A write over RDMA is mostly done by then; only this long is asked without pause."""
LONGEST_PAUSE_S = 0.005
RECEIVER_PAUSE_S = 0.001
WRITE_BYTES = 8 * 2**20
"""The most that is posted at once: NIXL says nothing of a write until all of it is done."""

_THIS_AGENT = "NIXL_INIT_AGENT"
Numbers = npt.NDArray[np.int32]


class Agent:
    """An agent of NIXL's with one cache registered. Closing it fences the cache off."""

    def __init__(self, memory: CacheMemory, layout: CacheLayout) -> None:
        """Takes a second or more the first time, and pins the cache.

        Raises:
            LinkError: NIXL does not work here.
        """
        api = _load()
        self._cache, self.kind, self.regions, self.device_index = _locate(memory, layout)
        sizes = [layout.region_bytes(index) for index in range(len(layout.regions))]
        try:
            config = api.nixl_agent_config(enable_prog_thread=False)
            self.nixl = api.nixl_agent(f"splitwise-{secrets.token_hex(8)}", config)
            self._registered = self.nixl.register_memory(
                [
                    (base, nbytes, self.device_index, "")
                    for base, nbytes in zip(self.regions, sizes, strict=True)
                ],
                self.kind,
            )
        except nixl_errors() as error:
            raise LinkError(f"NIXL cannot register the cache: {error}") from error

    def prepare(
        self,
        agent: str,
        regions: Sequence[int],
        device_index: int,
        blocks: int,
        places: Sequence[Sequence[Place]],
    ) -> Any:
        """Descriptors of all ``blocks`` in all ``places`` of ``agent``'s cache, in that order."""
        rows = [
            (
                regions[place.region] + place.offset_bytes,
                place.nbytes,
                device_index,
                place.stride_bytes,
                blocks,
            )
            for layer in places
            for place in layer
        ]
        return self.nixl.prep_xfer_dlist(agent, np.array(rows, np.uint64), self.kind)

    def close(self) -> None:
        """NIXL frees an agent, its connections and its keys when the last reference goes."""
        self.nixl.deregister_memory(self._registered)
        del self.nixl, self._registered, self._cache


class OpenWindow:
    """The receiver's agent, for all links."""

    def __init__(self, memory: CacheMemory, layout: CacheLayout) -> None:
        """
        Raises:
            LinkError: NIXL does not work here.
        """
        self._agent: Agent | None = Agent(memory, layout)
        agent = self._agent
        self.message = Window(agent.nixl.get_agent_metadata(), agent.regions, agent.device_index)
        self.granted = 0
        """Transfers under way through it, those of lost senders left out."""
        self.is_retired = False
        """It takes no more grants, and is closed when none is left."""
        self.when_closed: list[Callable[[], None]] = []
        self._is_polling = False

    @property
    def is_open(self) -> bool:
        return self._agent is not None

    async def poll(self) -> None:
        """Let UCX take in what comes, until nothing is granted any more. Once is enough.

        Raises:
            LinkError: NIXL has given up.
        """
        if self._is_polling:
            return
        self._is_polling = True
        try:
            while self.granted and self._agent is not None:
                self._agent.nixl.get_new_notifs()
                await asyncio.sleep(RECEIVER_PAUSE_S)
        except nixl_errors() as error:
            raise LinkError(f"NIXL: {error}") from error
        finally:
            self._is_polling = False

    def close_if_unused(self) -> None:
        if self.is_retired and not self.granted:
            self.close()

    def close(self) -> None:
        """On return no sender can write into the cache through it. Harmless twice."""
        if self._agent is not None:
            self._agent.close()
            self._agent = None
        while self.when_closed:
            self.when_closed.pop()()


class SharedAgent:
    """The one agent of a sender, made with its first link over NIXL."""

    def __init__(self, memory: CacheMemory, layout: CacheLayout) -> None:
        self._memory = memory
        self._layout = layout
        self._agent: Agent | None = None
        self._opening = asyncio.Lock()

    async def get(self) -> Agent:
        """Off this thread, since it may take seconds.

        Raises:
            LinkError: NIXL does not work here.
        """
        async with self._opening:
            if self._agent is None:
                self._agent = await asyncio.to_thread(Agent, self._memory, self._layout)
            return self._agent

    def close(self) -> None:
        if self._agent is not None:
            self._agent.close()


class NixlTransport(Transport):
    """Writes from ``agent``'s cache through the receiver's window."""

    name = "nixl"

    def __init__(
        self,
        agent: Agent,
        source: Blocks,
        layout: CacheLayout,
        window: Window,
        their_layout: CacheLayout,
        put_s: float,
    ) -> None:
        """``put_s``: how long a receiver may take to have ``WRITE_BYTES``.

        Raises:
            LinkError: the receiver's agent cannot be reached.
        """
        self.source = source
        self.agent = agent
        self.pair = LayoutPair(layout, their_layout)
        self.blocks = layout.blocks
        self.their_blocks = their_layout.blocks
        self._put_s = put_s
        self._is_closed = False
        self.here = agent.prepare(
            _THIS_AGENT, agent.regions, agent.device_index, layout.blocks, self.pair.at_source
        )
        self._windows: list[_Remote] = []
        self.take(window)

    def take(self, window: Window) -> None:
        """Write through this window from now on.

        Raises:
            LinkError: the receiver's agent cannot be reached.
        """
        if len(window.regions) <= max(p.region for layer in self.pair.at_target for p in layer):
            raise LinkError(f"a window of {len(window.regions)} regions")
        try:
            self._windows.append(_Remote(self, window))
        except nixl_errors() as error:
            raise LinkError(f"NIXL cannot reach the receiver's agent: {error}") from error

    def lane(self, number: int, target: Sequence[int]) -> Lane:
        # By the window of its grant to the end, though there may be a newer one by then.
        return functools.partial(self._stretch, self._windows[-1], np.array(target, np.int32))

    def _stretch(
        self, remote: "_Remote", target: Numbers, first: int, source: Sequence[int]
    ) -> Stretch:
        granted = target[first : first + len(source)]
        return _Stretch(self, remote, np.array(source, np.int32), granted)

    async def write(self, here: Numbers, there: Numbers, remote: "_Remote") -> None:
        """Copy blocks, by the numbers of their descriptors, and wait until they are in place.

        Raises:
            LinkError: the receiver is gone, or took nothing for too long.
        """
        nixl = self.agent.nixl
        try:
            transfer = nixl.make_prepped_xfer("WRITE", self.here, here, remote.prepared, there)
            try:
                await self._until_done(transfer, nixl.transfer(transfer))
            finally:
                transfer.release()
        except nixl_errors() as error:
            raise LinkLost(f"NIXL: {error}") from error

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
            if self._is_closed:
                raise LinkLost("this machine closed the connection")
            state = self.agent.nixl.check_xfer_state(transfer)
        if state != "DONE":
            raise LinkLost(f"NIXL: a write ended as {state}")

    def close(self) -> None:
        self._is_closed = True
        for remote in self._windows:
            remote.close()
        self.here.release()


class _Remote:
    """A receiver's window, seen from here."""

    def __init__(self, transport: NixlTransport, window: Window) -> None:
        agent = transport.agent
        self._nixl = agent.nixl
        self._name = self._nixl.add_remote_agent(window.metadata)
        self.prepared = agent.prepare(
            self._name,
            window.regions,
            window.device_index,
            transport.their_blocks,
            transport.pair.at_target,
        )

    def close(self) -> None:
        with suppress(*nixl_errors()):  # a receiver that is gone, or a write that still hangs
            self.prepared.release()
        with suppress(*nixl_errors()):
            self._nixl.remove_remote_agent(self._name)


class _Stretch(Stretch):
    def __init__(
        self, transport: NixlTransport, remote: _Remote, source: Numbers, target: Numbers
    ) -> None:
        self._transport = transport
        self._remote = remote
        self._source = source
        self._target = target
        self._rows = np.cumsum([0, *(len(layer) for layer in transport.pair.at_source)])

    async def put(self, layer: int, fence: Fence, moved: Moved) -> int:
        if fence is not None:
            await asyncio.to_thread(cast(Any, fence).synchronize)
        transport = self._transport
        size = transport.pair.block_bytes[layer]
        at_once = max(1, WRITE_BYTES // size)
        rows = np.arange(self._rows[layer], self._rows[layer + 1], dtype=np.int32)[:, None]
        writes = 0
        for at in range(0, len(self._source), at_once):
            here = (rows * transport.blocks + self._source[at : at + at_once]).ravel()
            there = (rows * transport.their_blocks + self._target[at : at + at_once]).ravel()
            await transport.write(here, there, self._remote)
            writes += 1
            if not moved(len(self._source[at : at + at_once]) * size):
                break
        return writes


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


def _locate(memory: CacheMemory, layout: CacheLayout) -> tuple[object, str, list[int], int]:
    """What keeps the cache mapped, NIXL's name for its kind, where its regions lie, its device."""
    if memory.device.startswith("cuda"):
        tensors = list(cast(DeviceMemory, memory).tensors)
        bases = [tensor.data_ptr() for tensor in tensors]
        return tensors, "VRAM", bases, tensors[0].device.index
    cache = np.frombuffer(cast(HostMemory, memory).buffer, np.uint8)
    base = int(cache.ctypes.data)
    bases = [base + layout.region_offset_bytes(index) for index in range(len(layout.regions))]
    return cache, "DRAM", bases, 0
