"""Control messages: in order, whole, several to a write, and none lost by an orderly close."""

import asyncio
import socket

import pytest

from splitwise.protocol.messages import Cancel, Refused, Shutdown, ToWorker
from splitwise.protocol.wire import Wire, WireError


async def connected() -> tuple[Wire[ToWorker], Wire[ToWorker]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near: Wire[ToWorker] = await Wire.dial(*listener.getsockname(), ToWorker)
        far: Wire[ToWorker] = await Wire.accept(listener.accept()[0], ToWorker)
    near.trust()
    far.trust()
    return near, far


async def test_messages_come_in_order_whatever_turn_they_were_sent_in() -> None:
    near, far = await connected()
    for number in range(10):
        near.send(Cancel(number))
        if number % 3 == 0:
            await asyncio.sleep(0)
    assert [await far.receive() for _ in range(10)] == [Cancel(number) for number in range(10)]
    await asyncio.gather(near.close(), far.close())


async def test_what_was_sent_before_a_close_arrives_and_what_is_sent_after_it_does_not() -> None:
    near, far = await connected()
    near.send(Cancel(1))
    near.send(Shutdown())
    closing = asyncio.create_task(near.close())
    assert [await far.receive(), await far.receive()] == [Cancel(1), Shutdown()]
    near.send(Cancel(2))
    with pytest.raises(EOFError):
        await far.receive()
    await far.close()
    await closing


async def test_what_is_no_message_is_refused() -> None:
    near, far = await connected()
    near._transport.write(b"\x00\x00\x00\x02{}")
    with pytest.raises(WireError, match="malformed"):
        await far.receive()
    near._transport.write(b"\xff\xff\xff\xff")
    with pytest.raises(WireError, match="bytes"):
        await far.receive()
    await asyncio.gather(near.close(), far.close())


async def test_who_does_not_receive_makes_the_peer_wait() -> None:
    near, far = await connected()
    many = [Refused(f"{number} " + "x" * 10_000) for number in range(2_000)]
    for message in many:
        near.send(message)
    while not far._is_paused:
        await asyncio.sleep(0.001)
    for _ in range(100):  # turns in which more could have come
        await asyncio.sleep(0)
    assert len(far._unread) < 4 * 1024 * 1024
    assert [await far.receive() for _ in many] == many
    await asyncio.gather(near.close(), far.close())


async def test_a_connection_that_is_given_up_says_why() -> None:
    near, far = await connected()
    waiting = asyncio.create_task(far.receive())
    await asyncio.sleep(0)
    far.fail(WireError("silent"))
    with pytest.raises(WireError, match="silent"):
        await waiting
    with pytest.raises((EOFError, ConnectionError)):
        await near.receive()
    await asyncio.gather(near.close(), far.close())


async def test_a_strangers_bytes_are_left_to_the_kernel() -> None:
    """Megabytes that nobody has asked for would be memory that anyone can take."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near: Wire[ToWorker] = await Wire.dial(*listener.getsockname(), ToWorker)
        far: Wire[ToWorker] = await Wire.accept(listener.accept()[0], ToWorker)
    await near.write(bytes(32 * 1024 * 1024))
    while not far._is_paused:
        await asyncio.sleep(0.001)
    await asyncio.sleep(0.05)
    assert len(far._unread) <= 512 * 1024
    near.abort()
    await far.close()
