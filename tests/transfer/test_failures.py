"""Dead and silent peers, corrupted bytes, deadlines: both ends hear of it, in bounded time."""

import signal
import socket

import numpy as np
import pytest
from remote_machine import RemoteMachine, begin_until_stopped, check_both_ends_fail
from transfer_machines import (
    TRANSPORTS,
    LocalMachine,
    Settings,
    content,
    machines,
    send_all,
    warm_up,
)

from splitwise.transfer import Arrived, CacheLayout, Deadlines, Failed, Sent
from splitwise.transfer.address import ReceiverAddress, host_identity
from waiting import eventually

LAYOUT = CacheLayout.flat(layers=6, blocks=32, block_tokens=16, block_bytes=65_536)
SHORT = Deadlines(connect_s=0.3, idle_s=0.3)


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    warm_up(request.param)
    return str(request.param)


def test_killed_sender_fails_its_transfers_and_a_new_one_takes_its_place(transport: str) -> None:
    prompt = RemoteMachine(Settings("prompt", LAYOUT, 1, transport=transport))
    with machines(Settings("token", LAYOUT, 2)) as (token,):
        source = content(prompt.settings)
        for name, block in (("half", 1), ("granted", 2)):
            token.receiver.expect(name, "prompt", [block])
            prompt.call("sender.begin", name, token.address, [block])
        prompt.call("sender.layer_ready", ["half"], 0)
        eventually(lambda: bool((token.cache[0, 1] == source[0, 1]).all()))
        prompt.kill()
        events = {event.transfer_id: event for event in (token.event(), token.event())}
        for name in ("half", "granted"):
            event = events[name]
            assert isinstance(event, Failed) and "link from prompt" in event.reason
        prompt.reap()

        token.receiver.expect("again", "prompt", [1])
        successor = RemoteMachine(Settings("prompt", LAYOUT, 3, transport=transport))
        successor.call("sender.begin", "again", token.address, [4])
        successor.call("sender.finish", "again", b"")
        assert isinstance(token.event(), Arrived)
        np.testing.assert_array_equal(token.cache[:, 1], content(successor.settings)[:, 4])
        successor.close()


def test_killed_receiver_fails_transfers_at_the_sender(transport: str) -> None:
    token = RemoteMachine(Settings("token", LAYOUT, 2))
    with machines(Settings("prompt", LAYOUT, 1, transport=transport)) as (prompt,):
        token.call("receiver.expect", "t", "prompt", [1])
        prompt.sender.begin("t", token.address, [1])
        prompt.sender.layer_ready(["t"], 0)
        eventually(
            lambda: "t" not in prompt.sender._transfers or prompt.sender._transfers["t"].puts > 0
        )
        token.kill()
        event = prompt.event()
        assert isinstance(event, Failed) and "link to token" in event.reason
        token.reap()
        prompt.sender.begin("late", token.address, [1])  # nobody listens there any more
        event = prompt.event()
        assert isinstance(event, Failed) and "[Errno 111]" in event.reason


def test_a_receiver_that_stops_taking_data_fails_the_transfer() -> None:
    large = CacheLayout.flat(layers=12, blocks=16, block_tokens=16, block_bytes=2**20)
    token = RemoteMachine(Settings("token", large, 2))
    with machines(
        Settings("prompt", large, 1, transport="tcp", deadlines=Deadlines(write_s=0.3))
    ) as (prompt,):
        blocks = list(range(16))
        token.call("receiver.expect", "t", "prompt", blocks)
        prompt.sender.begin("t", token.address, blocks)
        prompt.sender.layer_ready(["t"], 0)
        eventually(lambda: prompt.sender._transfers["t"].puts > 0)
        token.kill(signal.SIGSTOP)
        send_all(prompt.sender, "u", 0)
        prompt.sender.layer_ready(["t"], 1)
        for layer in range(2, 12):
            prompt.sender.layer_ready(["t"], layer)
        check_both_ends_fail(prompt, token, "taken no data for 0.3 s")


@pytest.mark.parametrize("layer", [0, 3])
def test_a_corrupted_byte_is_noticed_at_both_ends(transport: str, layer: int) -> None:
    prompt = Settings("prompt", LAYOUT, 1, transport=transport, checksum=True)
    with machines(prompt, Settings("token", LAYOUT, 2)) as (first, token):
        token.receiver.expect("t", "prompt", [7, 3])
        first.sender.begin("t", token.address, [1, 2])
        for ready in range(5):
            first.sender.layer_ready(["t"], ready)
        eventually(lambda: bool((token.cache[:5, [7, 3]] == first.cache[:5, [1, 2]]).all()))
        token.cache[layer, 3, 1000] ^= 1
        first.sender.finish("t", b"")
        ours, theirs = first.event(), token.event()
        assert (
            isinstance(theirs, Failed) and f"layer {layer} arrived with checksum" in theirs.reason
        )
        assert ours == theirs


def test_without_checksum_nothing_is_compared(transport: str) -> None:
    with machines(
        Settings("prompt", LAYOUT, 1, transport=transport), Settings("token", LAYOUT, 2)
    ) as (prompt, token):
        token.receiver.expect("t", "prompt", [7])
        prompt.sender.begin("t", token.address, [1])
        prompt.sender.layer_ready(["t"], 0)
        eventually(lambda: bool((token.cache[0, 7] == prompt.cache[0, 1]).all()))
        token.cache[0, 7, 1000] ^= 1
        prompt.sender.finish("t", b"")
        assert isinstance(token.event(), Arrived)
        assert isinstance(prompt.event(), Sent)


def test_a_grant_that_never_comes_runs_into_the_deadline(transport: str) -> None:
    with machines(
        Settings("prompt", LAYOUT, 1, transport=transport, deadlines=SHORT),
        Settings("token", LAYOUT, 2),
    ) as (prompt, token):
        prompt.sender.begin("t", token.address, [1])
        prompt.sender.finish("t", b"")
        assert prompt.event() == Failed("t", "waited too long for token to grant blocks")
        token.receiver.expect("t", "prompt", [1])
        event = token.event()
        assert isinstance(event, Failed) and "waited too long" in event.reason


def test_an_answer_that_never_comes_runs_into_the_deadline() -> None:
    token = RemoteMachine(Settings("token", LAYOUT, 2))
    deadlines = Deadlines(answer_s=0.2)
    with machines(Settings("prompt", LAYOUT, 1, deadlines=deadlines)) as (prompt,):
        begin_until_stopped(prompt, token)
        prompt.sender.finish("t", b"")
        assert prompt.event() == Failed("t", "waited too long for token to answer")
        token.close()


def test_a_transfer_that_never_starts_runs_into_the_deadline() -> None:
    brief = Deadlines(idle_s=0.1)
    with machines(
        Settings("prompt", LAYOUT, 1, deadlines=brief),
        Settings("token", LAYOUT, 2, deadlines=brief),
    ) as (prompt, token):
        token.receiver.expect("t", "prompt", [1])
        assert token.event() == Failed("t", "nothing of it has come for 0.1 s")
        prompt.sender.begin("u", token.address, [1])
        assert prompt.event() == Failed("u", "waited too long for the prompt to finish")


def test_a_listener_that_never_answers_runs_into_the_deadline() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as mute,
        machines(Settings("prompt", LAYOUT, 1, deadlines=Deadlines(connect_s=0.3))) as (prompt,),
    ):
        port = mute.getsockname()[1]
        address = ReceiverAddress("x", "127.0.0.1", port, "", host_identity(), "cpu", ("tcp",))
        prompt.sender.begin("t", address, [1])
        assert prompt.event() == Failed("t", "link to x: no answer within 0.3 s")


def test_grants_that_do_not_fit_fail_that_transfer_alone(transport: str) -> None:
    with machines(
        Settings("prompt", LAYOUT, 1, transport=transport), Settings("token", LAYOUT, 2)
    ) as (prompt, token):
        token.receiver.expect("t", "prompt", [1, 2])
        prompt.sender.begin("t", token.address, [1])
        assert prompt.event() == Failed("t", "2 blocks granted for 1")
        assert token.event() == Failed("t", "2 blocks granted for 1")
        token.receiver.expect("u", "prompt", [1, 2])
        prompt.sender.begin("u", token.address, [1, 3])
        prompt.sender.finish("u", b"")
        assert isinstance(token.event(), Arrived)


def test_a_layer_reported_twice_or_outside_the_model_fails_the_transfer() -> None:
    with machines(Settings("prompt", LAYOUT, 1), Settings("token", LAYOUT, 2)) as (prompt, token):
        for name, layers in (("twice", [0, 0]), ("outside", [6])):
            token.receiver.expect(name, "prompt", [1])
            prompt.sender.begin(name, token.address, [1])
            for layer in layers:
                prompt.sender.layer_ready([name], layer)
            event = prompt.event()
            assert (
                isinstance(event, Failed)
                and f"layer {layers[-1]} was reported twice" in event.reason
            )
            assert token.event() == event


def test_close_ends_every_transfer_with_one_event(transport: str) -> None:
    prompt = LocalMachine(Settings("prompt", LAYOUT, 1, transport=transport))
    token = LocalMachine(Settings("token", LAYOUT, 2))
    for index in range(4):
        token.receiver.expect(f"t{index}", "prompt", [index])
        if index:
            prompt.sender.begin(f"t{index}", token.address, [index])
    prompt.sender.layer_ready(["t1"], 0)
    token.close()
    prompt.close()
    ends = [machine.events.get_nowait() for machine in (token,) * 4 + (prompt,) * 3]
    assert sorted(event.transfer_id for event in ends) == ["t0"] + [
        f"t{index}" for index in (1, 2, 3) for _ in "ab"
    ]
    assert token.events.empty() and prompt.events.empty()


def test_bad_arguments_are_named() -> None:
    with machines(Settings("token", LAYOUT, 2)) as (token,):
        token.receiver.expect("t", "prompt", [1])
        with pytest.raises(ValueError, match="'t' is in use"):
            token.receiver.expect("t", "prompt", [2])
        with pytest.raises(ValueError, match="blocks 3 to 32 of a cache of 32"):
            token.receiver.expect("u", "prompt", [3, 32])
        with pytest.raises(ValueError, match="named twice"):
            token.sender.begin("u", token.address, [3, 3])
        with pytest.raises(ValueError, match="payload of 8388609 bytes"):
            token.sender.finish("u", bytes(2**23 + 1))
    for wrong, message in [
        ({"key": ""}, "cluster_key is empty"),
        ({"transports": ("cuda_ipc",)}, "choose from shared_memory, .*tcp"),
        ({"transport": "pigeon"}, "choose from shared_memory, .*tcp"),
    ]:
        with pytest.raises(ValueError, match=message):
            LocalMachine(Settings("m", LAYOUT, 1, **wrong))  # type: ignore[arg-type]
