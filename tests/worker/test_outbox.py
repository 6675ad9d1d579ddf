"""What goes out by any thread: whole, in order, and never after half a message."""

import socket
import struct
import threading

import msgspec
import pytest

from splitwise.protocol.messages import Preempted, TaskFailed
from splitwise.worker.outbox import SocketOutbox

LENGTH = struct.Struct("!I")


def received(sock: socket.socket) -> list[Preempted | TaskFailed]:
    """All messages up to the end of the connection."""
    with sock.makefile("rb") as stream:
        messages: list[Preempted | TaskFailed] = []
        while head := stream.read(LENGTH.size):
            body = stream.read(LENGTH.unpack(head)[0])
            messages.append(msgspec.msgpack.decode(body, type=Preempted | TaskFailed))
    return messages


@pytest.fixture
def ends() -> tuple[socket.socket, socket.socket]:
    near, far = socket.socketpair()
    far.settimeout(20)
    return near, far


def test_messages_of_two_threads_come_whole_and_each_threads_in_order(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    outbox = SocketOutbox(near, patience_s=20)

    def say(first: int) -> None:
        for number in range(first, first + 2000):
            outbox.send(Preempted(number))

    threads = [threading.Thread(target=say, args=(first,)) for first in (0, 10_000)]
    closer = threading.Thread(target=lambda: ([t.join() for t in threads], outbox.close()))
    for thread in (*threads, closer):
        thread.start()
    numbers = [message.task for message in received(far)]
    closer.join()
    assert [n for n in numbers if n < 10_000] == list(range(2000))
    assert [n for n in numbers if n >= 10_000] == list(range(10_000, 12_000))
    far.close()


def test_a_peer_that_takes_nothing_loses_the_connection(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    outbox = SocketOutbox(near.dup(), patience_s=0.2)
    long = TaskFailed(1, "x" * 10_000_000, in_transfer=False)
    outbox.send(long)
    outbox.send(Preempted(2))  # Nothing may follow half a message.
    assert near.recv(1) == b""  # Whoever reads here finds the end.
    with pytest.raises(msgspec.DecodeError):
        received(far)
    outbox.close()
    near.close()
    far.close()


def test_a_peer_that_is_gone_and_a_closed_outbox_are_told_nothing(
    ends: tuple[socket.socket, socket.socket],
) -> None:
    near, far = ends
    far.close()
    outbox = SocketOutbox(near, patience_s=1)
    outbox.send(Preempted(1))
    outbox.send(Preempted(2))
    outbox.close()
    outbox.send(Preempted(3))
