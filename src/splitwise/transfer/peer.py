"""The sender's side of one link: dial, handshake, data path, and the frames that come back."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import TypeVar, cast

from splitwise.protocol.handshake.tls import ClusterTls
from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.channel import Channel
from splitwise.transfer.deadlines import Deadlines
from splitwise.transfer.device_blocks import DeviceMemory, DeviceQueue, blocks_of
from splitwise.transfer.errors import LinkError
from splitwise.transfer.frames import (
    FRAME_LIMIT_BYTES,
    AnyMessage,
    Grant,
    Handles,
    Message,
    Ready,
    Refused,
    Welcome,
    Window,
)
from splitwise.transfer.handshake import check_layout, introduce
from splitwise.transfer.host_blocks import Blocks
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.link import Link, tune
from splitwise.transfer.memory import CacheMemory, HostMemory
from splitwise.transfer.pairing import LayoutPair
from splitwise.transfer.staging import as_stream_end
from splitwise.transfer.tls_channel import check_tls, dialled_channel
from splitwise.transfer.transports.base import Lane, Transport
from splitwise.transfer.transports.choice import (
    CUDA_IPC,
    NIXL,
    SAME_HOST,
    SHARED_MEMORY,
    choose,
)
from splitwise.transfer.transports.cuda_ipc import CudaIpcTransport, open_regions
from splitwise.transfer.transports.nixl import NixlTransport, SharedAgent
from splitwise.transfer.transports.own_end import own_end
from splitwise.transfer.transports.shared_memory import SharedMemoryTransport, take_over
from splitwise.transfer.transports.tcp import TcpTransport

M = TypeVar("M", bound=Message)
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SenderConfig:
    """What every link of one sender needs to know of its machine."""

    memory: CacheMemory
    layout: CacheLayout
    machine_id: str
    cluster_key: str
    transport: str | None
    """Forced; None leaves the choice to what both ends can do."""
    streams: int
    deadlines: Deadlines
    tls: ClusterTls | None
    agent: SharedAgent
    queue: DeviceQueue | None
    """For a cache on a device."""


class Peer:
    """A receiver that this machine sends to, or tries to."""

    def __init__(self, config: SenderConfig, address: ReceiverAddress) -> None:
        self.address = address
        self._config = config
        self._link: Link | None = None
        self._transport: Transport | None = None
        self._blocks = 0

    async def run(self, on_frame: Callable[["Peer", AnyMessage], None]) -> None:
        """Dial, then hand each frame to ``on_frame`` until the link ends.

        Raises:
            LinkError: always, with the reason why it ended.
        """
        with contextlib.ExitStack() as on_exit:
            try:
                await self._open(on_exit)
            except (OSError, UnicodeError) as error:  # a host's name may be none at all
                raise LinkError(str(error)) from error
            assert self._link is not None
            while True:
                message = await self._link.receive()
                if isinstance(message, Window) and isinstance(self._transport, NixlTransport):
                    self._transport.take(message)
                else:
                    on_frame(self, message)

    def lane(self, grant: Grant, table_blocks: int) -> Lane:
        """
        Raises:
            LinkError: a block that the receiver's cache does not have, or too few or many.
        """
        assert self._transport is not None
        if grant.skipped + len(grant.blocks) != table_blocks:
            already = f" beside {grant.skipped} held already" if grant.skipped else ""
            raise LinkError(f"{len(grant.blocks)} blocks granted{already} for {table_blocks}")
        if grant.blocks and not 0 <= min(grant.blocks) <= max(grant.blocks) < self._blocks:
            raise LinkError(f"blocks granted outside a cache of {self._blocks}: {grant.blocks}")
        return self._transport.lane(grant.number, grant.blocks)

    @property
    def blocks(self) -> Blocks:
        """This end's, as they fit that receiver's."""
        assert self._transport is not None
        return self._transport.source

    def send(self, message: Message) -> None:
        assert self._link is not None
        self._link.send(message)

    def fail(self, error: LinkError) -> None:
        """Give the link up."""
        if self._link is not None:
            self._link.fail(error)

    async def flush(self) -> None:
        """Wait until the kernel has all frames sent so far."""
        if self._link is not None:
            await self._link.flush()

    async def _open(self, on_exit: contextlib.ExitStack) -> None:
        """By the best transport that opens: two containers of one host may not see each other's
        device, or a driver may not let one into the other's memory."""
        config = self._config
        names, reason = choose(self.address, own_end(config.memory.device), config.transport)
        for name in names[:-1]:
            try:
                with contextlib.ExitStack() as attempt:
                    await self._open_by(name, attempt)
                    on_exit.push(attempt.pop_all())
            except (LinkError, OSError) as error:
                logger.warning("%s to %s: %s", name, self.address.machine_id, error)
            else:
                logger.info("sending to %s over %s (%s)", self.address.machine_id, name, reason)
                return
        await self._open_by(names[-1], on_exit)
        logger.info("sending to %s over %s (%s)", self.address.machine_id, names[-1], reason)

    async def _open_by(self, name: str, on_exit: contextlib.ExitStack) -> None:
        channel, welcome = await self._connect(name, None, on_exit)
        check_layout(welcome.layout, self._config.layout)
        self._blocks = welcome.layout.blocks
        # Closed in this order's reverse: to the receiver the link's end means that no put is under
        # way, so the transport must be at rest before.
        self._link = Link(channel)
        on_exit.callback(self._link.close)
        self._transport = await self._open_transport(name, channel, welcome, on_exit)
        on_exit.callback(self._transport.close)
        self._link.send(Ready())

    async def _open_transport(
        self, name: str, channel: Channel, welcome: Welcome, on_exit: contextlib.ExitStack
    ) -> Transport:
        config = self._config
        memory, layout, theirs = config.memory, config.layout, welcome.layout
        pair = LayoutPair(layout, theirs)
        mine = blocks_of(memory, layout, pair.at_source)
        if name == SHARED_MEMORY:
            async with self._in_time():
                there = await take_over(channel, theirs.total_bytes)
            return SharedMemoryTransport(cast(HostMemory, memory), layout, there, theirs)
        if name == CUDA_IPC:
            async with self._in_time():
                handles = await _receive(channel, Handles)
            regions = open_regions(handles.regions)
            return CudaIpcTransport(cast(DeviceMemory, memory), layout, regions, theirs)
        if name == NIXL:
            async with self._in_time():
                window = await _receive(channel, Window)
            agent = await config.agent.get()
            put_s = config.deadlines.write_s
            return NixlTransport(agent, mine, layout, window, theirs, put_s)
        streams = [await self._connect(name, welcome.link, on_exit) for _ in range(config.streams)]
        channels = [stream for stream, _ in streams]
        return TcpTransport(as_stream_end(mine, config.queue), pair.block_bytes, channels)

    async def _connect(
        self, transport: str, link: int | None, on_exit: contextlib.ExitStack
    ) -> tuple[Channel, Welcome]:
        """One connection, proven on both sides."""
        address, config = self.address, self._config
        check_tls(address, transport, config.tls)
        async with self._in_time():
            sock = await _dial(address, transport)
            channel = dialled_channel(sock, config.deadlines.write_s, config.tls)
            on_exit.callback(channel.close)
            await channel.secure()
            welcome = await introduce(
                channel,
                config.machine_id,
                address.machine_id,
                config.cluster_key,
                config.layout,
                transport,
                link,
            )
        return channel, welcome

    @contextlib.asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        """One step of opening the link.

        Raises:
            LinkError: the receiver takes too long over it.
        """
        limit_s = self._config.deadlines.connect_s
        try:
            async with asyncio.timeout(limit_s):
                yield
        except TimeoutError:
            raise LinkError(f"no answer within {limit_s:g} s") from None


async def _receive(channel: Channel, kind: type[M]) -> M:
    message = await channel.receive_message(FRAME_LIMIT_BYTES)
    if isinstance(message, Refused):
        raise LinkError(f"refused: {message.reason}")
    if not isinstance(message, kind):
        raise LinkError(f"{type(message).__name__} where {kind.__name__} was due")
    return message


async def _dial(address: ReceiverAddress, transport: str) -> socket.socket:
    loop = asyncio.get_running_loop()
    if transport in SAME_HOST:
        family, target = socket.AF_UNIX, "\0" + address.unix_name
    else:
        found = await loop.getaddrinfo(address.host, address.port, type=socket.SOCK_STREAM)
        family, _, _, _, target = found[0]  # type: ignore[assignment]
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        tune(sock)
        await loop.sock_connect(sock, target)
    except BaseException:
        sock.close()
        raise
    return sock
