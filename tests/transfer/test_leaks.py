"""Nothing is left behind: threads, descriptors, memory maps, log noise."""

import gc
import logging
import os
import threading
from pathlib import Path

import pytest
from transfer_machines import KEY, TRANSPORTS, LocalMachine, Settings, machines, send_all

from splitwise.transfer import Arrived, CacheLayout, HostMemory, KVReceiver, KVSender, Sent

LAYOUT = CacheLayout.flat(layers=2, blocks=8, block_tokens=16, block_bytes=4096)


def _holdings() -> tuple[int, int, int]:
    """Descriptors, threads, maps of caches."""
    maps = Path("/proc/self/maps").read_text().count("splitwise-kv")
    return len(os.listdir("/proc/self/fd")), threading.active_count(), maps


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_opening_and_closing_leaves_nothing(transport: str) -> None:
    def round_trip(index: int) -> None:
        with machines(
            Settings("prompt", LAYOUT, 1, transport=transport), Settings("token", LAYOUT, 2)
        ) as (prompt, token):
            token.receiver.expect("t", "prompt", [1, 2])
            prompt.sender.begin("t", token.address, [3, 4])
            send_all(prompt.sender, "t", LAYOUT.layers)
            assert isinstance(token.event(), Arrived)
            assert isinstance(prompt.event(), Sent)
            token.receiver.expect("open", "prompt", [index % 8])  # left unfinished

    round_trip(0)
    gc.collect()
    before = _holdings()
    for index in range(8):
        round_trip(index)
    gc.collect()
    assert _holdings() == before


def test_ended_transfers_leave_no_record() -> None:
    with machines(Settings("prompt", LAYOUT, 1), Settings("token", LAYOUT, 2)) as (prompt, token):
        for index in range(50):
            token.receiver.expect(f"t{index}", "prompt", [1])
            prompt.sender.begin(f"t{index}", token.address, [3])
            if index % 2:
                send_all(prompt.sender, f"t{index}", LAYOUT.layers)
            else:
                prompt.sender.cancel(f"t{index}")
            token.event()
            prompt.event()
        assert not prompt.sender._transfers
        assert not token.receiver._transfers
        (over,) = token.receiver._links.values()
        assert not over.transfers


def test_close_twice_and_from_a_callback() -> None:
    machine = LocalMachine(Settings("m", LAYOUT, 1))
    errors: list[Exception] = []

    def close_inside(_: object) -> None:
        try:
            receiver.close()
        except RuntimeError as error:
            errors.append(error)

    memory = HostMemory(LAYOUT.total_bytes)
    receiver = KVReceiver(memory, LAYOUT, "r", KEY, close_inside)
    receiver.expect("t", "m", [1])
    receiver.cancel("t")
    receiver.close()
    receiver.close()
    memory.close()
    assert len(errors) == 1 and "event callback" in str(errors[0])
    machine.close()
    machine.sender.close()


def test_an_error_in_the_callback_is_logged_and_costs_no_other_transfer(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with machines(Settings("prompt", LAYOUT, 1)) as (prompt,):
        memory = HostMemory(LAYOUT.total_bytes)
        seen: list[str] = []
        over = threading.Event()

        def break_first(event: object) -> None:
            seen.append(getattr(event, "transfer_id", ""))
            if len(seen) == 1:
                raise RuntimeError("a bug of the worker's")
            over.set()

        receiver = KVReceiver(memory, LAYOUT, "token", KEY, break_first)
        for name in ("a", "b"):
            receiver.expect(name, "prompt", [1 if name == "a" else 2])
            prompt.sender.begin(name, receiver.address, [1])
            prompt.sender.finish(name, b"")
            assert isinstance(prompt.event(), Sent)
        assert over.wait(10)
        assert seen == ["a", "b"]
        assert "a bug of the worker's" in caplog.text
        receiver.close()
        memory.close()


def test_the_choice_of_transport_is_logged_once_a_link(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "splitwise.transfer")
    with machines(Settings("prompt", LAYOUT, 1), Settings("token", LAYOUT, 2)) as (prompt, token):
        for name in ("a", "b"):
            token.receiver.expect(name, "prompt", [1])
            prompt.sender.begin(name, token.address, [1])
            prompt.sender.finish(name, b"")
            assert isinstance(token.event(), Arrived)
    lines = [r.message for r in caplog.records if "sending to" in r.message]
    assert lines == ["sending to token over shared_memory (same host, caches on cpu and cpu)"]


@pytest.mark.parametrize("transport", TRANSPORTS)
def test_idle_threads_sleep(transport: str) -> None:
    """An open link with nothing to do takes no processor time and wakes nobody."""
    others = set(threading.enumerate())
    with machines(
        Settings("prompt", LAYOUT, 1, transport=transport), Settings("token", LAYOUT, 2)
    ) as (prompt, token):
        token.receiver.expect("t", "prompt", [1])
        prompt.sender.begin("t", token.address, [1])
        prompt.sender.finish("t", b"")
        assert isinstance(token.event(), Arrived)
        assert isinstance(prompt.event(), Sent)
        threads = [thread.native_id for thread in set(threading.enumerate()) - others]
        # Two loops a machine; names are looked up, and NIXL is loaded, beside them.
        assert len(threads) == 4 or (len(threads) > 4 and transport != "shared_memory")

        def switches() -> int:
            return sum(
                int(line.split()[1])
                for thread in threads
                for line in Path(f"/proc/self/task/{thread}/status").read_text().splitlines()
                if line.startswith("voluntary_ctxt_switches")
            )

        quiet = threading.Event()
        quiet.wait(0.2)  # let them settle
        before = switches()
        quiet.wait(0.5)
        assert switches() == before


def test_a_sender_alone_needs_no_receiver_and_back() -> None:
    with HostMemory(LAYOUT.total_bytes) as memory:
        KVSender(memory, LAYOUT, "s", KEY, print).close()
        KVReceiver(memory, LAYOUT, "r", KEY, print).close()
