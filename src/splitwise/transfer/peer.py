"""The sender's side of one link: dial, handshake, data path, and the frames that come back."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from typing import cast

from splitwise.protocol.handshake.tls import ClusterTls
from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.channel import Channel
from splitwise.transfer.deadlines import Deadlines
from splitwise.transfer.errors import LinkError
from splitwise.transfer.frames import (
    FRAME_LIMIT_BYTES,
    AnyMessage,
    Grant,
    Message,
    Refused,
    Welcome,
    Window,
)
from splitwise.transfer.handshake import check_layout, introduce
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.link import Link, tune
from splitwise.transfer.memory import CacheMemory, HostMemory
from splitwise.transfer.tls_channel import check_tls, dialled_channel
from splitwise.transfer.transports.base import Lane, Transport
from splitwise.transfer.transports.choice import (
    CUDA_IPC,
    NIXL,
    SAME_HOST,
    SHARED_MEMORY,
    choose,
)
from splitwise.transfer.transports.cuda_ipc import CudaIpcTransport, DeviceMemory
from splitwise.transfer.transports.nixl import NixlTransport
from splitwise.transfer.transports.own_end import own_end
from splitwise.transfer.transports.shared_memory import SharedMemoryTransport, take_over
from splitwise.transfer.transports.tcp import TcpTransport

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
                on_frame(self, await self._link.receive())

    def lane(self, grant: Grant, source: Sequence[int]) -> Lane:
        """
        Raises:
            LinkError: a block that the receiver's cache does not have, or too few or many.
        """
        assert self._transport is not None
        if len(grant.blocks) != len(source):
            raise LinkError(f"{len(grant.blocks)} blocks granted for {len(source)}")
        if grant.blocks and not 0 <= min(grant.blocks) <= max(grant.blocks) < self._blocks:
            raise LinkError(f"blocks granted outside a cache of {self._blocks}: {grant.blocks}")
        return self._transport.lane(grant.number, source, grant.blocks)

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
        name, reason = choose(
            self.address, own_end(self._config.memory.device), self._config.transport
        )
        channel, welcome = await self._connect(name, None, on_exit)
        check_layout(welcome.layout, self._config.layout)
        self._blocks = welcome.layout.blocks
        # Closed in this order's reverse: to the receiver the link's end means that no put is under
        # way, so the transport must be at rest before.
        self._link = Link(channel)
        on_exit.callback(self._link.close)
        self._transport = await self._open_transport(name, channel, welcome, on_exit)
        logger.info("sending to %s over %s (%s)", self.address.machine_id, name, reason)

    async def _open_transport(
        self, name: str, channel: Channel, welcome: Welcome, on_exit: contextlib.ExitStack
    ) -> Transport:
        config = self._config
        transport: Transport
        if name == SHARED_MEMORY:
            async with self._in_time():
                theirs = await take_over(channel, welcome.layout.total_bytes)
            mine = cast(HostMemory, config.memory)
            transport = SharedMemoryTransport(mine, config.layout, theirs, welcome.layout)
        elif name == CUDA_IPC:
            mine_there = cast(DeviceMemory, config.memory)
            transport = CudaIpcTransport(mine_there, config.layout, welcome.handle, welcome.layout)
        elif name == NIXL:
            async with self._in_time():
                window = await _receive_window(channel)
            transport = await asyncio.to_thread(
                NixlTransport,
                config.memory,
                config.layout,
                window,
                welcome.layout,
                config.deadlines.write_s,
            )
        else:
            streams = [
                await self._connect(name, welcome.link, on_exit) for _ in range(config.streams)
            ]
            channels = [stream for stream, _ in streams]
            transport = TcpTransport(cast(HostMemory, config.memory), config.layout, channels)
        on_exit.callback(transport.close)
        return transport

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


async def _receive_window(channel: Channel) -> Window:
    message = await channel.receive_message(FRAME_LIMIT_BYTES)
    if isinstance(message, Refused):
        raise LinkError(f"refused: {message.reason}")
    if not isinstance(message, Window):
        raise LinkError(f"{type(message).__name__} where Window was due")
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
