"""Deadlines count from the last progress: what is slow arrives, what stands still is given up."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec
import numpy as np
import pytest
from throttle import Throttle
from transfer_machines import TRANSPORTS, LocalMachine, Settings, machines, send_all, warm_up

from splitwise.transfer import Arrived, CacheLayout, Deadlines, Failed, Sent
from splitwise.transfer.outgoing import Outgoing
from waiting import eventually

PATIENCE_S = 0.5
IMPATIENT = Deadlines(write_s=PATIENCE_S, answer_s=PATIENCE_S, stop_s=PATIENCE_S, idle_s=PATIENCE_S)
SMALL = CacheLayout.flat(layers=4, blocks=8, block_tokens=16, block_bytes=65_536)
LARGE = CacheLayout.flat(layers=4, blocks=64, block_tokens=16, block_bytes=65_536)


@contextmanager
def begun() -> Iterator[list[LocalMachine]]:
    """A prompt and a token machine, and a transfer between them whose first layer is ready."""
    with machines(
        Settings("prompt", SMALL, 1, deadlines=IMPATIENT),
        Settings("token", SMALL, 2, deadlines=IMPATIENT),
    ) as (prompt, token):
        token.receiver.expect("t", "prompt", [3])
        prompt.sender.begin("t", token.address, [5])
        prompt.sender.layer_ready(["t"], 0)
        yield [prompt, token]


@pytest.mark.parametrize(
    ("layout", "bytes_a_second"),
    [
        # The kernel takes it all at once; then the answer is long in coming.
        pytest.param(SMALL, 256 * 2**10, id="in the kernel's hands"),
        pytest.param(LARGE, 2 * 2**20, id="in the sender's"),
    ],
)
def test_a_slow_link_delivers(layout: CacheLayout, bytes_a_second: float) -> None:
    with machines(
        Settings("prompt", layout, 1, transport="tcp", deadlines=IMPATIENT),
        Settings("token", layout, 2, deadlines=IMPATIENT),
    ) as (prompt, token):
        with Throttle(token.address.port, bytes_a_second) as slow:
            address = msgspec.structs.replace(token.address, port=slow.port)
            blocks = list(range(layout.blocks))
            token.receiver.expect("t", "prompt", blocks)
            started_s = time.monotonic()
            prompt.sender.begin("t", address, blocks)
            send_all(prompt.sender, "t", layout.layers)
            assert isinstance(event := token.event(), Arrived), event
            assert isinstance(event := prompt.event(), Sent), event
        assert time.monotonic() - started_s > 2 * PATIENCE_S, "too fast to show anything"
        np.testing.assert_array_equal(token.cache, prompt.cache)


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_a_slow_prompt_is_waited_for(transport: str) -> None:
    warm_up(transport)
    with machines(
        Settings("prompt", SMALL, 1, transport=transport, deadlines=IMPATIENT),
        Settings("token", SMALL, 2, deadlines=IMPATIENT),
    ) as (prompt, token):
        token.receiver.expect("t", "prompt", [3])
        prompt.sender.begin("t", token.address, [5])
        for layer in range(SMALL.layers):
            time.sleep(0.6 * PATIENCE_S)
            prompt.sender.layer_ready(["t"], layer)
        time.sleep(0.6 * PATIENCE_S)
        prompt.sender.finish("t", b"")
        assert isinstance(event := token.event(), Arrived), event
        assert isinstance(event := prompt.event(), Sent), event
        np.testing.assert_array_equal(token.cache[:, 3], prompt.cache[:, 5])


def test_a_slow_prompt_is_given_up_where_it_stops() -> None:
    with begun() as (prompt, token):
        ends = {type(event) for event in (prompt.event(), token.event())}
        assert ends == {Failed}


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_what_came_while_an_end_was_held_up_counts(
    end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a process that was stopped finds it: the deadline is past, and the word is there."""
    with begun() as (prompt, token):
        eventually(lambda: bool((token.cache[0, 3] == prompt.cache[0, 5]).all()))
        if end == "sender":
            signal = prompt.sender._signal

            def held_up(transfer: Outgoing) -> None:
                signal(transfer)
                time.sleep(3 * PATIENCE_S)

            monkeypatch.setattr(prompt.sender, "_signal", held_up)
        else:
            token.receiver._thread.call(time.sleep, 3 * PATIENCE_S)
        prompt.sender.finish("t", b"")
        assert isinstance(event := token.event(), Arrived), event
        if end == "sender":
            assert isinstance(event := prompt.event(), Sent), event


def test_verifying_takes_its_time_and_hinders_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    from splitwise.transfer import checksum, sender

    really = checksum.layer_checksum

    def slow(*args: object) -> list[int]:
        time.sleep(0.8 * PATIENCE_S)
        return really(*args)  # type: ignore[arg-type]

    with machines(
        Settings("prompt", SMALL, 1, checksum=True, deadlines=IMPATIENT),
        Settings("other", SMALL, 3, deadlines=IMPATIENT),
        Settings("token", SMALL, 2, deadlines=IMPATIENT),
    ) as (prompt, other, token):
        monkeypatch.setattr(checksum, "layer_checksum", slow)
        assert sender.layer_checksum is really, "the sender's own is quick"
        token.receiver.expect("slow", "prompt", [3])
        prompt.sender.begin("slow", token.address, [5])
        send_all(prompt.sender, "slow", SMALL.layers)
        token.receiver.expect("quick", "other", [4])
        other.sender.begin("quick", token.address, [5])
        send_all(other.sender, "quick", SMALL.layers)
        first, second = token.event(), token.event()
        assert isinstance(first, Arrived) and first.transfer_id == "quick", first
        assert isinstance(second, Arrived) and second.transfer_id == "slow", second
        assert isinstance(event := prompt.event(), Sent), event


def test_a_stop_need_not_wait_for_a_whole_layer() -> None:
    """Over a link on which one layer takes many times as long as a stop may."""
    layout = CacheLayout.flat(layers=1, blocks=512, block_tokens=16, block_bytes=65_536)
    with machines(
        Settings("prompt", layout, 1, transport="tcp", deadlines=IMPATIENT),
        Settings("token", layout, 2, deadlines=IMPATIENT),
    ) as (prompt, token):
        with Throttle(token.address.port, 2**20) as slow:
            address = msgspec.structs.replace(token.address, port=slow.port)
            blocks = list(range(layout.blocks))
            token.receiver.expect("t", "prompt", blocks)
            prompt.sender.begin("t", address, blocks, all_ready=True)
            while not prompt.sender._transfers["t"].put_bytes:
                time.sleep(0.01)
            prompt.sender.cancel("t")
            prompt.event()
            assert isinstance(token.event(), Failed)
            put_bytes = sum(block.nbytes for block in token.cache[0] if block.any())
        assert put_bytes  # a part of it came


def test_deadlines_that_cannot_be_met_are_refused() -> None:
    with pytest.raises(ValueError, match="idle_s is 0: give seconds above 0"):
        Deadlines(idle_s=0)
