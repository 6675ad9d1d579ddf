"""What comes in at a receiver's door, and what senders with the key may say: no harm to others.

An honest sender's bytes arrive whole between the attacks, and only into its own blocks.
"""

import asyncio
import gc
import logging
import os
import random
import socket
import struct
from contextlib import suppress

import msgspec
import numpy as np
import pytest
from holdings import Holdings
from mutations import Garbling, body_of, framed
from transfer_machines import KEY, LocalMachine, Settings, machines

from splitwise.protocol.handshake.conversation import Party, initiate
from splitwise.protocol.handshake.proofs import HandshakeError, Purpose
from splitwise.transfer import Arrived, CacheLayout, Failed, Sent
from splitwise.transfer.channel import Channel
from splitwise.transfer.errors import LinkError
from splitwise.transfer.frames import (
    FRAME_LIMIT_BYTES,
    HEADER,
    PROTOCOL_VERSION,
    Done,
    Grant,
    Hello,
    Message,
    Progress,
    Ready,
    Revoke,
    Stopped,
    Welcome,
)
from splitwise.transfer.handshake import introduce
from splitwise.transfer.transports.tcp import PIECE
from waiting import eventually

LAYOUT = CacheLayout.flat(layers=4, blocks=32, block_tokens=16, block_bytes=1024)
LENGTH = struct.Struct("!I")
ITS_BLOCKS, HONEST_BLOCKS = [3, 4], [31, 30]
GROWTH_MIB = 24


def frame(body: bytes) -> bytes:
    return HEADER.pack(PROTOCOL_VERSION, len(body)) + body


class Attack:
    """Sessions of a bad sender with the machine ``token``."""

    def __init__(self, token: LocalMachine, draw: random.Random) -> None:
        self.token = token
        self.draw = draw
        self.inputs = 0
        self.sessions = 0
        self.proved = 0
        """Knocks of which nothing was wrong but, perhaps, the claims."""

    def _dial(self, transport: str) -> socket.socket:
        address = self.token.address
        if transport == "shared_memory":
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.connect("\0" + address.unix_name)
            return sock
        return socket.create_connection((address.host, address.port))

    async def knock(self) -> None:
        """A connection that does not, or not quite, shake hands or say Hello."""
        self.inputs += 1
        transport = self.draw.choice(("tcp", "shared_memory"))
        channel = Channel(self._dial(transport), 5)
        link = self.draw.choice((None, 1, 10**6))
        claims = body_of(Hello("bad", LAYOUT, transport, link), self.draw)
        stream = Garbling(channel.read, channel.write, channel.shut_down_writing, self.draw)
        with suppress(LinkError, HandshakeError):
            await initiate(stream, Party(Purpose.TRANSFER, "bad", KEY), "token", claims)
        self.proved += stream.is_whole
        if self.draw.random() < 0.3:
            with suppress(LinkError):  # it may have hung up
                channel.shut_down_writing()
                while True:
                    await channel.read(1)
        channel.close()

    async def session(self, transport: str) -> None:
        """Come in with the key, take grants, and say up to ten things that are wrong."""
        self.sessions += 1
        control = Channel(self._dial(transport), 5)
        welcome = await introduce(control, "bad", "token", KEY, LAYOUT, transport)
        stream = None
        if transport == "tcp":
            stream = Channel(self._dial("tcp"), 5)
            await introduce(stream, "bad", "token", KEY, LAYOUT, "tcp", welcome.link)
        else:
            (handed_over,) = await control.receive_fds()
            os.close(handed_over)
        await control.send_message(Ready())
        transfer_id = f"bad-{self.sessions}"
        self.token.receiver.expect(transfer_id, "bad", ITS_BLOCKS)
        grant = await control.receive_message(FRAME_LIMIT_BYTES)
        assert isinstance(grant, Grant)
        with suppress(LinkError):
            for _ in range(self.draw.randrange(1, 11)):
                self.inputs += 1
                await self._say(control, stream, grant)
        control.close()
        if stream is not None:
            stream.close()
        event = await asyncio.to_thread(self.token.event)
        assert event.transfer_id == transfer_id
        assert isinstance(event, Failed | Arrived)

    async def _say(self, control: Channel, stream: Channel | None, grant: Grant) -> None:
        if stream is not None and self.draw.random() < 0.4:
            await stream.send([self._piece(grant.number)])
        else:
            said = framed(body_of(self._message(grant.number), self.draw), self.draw, frame, LENGTH)
            await control.send([said])

    def _piece(self, number: int) -> bytes:
        layer, first = self.draw.randrange(5), self.draw.randrange(3)
        count = self.draw.choice((0, 1, 1, 2, 2**32 - 1))
        number = self.draw.choice((number, number, number + 1, 0, 2**64 - 1))
        body = self.draw.randbytes(self.draw.choice((0, 5, 1024, 2048)))
        return PIECE.pack(number, layer, first, count) + body

    def _message(self, number: int) -> Message:
        words = (
            Done(number, b"\x07", 0, 1, 0.1, 5.0, self.draw.choice((None, [[1], [2], [3], [4]]))),
            Done(number, b"", 10, 1, 0.1),
            Stopped(number, "enough"),
            Progress(number, self.draw.choice((0, 10, 2**63 - 1))),
            Revoke(number, "no"),
            Welcome(1, LAYOUT),
        )
        return self.draw.choice(words)


def honest(token: LocalMachine, prompt: LocalMachine, name: str) -> None:
    """A whole transfer; of all blocks but the bad sender's only its own change."""
    expected = token.cache.copy()
    expected[:, HONEST_BLOCKS] = prompt.cache[:, [0, 1]]
    token.receiver.expect(name, "honest", HONEST_BLOCKS)
    prompt.sender.begin(name, token.address, [0, 1])
    prompt.sender.finish(name, b"")
    assert isinstance(token.event(), Arrived)
    assert isinstance(prompt.event(), Sent)
    untouched = [block for block in range(LAYOUT.blocks) if block not in ITS_BLOCKS]
    np.testing.assert_array_equal(token.cache[:, untouched], expected[:, untouched])
    prompt.cache[:, [0, 1]] += 1


async def knocks(attack: Attack, count: int) -> None:
    for _ in range(count):
        await attack.knock()


def attack(attack: Attack, prompt: LocalMachine, inputs: int) -> None:
    end = attack.inputs + inputs
    while attack.inputs < end:
        asyncio.run(knocks(attack, 40))
        for transport in ("tcp", "shared_memory") * 4:
            asyncio.run(attack.session(transport))
        honest(attack.token, prompt, f"honest-{attack.inputs}")


@pytest.mark.parametrize(
    "inputs",
    [1500, pytest.param(24_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_fuzz_of_the_receiver(inputs: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    settings = Settings("honest", LAYOUT, 9, checksum=True)
    with machines(Settings("token", LAYOUT, 2), settings) as (token, prompt):
        bad = Attack(token, random.Random(2))
        attack(bad, prompt, inputs // 4)
        before = Holdings.of(os.getpid())
        attack(bad, prompt, inputs)
        eventually(lambda: Holdings.of(os.getpid()).files <= before.files)
        gc.collect()
        after = Holdings.of(os.getpid())
        print(f"{bad.inputs} inputs in {bad.sessions} sessions; {before} -> {after}")
        assert bad.proved > bad.inputs // 20  # some get as far as their claims
        assert not token.receiver._transfers
        assert len(token.receiver._links) == 1
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert after.rss_mib < before.rss_mib + GROWTH_MIB


@pytest.mark.parametrize(
    ("name", "value"),
    [("early_bytes", -1), ("puts", -1), ("put_s", float("nan")), ("finished_s", float("inf"))],
)
def test_a_signal_with_absurd_numbers_is_refused(name: str, value: float) -> None:
    """They would reach the cluster scheduler's metrics, as this machine's word."""
    from splitwise.transfer.frames import decode

    fields = msgspec.to_builtins(Done(0, b"", 0, 1, 0.0, 1.0), builtin_types=[bytes])
    with pytest.raises(LinkError, match=name):
        decode(msgspec.msgpack.encode(fields | {name: value}))
