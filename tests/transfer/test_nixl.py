"""What NIXL adds: windows that close on a sender in mid-write, and peers that are not to be had."""

import asyncio
import multiprocessing
import multiprocessing.connection
import signal
import time
from typing import Any

import numpy as np
import pytest
from remote_machine import RemoteMachine, begin_until_stopped, check_both_ends_fail
from transfer_machines import NEEDS_NIXL, LocalMachine, Settings, content, machines, warm_up

from splitwise.transfer import Arrived, CacheLayout, Deadlines, Failed, HostMemory, Released
from splitwise.transfer import windows as windows_module
from splitwise.transfer.errors import LinkError
from splitwise.transfer.frames import Window
from splitwise.transfer.host_blocks import HostBlocks
from splitwise.transfer.pairing import LayoutPair
from splitwise.transfer.transports.nixl import Agent, NixlTransport, Numbers, OpenWindow
from waiting import WAIT_S, eventually

pytestmark = NEEDS_NIXL

LARGE = CacheLayout.flat(layers=4, blocks=64, block_tokens=16, block_bytes=2**20)
"""Too large a layer to pass in one poll."""
SMALL = CacheLayout.flat(layers=2, blocks=4, block_tokens=16, block_bytes=1024)
MARK = 0xA5
STRAY_S = 0.5
"""Time in which what is still on its way would have come."""


def transport_of(
    memory: HostMemory, layout: CacheLayout, window: Window, put_s: float
) -> NixlTransport:
    blocks = HostBlocks(memory, layout, LayoutPair(layout, layout).at_source)
    return NixlTransport(Agent(memory, layout), blocks, layout, window, layout, put_s)


def write_one_layer(calls: multiprocessing.connection.Connection) -> None:
    """A prompt machine's process: says what became of its one put."""
    memory = HostMemory(LARGE.total_bytes)
    np.frombuffer(memory.buffer, np.uint8)[:] = 7

    async def write() -> str:
        transport = transport_of(memory, LARGE, calls.recv(), put_s=WAIT_S)
        every = range(LARGE.blocks)
        try:
            await transport.lane(0, every)(0, every).put(0, None, lambda _: True)
        except LinkError as error:
            return str(error)
        finally:
            transport.close()
            transport.agent.close()
        return "done"

    calls.send(asyncio.run(write()))


async def close_in_mid_write(window: OpenWindow, layer: np.ndarray) -> None:  # type: ignore[type-arg]
    """Polls to the end, as if other transfers were granted, but closes once some bytes are in."""
    window.granted = 1
    polls = asyncio.create_task(window.poll())
    async with asyncio.timeout(WAIT_S):
        while not layer.any():
            await asyncio.sleep(0)
    assert not layer.all(), "all is in: the layer must be larger"
    window.close()
    layer[:] = MARK
    await asyncio.sleep(STRAY_S)
    polls.cancel()


def test_a_closed_window_lets_nothing_in() -> None:
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(target=write_one_layer, args=(theirs,), daemon=True)
    child.start()
    memory = HostMemory(LARGE.total_bytes)
    window = OpenWindow(memory, LARGE)
    layer = np.frombuffer(memory.buffer, np.uint8)[: LARGE.blocks * LARGE.block_bytes(0)]
    ours.send(window.message)
    asyncio.run(close_in_mid_write(window, layer))
    assert (layer == MARK).all()
    assert ours.poll(WAIT_S) and "DISCONNECT" in ours.recv()
    child.join(WAIT_S)
    assert child.exitcode == 0
    window.close()


def put_under_way(prompt: RemoteMachine, token: LocalMachine) -> list[bool]:
    """Start a transfer of all blocks, and come back with it in the middle of a layer.

    With the receiver's event its cache is marked, and what is returned gets an entry: whether the
    window was closed by then.
    """
    blocks = list(range(LARGE.blocks))
    token.receiver.expect("t", "prompt", blocks)
    prompt.call("sender.begin", "t", token.address, blocks)
    prompt.call("sender.finish", "t", b"")
    first = content(prompt.settings)[0, :, :16]
    eventually(lambda: bool((token.cache[0, :, :16] == first).all(axis=1).any()))
    (over,) = token.receiver._links.values()
    window, closed = over.window, list[bool]()
    assert window is not None

    def on_event(event: object) -> None:
        closed.append(not window.is_open)
        token.cache[:] = MARK

    token.first = on_event
    return closed


def nothing_came_since(token: LocalMachine) -> bool:
    time.sleep(STRAY_S)
    return bool((token.cache == MARK).all())


def test_a_sender_stopped_in_mid_put_cannot_hold_the_blocks() -> None:
    prompt = RemoteMachine(Settings("prompt", LARGE, 1, transport="nixl"))
    with machines(Settings("token", LARGE, 2, deadlines=Deadlines(stop_s=0.2))) as (token,):
        closed = put_under_way(prompt, token)
        prompt.kill(signal.SIGSTOP)
        token.receiver.cancel("t")
        assert token.event() == Released("t")
        prompt.kill(signal.SIGCONT)
        assert isinstance(prompt.event(), Failed)
        assert closed == [True] and nothing_came_since(token)
        prompt.close()


def test_a_sender_killed_in_mid_put_leaves_the_blocks_free() -> None:
    prompt = RemoteMachine(Settings("prompt", LARGE, 1, transport="nixl"))
    with machines(Settings("token", LARGE, 2)) as (token,):
        closed = put_under_way(prompt, token)
        prompt.kill()
        event = token.event()
        assert isinstance(event, Failed) and "link from prompt" in event.reason
        prompt.reap()
        assert closed == [True] and nothing_came_since(token)


def test_a_receiver_closed_in_mid_put() -> None:
    prompt = RemoteMachine(Settings("prompt", LARGE, 1, transport="nixl"))
    with machines(Settings("token", LARGE, 2)) as (token,):
        closed = put_under_way(prompt, token)
        token.receiver.close()
        assert isinstance(token.event(), Failed)
        assert isinstance(prompt.event(), Failed)
        assert closed == [True] and nothing_came_since(token)
        prompt.close()


def test_a_receiver_that_takes_nothing_fails_the_transfer_at_both_ends() -> None:
    token = RemoteMachine(Settings("token", LARGE, 2))
    settings = Settings("prompt", LARGE, 1, transport="nixl", deadlines=Deadlines(write_s=0.5))
    with machines(settings) as (prompt,):
        begin_until_stopped(prompt, token)
        prompt.sender.finish("t", b"")
        check_both_ends_fail(prompt, token, "taken no data for 0.5 s")


def test_nobody_polls_once_nothing_is_granted() -> None:
    with machines(Settings("prompt", SMALL, 1, transport="nixl"), Settings("token", SMALL, 2)) as (
        prompt,
        token,
    ):
        token.receiver.expect("t", "prompt", [1])
        prompt.sender.begin("t", token.address, [1])
        prompt.sender.finish("t", b"")
        assert isinstance(token.event(), Arrived)
        (over,) = token.receiver._links.values()
        window = over.window
        assert window is not None
        eventually(lambda: not window._is_polling)


def test_no_window_is_opened_for_one_without_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[object] = []
    monkeypatch.setattr(windows_module, "OpenWindow", lambda *args: opened.append(args))
    with machines(
        Settings("prompt", SMALL, 1, key="other", transport="nixl"), Settings("token", SMALL, 2)
    ) as (prompt, token):
        prompt.sender.begin("t", token.address, [1])
        event = prompt.event()
        assert isinstance(event, Failed) and "cluster key differs" in event.reason
    assert not opened


def test_a_window_that_does_not_open_is_refused_with_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def broken(*_: object) -> OpenWindow:
        raise LinkError("NIXL cannot register the cache: no")

    monkeypatch.setattr(windows_module, "OpenWindow", broken)
    with machines(Settings("prompt", SMALL, 1, transport="nixl"), Settings("token", SMALL, 2)) as (
        prompt,
        token,
    ):
        prompt.sender.begin("t", token.address, [1])
        event = prompt.event()
        assert isinstance(event, Failed)
        assert event.reason == "link to token: refused: NIXL cannot register the cache: no"


def test_metadata_that_is_none_costs_the_link_alone() -> None:
    warm_up("nixl")
    with HostMemory(SMALL.total_bytes) as memory:
        for metadata in (b"", b"garbage" * 40):
            with pytest.raises(LinkError, match="cannot reach the receiver's agent"):
                transport_of(memory, SMALL, Window(metadata, [0], 0), put_s=1)


def test_an_address_outside_the_window_is_not_written() -> None:
    with HostMemory(SMALL.total_bytes) as source, HostMemory(SMALL.total_bytes) as target:
        window = OpenWindow(target, SMALL)
        told = window.message
        beside = Window(told.metadata, [told.regions[0] + SMALL.total_bytes], told.device_index)

        async def put() -> None:
            with pytest.raises(LinkError, match="NIXL"):
                transport = transport_of(source, SMALL, beside, put_s=1)
                await transport.lane(0, [0])(0, [0]).put(0, None, lambda _: True)

        asyncio.run(put())
        window.close()


def test_a_lost_sender_costs_no_other_its_transfer_and_gets_fenced_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its blocks come back when the others' transfers through the same window have ended, chunks
    that are ready only then included; what follows goes through a new one."""
    written: list[object] = []
    really = NixlTransport.write

    async def write(self: NixlTransport, here: Numbers, there: Numbers, remote: Any) -> None:
        written.append(remote)
        await really(self, here, there, remote)

    monkeypatch.setattr(NixlTransport, "write", write)
    lost = RemoteMachine(Settings("lost", LARGE, 1, transport="nixl"))
    with machines(Settings("other", LARGE, 3, transport="nixl"), Settings("token", LARGE, 2)) as (
        other,
        token,
    ):
        token.receiver.expect("other", "other", [50, 51])
        other.sender.begin("other", token.address, [1], table_blocks=2)
        other.sender.layer_ready(["other"], 0, [1])
        eventually(lambda: bool((token.cache[0, 50] == other.cache[0, 1]).all()))
        blocks = list(range(40))
        token.receiver.expect("lost", "lost", blocks)
        lost.call("sender.begin", "lost", token.address, blocks)
        lost.call("sender.layer_ready", ["lost"], 0)
        first = content(lost.settings)[0, :40, :16]
        eventually(lambda: bool((token.cache[0, :40, :16] == first).all(axis=1).any()))
        [old] = {over.window for over in token.receiver._links.values()}
        assert old is not None
        lost.kill()
        lost.reap()
        eventually(lambda: old.is_retired)
        assert old.is_open and token.events.empty(), "the other still writes through it"
        # The other's next transfer does not wait for that.
        token.receiver.expect("next", "other", [60])
        other.sender.begin("next", token.address, [5])
        other.sender.finish("next", b"")
        event = token.event()
        assert isinstance(event, Arrived) and event.transfer_id == "next"
        through_old, through_new = written[0], written[-1]
        assert through_old is not through_new
        other.sender.extend("other", [2])
        other.sender.finish("other", b"")
        events = {event.transfer_id: event for event in (token.event(), token.event())}
        assert isinstance(events["other"], Arrived) and isinstance(events["lost"], Failed)
        assert not old.is_open
        assert written[-1] is through_old
        np.testing.assert_array_equal(token.cache[:, [50, 51]], other.cache[:, [1, 2]])
        np.testing.assert_array_equal(token.cache[:, 60], other.cache[:, 5])


def test_one_agent_serves_all_links() -> None:
    with machines(
        *(Settings(f"prompt-{n}", SMALL, n, transport="nixl") for n in range(3)),
        Settings("token", SMALL, 9),
    ) as (*prompts, token):
        for number, prompt in enumerate(prompts):
            token.receiver.expect(str(number), f"prompt-{number}", [number])
            prompt.sender.begin(str(number), token.address, [0])
            prompt.sender.finish(str(number), b"")
            assert isinstance(event := token.event(), Arrived), event
        assert len({over.window for over in token.receiver._links.values()}) == 1
