"""Who is not let in, and what a peer that is let in cannot do."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable, Iterator

import msgspec
import numpy as np
import pytest
from transfer_machines import KEY, TRANSPORTS, LocalMachine, Settings, content, machines

from splitwise.protocol.handshake.conversation import Party, initiate
from splitwise.protocol.handshake.proofs import Purpose
from splitwise.transfer import Arrived, CacheLayout, Deadlines, Failed, Released
from splitwise.transfer import listener as listener_module
from splitwise.transfer.channel import Channel
from splitwise.transfer.frames import (
    FRAME_LIMIT_BYTES,
    HEADER,
    PROTOCOL_VERSION,
    AnyMessage,
    Done,
    Grant,
    Hello,
    Ready,
    Refused,
    Revoke,
    Stopped,
)
from splitwise.transfer.handshake import introduce
from splitwise.transfer.transports.tcp import PIECE
from waiting import eventually

LAYOUT = CacheLayout.flat(layers=4, blocks=32, block_tokens=16, block_bytes=1024)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def token() -> Iterator[LocalMachine]:
    with machines(Settings("token", LAYOUT, 2)) as (machine,):
        yield machine
        # Whatever a test did, an honest sender is still served, and only its blocks change.
        expected = content(machine.settings)
        with machines(Settings("honest", LAYOUT, 9)) as (prompt,):
            machine.receiver.expect("honest", "honest", [31, 30])
            prompt.sender.begin("honest", machine.address, [0, 1])
            prompt.sender.finish("honest", b"")
            assert isinstance(machine.event(), Arrived)
            expected[:, [31, 30]] = prompt.cache[:, [0, 1]]
            np.testing.assert_array_equal(machine.cache, expected)


def refusal(settings: Settings, token: LocalMachine) -> str:
    with machines(settings) as (prompt,):
        prompt.sender.begin("t", token.address, [1])
        event = prompt.event()
        assert isinstance(event, Failed)
        return event.reason


def test_another_cluster_key(token: LocalMachine, transport: str) -> None:
    reason = refusal(Settings("prompt", LAYOUT, 1, key="other", transport=transport), token)
    assert "the cluster key differs" in reason and "SPLITWISE_CLUSTER_KEY" in reason


@pytest.mark.parametrize(
    "layout",
    [
        CacheLayout.flat(5, 32, 16, 1024),
        CacheLayout.flat(4, 32, 32, 1024),
        CacheLayout.flat(4, 32, 16, 2048),
        msgspec.structs.replace(LAYOUT, form="another engine's"),
    ],
)
def test_another_layout(token: LocalMachine, transport: str, layout: CacheLayout) -> None:
    reason = refusal(Settings("prompt", layout, 1, transport=transport), token)
    assert "refused: cache layouts differ" in reason
    assert "same model, dtype, block size and engine" in reason


def test_a_receiver_that_is_not_the_one_named(token: LocalMachine, transport: str) -> None:
    other = msgspec.structs.replace(token.address, machine_id="another")
    with machines(Settings("prompt", LAYOUT, 1, transport=transport)) as (prompt,):
        prompt.sender.begin("t", other, [1])
        event = prompt.event()
        assert isinstance(event, Failed)
        assert "'token' answered in the place of 'another'" in event.reason


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        (msgspec.msgpack.encode(Hello("another", LAYOUT, "tcp")), "says that it is 'another'"),
        (b"\xc1", "bad claims"),
        (b"\x91" * 5000, "bad claims"),
        (b"\x81\xaamachine_id\xa2\xff\xfe", "bad claims"),
    ],
)
def test_claims_that_are_none_are_refused(token: LocalMachine, claims: bytes, words: str) -> None:
    async def claim() -> AnyMessage:
        sock = socket.create_connection((token.address.host, token.address.port))
        channel = Channel(sock, 5)
        await initiate(channel, Party(Purpose.TRANSFER, "bad", KEY), "token", claims)
        try:
            return await channel.receive_message(FRAME_LIMIT_BYTES)
        finally:
            channel.close()

    refused = asyncio.run(claim())
    assert isinstance(refused, Refused) and words in refused.reason


VERSION = len(b"splitws\n")
"""Where it stands in what is said first."""
STRANGERS = {
    "http": (b"GET / HTTP/1.1\r\n\r\n", "no handshake of splitwise"),
    "another version": (b"splitws\n\x00\x04\x02" + bytes(288), "protocol version 4, this side"),
    "another door": (
        b"splitws\n\x00\x05\x01" + bytes(288),
        "is for control, this one for transfer",
    ),
}


@pytest.mark.parametrize("name", STRANGERS)
def test_strangers_hear_the_version_and_no_more(
    token: LocalMachine, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    sent, words = STRANGERS[name]
    with socket.create_connection((token.address.host, token.address.port), timeout=10) as sock:
        sock.sendall(sent)
        received = b""
        while chunk := _receive(sock):
            received += chunk
    assert received[VERSION : VERSION + 2] == b"\x00\x05" and len(received) == VERSION + 3
    eventually(lambda: words in caplog.text)


def _receive(sock: socket.socket) -> bytes:
    try:
        return sock.recv(4096)
    except ConnectionResetError:  # it closed with bytes of ours unread
        return b""


def test_a_handshake_has_a_deadline_that_no_trickle_moves() -> None:
    settings = Settings("token", LAYOUT, 2, deadlines=Deadlines(connect_s=0.3))
    with machines(settings) as (token,):
        address = token.address.host, token.address.port
        with socket.create_connection(address, timeout=0.05) as sock:
            for byte in b"splitws\n\x00\x05\x02" + bytes(280):
                try:
                    sock.sendall(bytes([byte]))
                    if not _receive(sock):
                        break
                except TimeoutError:
                    continue
                except OSError:
                    break
            else:
                pytest.fail("it was let go on for a whole Hello")


@pytest.mark.parametrize("family", ["tcp", "unix"])
def test_silent_strangers_keep_no_sender_out(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listener_module, "PLACES", 8)
    with machines(Settings("token", LAYOUT, 2)) as (token,), contextlib.ExitStack() as crowd:
        address = token.address
        for _ in range(40):
            if family == "tcp":
                sock = socket.create_connection((address.host, address.port), timeout=10)
            else:
                sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
                sock.connect("\0" + address.unix_name)
            crowd.enter_context(sock)
        transport = "tcp" if family == "tcp" else "shared_memory"
        with machines(Settings("prompt", LAYOUT, 1, transport=transport)) as (prompt,):
            token.receiver.expect("t", "prompt", [3])
            prompt.sender.begin("t", address, [1])
            prompt.sender.finish("t", b"")
            assert isinstance(token.event(), Arrived)
            # Its links are proven; of the crowd only those are left for which there are places.
            connections = [t for t in token.receiver._thread._tasks if t.get_name() == "connection"]
            assert len(connections) <= 8 + 1 + 1 + 4  # and one a listener, and what is proven


Misdeed = Callable[[Channel, Channel, Grant], Awaitable[None]]


async def _unknown_number(control: Channel, stream: Channel, grant: Grant) -> None:
    await control.send_message(Done(grant.number + 1, b"", 0, 1, 0.0))


async def _wrong_direction(control: Channel, stream: Channel, grant: Grant) -> None:
    await control.send_message(Grant(0, "mine", [1]))


async def _oversized(control: Channel, stream: Channel, grant: Grant) -> None:
    await control.send([HEADER.pack(PROTOCOL_VERSION, FRAME_LIMIT_BYTES + 1)])


async def _garbage(control: Channel, stream: Channel, grant: Grant) -> None:
    await control.send([HEADER.pack(PROTOCOL_VERSION, 2), b"\xc1\xc1"])


async def _another_version(control: Channel, stream: Channel, grant: Grant) -> None:
    await control.send([HEADER.pack(PROTOCOL_VERSION + 1, 5), b"hello"])


async def _checksums_of_another_model(control: Channel, stream: Channel, grant: Grant) -> None:
    await control.send_message(Done(grant.number, b"", 0, 1, 0.0, None, [[1], [2]]))


async def _piece(stream: Channel, number: int, layer: int, first: int, count: int) -> None:
    await stream.send([PIECE.pack(number, layer, first, count), bytes(count * 1024)])


async def _layer_too_high(control: Channel, stream: Channel, grant: Grant) -> None:
    await _piece(stream, grant.number, 4, 0, 1)


async def _past_the_table(control: Channel, stream: Channel, grant: Grant) -> None:
    await _piece(stream, grant.number, 0, 1, 2)


async def _empty_piece(control: Channel, stream: Channel, grant: Grant) -> None:
    await _piece(stream, grant.number, 0, 0, 0)


async def _piece_of_nothing_granted(control: Channel, stream: Channel, grant: Grant) -> None:
    await _piece(stream, grant.number + 1, 0, 0, 1)


MISDEEDS: dict[str, tuple[Misdeed, str]] = {
    "unknown number": (_unknown_number, "never granted"),
    "wrong direction": (_wrong_direction, "Grant is not for a receiver"),
    "oversized frame": (_oversized, "at most"),
    "garbage": (_garbage, "bad frame"),
    "another version of frames": (_another_version, "same release"),
    "checksums": (_checksums_of_another_model, "2 checksums for 4 layers"),
    "layer too high": (_layer_too_high, "piece of layer 4"),
    "past the table": (_past_the_table, "entries 1 to 3"),
    "empty piece": (_empty_piece, "entries 0 to 0"),
    "piece of nothing": (_piece_of_nothing_granted, "never granted"),
}


async def _come_in(token: LocalMachine) -> tuple[Channel, Channel]:
    """A TCP link with one stream, opened with the right key."""
    channels = []
    link = None
    for _ in range(2):
        sock = socket.create_connection((token.address.host, token.address.port))
        channels.append(Channel(sock, 5))
        welcome = await introduce(channels[-1], "bad", "token", KEY, LAYOUT, "tcp", link)
        link = welcome.link
    control, stream = channels
    await control.send_message(Ready())
    return control, stream


async def _expect(
    token: LocalMachine, control: Channel, transfer_id: str, blocks: list[int]
) -> Grant:
    token.receiver.expect(transfer_id, "bad", blocks)
    grant = await control.receive_message(FRAME_LIMIT_BYTES)
    assert isinstance(grant, Grant) and grant.blocks == blocks
    return grant


async def _misbehave(token: LocalMachine, misdeed: Misdeed) -> str:
    """Come in, get a grant, misbehave; returns why the link was dropped."""
    control, stream = await _come_in(token)
    await misdeed(control, stream, await _expect(token, control, "t", [3, 4]))
    refused = await control.receive_message(FRAME_LIMIT_BYTES)
    control.close()
    stream.close()
    assert isinstance(refused, Refused)
    return refused.reason


@pytest.mark.parametrize("name", MISDEEDS)
def test_a_peer_that_breaks_the_protocol_loses_its_link(token: LocalMachine, name: str) -> None:
    misdeed, reason = MISDEEDS[name]
    assert reason in asyncio.run(_misbehave(token, misdeed))
    event = token.event()
    assert isinstance(event, Failed) and reason in event.reason


def test_a_piece_sent_twice_does_not_stand_for_another(token: LocalMachine) -> None:
    async def twice(control: Channel, stream: Channel, grant: Grant) -> None:
        original = content(token.settings)[0, 3].tobytes()
        for _ in range(2):
            await stream.send([PIECE.pack(grant.number, 0, 0, 1), original])

    assert "came twice" in asyncio.run(_misbehave(token, twice))
    assert isinstance(token.event(), Failed)


def test_a_second_signal_or_one_after_a_stop_is_no_harm(token: LocalMachine) -> None:
    async def signal_early(control: Channel, stream: Channel, grant: Grant) -> None:
        await control.send_message(Done(grant.number, b"", 0, 1, 0.0))  # no piece has come
        await control.send_message(Done(grant.number, b"", 0, 1, 0.0))

    assert "was signalled before" in asyncio.run(_misbehave(token, signal_early))
    assert isinstance(token.event(), Failed)

    async def stop_first(control: Channel, stream: Channel, grant: Grant) -> None:
        await control.send_message(Stopped(grant.number, "enough"))
        await control.send_message(Done(grant.number, b"", 0, 1, 0.0))
        await _piece(stream, grant.number, 0, 0, 1)  # thrown away
        await _garbage(control, stream, grant)

    assert "bad frame" in asyncio.run(_misbehave(token, stop_first))
    assert token.event() == Failed("t", "enough")


def test_a_receiver_that_grants_a_number_twice_loses_its_link(transport: str) -> None:
    first = Settings("prompt", LAYOUT, 1, transport=transport)
    with machines(first, Settings("token", LAYOUT, 2)) as (prompt, token):
        token.receiver.expect("t", "prompt", [3])
        prompt.sender.begin("t", token.address, [1])
        eventually(lambda: prompt.sender._transfers["t"].grant is not None)
        (over,) = token.receiver._links.values()
        token.receiver._thread.call(over.link.send, Grant(0, "u", [4]))
        event = prompt.event()
        assert isinstance(event, Failed) and "number 0 was granted twice" in event.reason
        assert isinstance(token.event(), Failed)


def test_the_rest_of_a_piece_is_thrown_away_once_its_transfer_is_cancelled() -> None:
    async def run(token: LocalMachine) -> None:
        control, stream = await _come_in(token)
        first = await _expect(token, control, "first", [3, 4])
        piece = np.random.default_rng(5).integers(0, 256, 2048, dtype=np.uint8)
        await stream.send([PIECE.pack(first.number, 0, 0, 2), piece[:1500].tobytes()])
        eventually(lambda: bool((token.cache[0, 4, :476] == piece[1024:1500]).all()))
        token.receiver.cancel("first")
        assert token.event() == Released("first")
        token.cache[:, [3, 4]] = 0xA5
        await stream.send([piece[1500:].tobytes()])
        await _piece(stream, first.number, 1, 0, 2)
        assert isinstance(await control.receive_message(FRAME_LIMIT_BYTES), Revoke)
        # What follows on the same stream is in step, so all of the above has been read.
        second = await _expect(token, control, "second", [7])
        for layer in range(LAYOUT.layers):
            await _piece(stream, second.number, layer, 0, 1)
        await control.send_message(Done(second.number, b"", 0, 4, 0.0))
        assert isinstance(token.event(), Arrived)
        assert (token.cache[:, 7] == 0).all()
        assert (token.cache[:, [3, 4]] == 0xA5).all()
        control.close()
        stream.close()

    with machines(Settings("token", LAYOUT, 2)) as (token,):
        asyncio.run(run(token))
