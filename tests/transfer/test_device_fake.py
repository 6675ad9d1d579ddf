"""Caches on a device, played by tensors in host memory: all but CUDA's own calls is what runs."""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from chunk_plans import assert_same, draw_plan
from device_memory import DeviceMemory
from transfer_machines import MachineEnds, Settings

from splitwise.transfer import (
    Arrived,
    CacheLayout,
    Cancelled,
    Failed,
    HostMemory,
    Released,
    Sent,
)
from splitwise.transfer import peer as peer_module
from splitwise.transfer import receiver as receiver_module
from splitwise.transfer import sender as sender_module
from splitwise.transfer.device_blocks import DeviceQueue
from splitwise.transfer.errors import LinkError
from splitwise.transfer.layout import Region
from splitwise.transfer.staging import BUFFERS, Staging
from splitwise.transfer.transports import cuda_ipc
from splitwise.transfer.transports.cuda_ipc import CudaIpcTransport
from waiting import eventually

LAYERS, BLOCKS, BLOCK_BYTES = 3, 40, 98_304
SOURCE = [7, 2, 3, 4, 5, *range(20, 40)]
TARGET = [0, 9, 30, 31, 32, 1, 3, *range(10, 28)]
WHOLE = CacheLayout.flat(LAYERS, BLOCKS, 16, BLOCK_BYTES, heads=4)
APART = CacheLayout(
    LAYERS, BLOCKS, 16, 4, 4, tuple(Region(n // 2, 1, BLOCK_BYTES // 8) for n in range(2 * LAYERS))
)
ODD = CacheLayout.flat(LAYERS, BLOCKS, 16, 1234)


class Machine(MachineEnds):
    """One whose cache is on the fake device, or in host memory."""

    def __init__(
        self,
        name: str,
        layout: CacheLayout,
        seed: int,
        on_device: bool = True,
        transport: str | None = None,
    ) -> None:
        sizes = [layout.region_bytes(index) for index in range(len(layout.regions))]
        draw = np.random.default_rng(seed)
        self.regions = [draw.integers(0, 256, size, dtype=np.uint8) for size in sizes]
        """What it holds at first, as flat arrays."""
        memory: Any
        if on_device:
            memory = DeviceMemory([torch.from_numpy(r.copy()) for r in self.regions])
        else:
            memory = HostMemory(layout.total_bytes)
            np.frombuffer(memory.buffer, np.uint8)[:] = np.concatenate(self.regions)
        super().__init__(memory, Settings(name, layout, seed, transport=transport, checksum=True))

    def now(self) -> list[npt.NDArray[np.uint8]]:
        if isinstance(self.memory, DeviceMemory):
            return [tensor.numpy() for tensor in self.memory.tensors]
        ends = np.cumsum([region.size for region in self.regions])[:-1]
        return np.split(np.frombuffer(self.memory.buffer, np.uint8), ends)


@pytest.fixture(autouse=True)
def no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fence is an event of CUDA's; what it orders happens at once here."""
    monkeypatch.setattr(sender_module, "record_fence", lambda device: None)


@pytest.fixture
def ipc(monkeypatch: pytest.MonkeyPatch) -> None:
    """Handles that a process opens of itself."""
    exported: dict[bytes, Any] = {}

    def export(memory: DeviceMemory) -> list[bytes]:
        handles = [str(id(tensor)).encode() for tensor in memory.tensors]
        exported.update(zip(handles, memory.tensors, strict=True))
        return handles

    monkeypatch.setattr(receiver_module, "export", export)
    monkeypatch.setattr(peer_module, "open_regions", lambda handles: [exported[h] for h in handles])


@contextmanager
def pair(*machines: Machine) -> Iterator[tuple[Machine, ...]]:
    with ExitStack() as on_exit:
        for machine in machines:
            on_exit.callback(machine.close)
        yield machines


def expected(layout: CacheLayout, prompt: Machine, token: Machine) -> list[npt.NDArray[np.uint8]]:
    """By hand: each region is ``[layers, blocks, bytes]``."""
    result = []
    for region, before, after in zip(layout.regions, prompt.regions, token.regions, strict=True):
        shape = (region.layers, BLOCKS, -1)
        moved = after.copy().reshape(shape)
        moved[:, TARGET] = before.reshape(shape)[:, SOURCE]
        result.append(moved.ravel())
    return result


def transfer(prompt: Machine, token: Machine) -> None:
    token.receiver.expect("t", "prompt", TARGET)
    prompt.sender.begin("t", token.receiver.address, SOURCE)
    for layer in range(LAYERS):
        prompt.sender.layer_ready(["t"], layer)
    prompt.sender.finish("t", b"first token")


def assert_arrives(layout: CacheLayout, prompt: Machine, token: Machine, transport: str) -> None:
    transfer(prompt, token)
    arrived = token.event()
    assert isinstance(arrived, Arrived), arrived
    assert arrived.stats.transport == transport
    assert isinstance(event := prompt.event(), Sent), event
    for there, wanted in zip(token.now(), expected(layout, prompt, token), strict=True):
        np.testing.assert_array_equal(there, wanted)


@pytest.mark.parametrize("layout", [WHOLE, APART, ODD], ids=["whole", "apart", "odd"])
@pytest.mark.parametrize(("from_device", "to_device"), [(True, True), (True, False), (False, True)])
def test_tcp_carries_a_cache_on_a_device(
    layout: CacheLayout, from_device: bool, to_device: bool
) -> None:
    with pair(
        Machine("prompt", layout, 1, from_device, "tcp"), Machine("token", layout, 2, to_device)
    ) as (prompt, token):
        assert_arrives(layout, prompt, token, "tcp")


@pytest.mark.parametrize("layout", [WHOLE, APART, ODD], ids=["whole", "apart", "odd"])
@pytest.mark.usefixtures("ipc")
def test_cuda_ipc_gathers_and_scatters(layout: CacheLayout) -> None:
    with pair(Machine("prompt", layout, 1), Machine("token", layout, 2)) as (prompt, token):
        assert_arrives(layout, prompt, token, "cuda_ipc")


@pytest.mark.parametrize("layout", [WHOLE, APART, ODD], ids=["whole", "apart", "odd"])
@pytest.mark.parametrize("transport", ["cuda_ipc", "tcp"])
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.usefixtures("ipc")
def test_chunks(
    layout: CacheLayout, transport: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So small that runs are copied as they are, and gathered in several batches, all the same."""
    monkeypatch.setattr(cuda_ipc, "RUN_BYTES", 3 * layout.block_bytes(0))
    monkeypatch.setattr(cuda_ipc, "GATHER_BYTES", 2 * layout.block_bytes(0))
    with pair(Machine("prompt", layout, 1, transport=transport), Machine("token", layout, 2)) as (
        prompt,
        token,
    ):
        for number in range(4):
            plan = draw_plan(random.Random(10 * seed + number), LAYERS, BLOCKS, BLOCKS)
            before, after = ([r.copy() for r in machine.now()] for machine in (prompt, token))
            name = f"t{number}"
            expect = partial(token.receiver.expect, name, "prompt", plan.target, plan.skipped)
            plan.say(name, prompt.sender, token.receiver.address, expect)
            plan.until_put(name, prompt.sender, layout)
            prompt.sender.finish(name, b"")
            assert isinstance(event := token.event(), Arrived), event
            assert event.stats.early_bytes == plan.early_entries() * layout.block_bytes(0)
            assert event.stats.bytes == LAYERS * len(plan.target) * layout.block_bytes(0)
            assert isinstance(event := prompt.event(), Sent), event
            assert_same(token.now(), plan.moved(layout, before, after, BLOCKS))
            assert_same(prompt.now(), before)


def test_cuda_ipc_copies_long_runs_as_they_are(ipc: None, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    copy_run = CudaIpcTransport.copy_run

    def counted(self: CudaIpcTransport, layer: int, run: Any) -> None:
        runs.append(run.length)
        copy_run(self, layer, run)

    monkeypatch.setattr(CudaIpcTransport, "copy_run", counted)
    with pair(Machine("prompt", WHOLE, 1), Machine("token", WHOLE, 2)) as (prompt, token):
        assert_arrives(WHOLE, prompt, token, "cuda_ipc")
    assert runs == [18] * LAYERS  # 22 to 39, to 10 to 27


def test_where_cuda_ipc_does_not_open_tcp_takes_its_place(
    ipc: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(handles: list[bytes]) -> list[Any]:
        raise LinkError("the receiver's device is not among this machine's: make it visible")

    monkeypatch.setattr(peer_module, "open_regions", closed)
    monkeypatch.setattr(peer_module, "own_end", without_nixl(peer_module.own_end))
    with pair(Machine("prompt", WHOLE, 1), Machine("token", WHOLE, 2)) as (prompt, token):
        assert_arrives(WHOLE, prompt, token, "tcp")
        assert len(token.receiver._links) == 1


def without_nixl(own_end: Any) -> Any:
    """Which would want the real device's memory."""
    from dataclasses import replace

    return lambda device: replace(own_end(device), transports=("cuda_ipc", "tcp"))


def test_staging_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    borrowed, most = 0, 0
    really = Staging.buffer

    @asynccontextmanager
    async def counted(self: Staging) -> AsyncIterator[Any]:
        nonlocal borrowed, most
        async with really(self) as buffer:
            borrowed += 1
            most = max(most, borrowed)
            await asyncio.sleep(0)
            yield buffer
            borrowed -= 1

    monkeypatch.setattr(Staging, "buffer", counted)
    with pair(Machine("prompt", WHOLE, 1, True, "tcp"), Machine("token", WHOLE, 2, False)) as (
        prompt,
        token,
    ):
        for number in range(6):
            blocks = list(range(number, BLOCKS, 6))
            token.receiver.expect(str(number), "prompt", blocks)
            prompt.sender.begin(str(number), token.receiver.address, blocks)
            prompt.sender.finish(str(number), b"")
        for _ in range(6):
            assert isinstance(event := token.event(), Arrived), event
    assert 1 < most <= BUFFERS


SLOW_S = 0.3


@pytest.fixture
def slow_device(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A device that is long at what is queued; when it had passed it, each time."""
    passed: list[float] = []

    async def late(self: DeviceQueue) -> None:
        await asyncio.sleep(SLOW_S)
        passed.append(time.monotonic())

    monkeypatch.setattr(DeviceQueue, "_passed", late)
    return passed


def test_stopped_is_said_only_when_the_copies_have_ended(
    ipc: None, slow_device: list[float]
) -> None:
    with pair(Machine("prompt", WHOLE, 1), Machine("token", WHOLE, 2)) as (prompt, token):
        token.receiver.expect("t", "prompt", TARGET)
        prompt.sender.begin("t", token.receiver.address, SOURCE)
        prompt.sender.layer_ready(["t"], 0)
        eventually(lambda: not np.array_equal(token.now()[0], token.regions[0]))
        token.receiver.cancel("t")
        assert not slow_device, "the device is at it still"
        assert token.event() == Released("t")
        released_s = time.monotonic()
        assert slow_device and slow_device[-1] <= released_s
        assert isinstance(prompt.event(), Failed)


def test_copies_that_fail_half_way_are_waited_for_too(
    ipc: None, slow_device: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    def out_of_memory(self: CudaIpcTransport, layer: int, batch: Any) -> None:
        raise RuntimeError("CUDA out of memory")  # after the long runs were queued

    monkeypatch.setattr(CudaIpcTransport, "copy_batch", out_of_memory)
    with pair(Machine("prompt", WHOLE, 1), Machine("token", WHOLE, 2)) as (prompt, token):
        transfer(prompt, token)
        event = prompt.event()
        assert isinstance(event, Failed) and "CUDA out of memory" in event.reason
        assert len(slow_device) >= 1
        assert isinstance(token.event(), Failed)


def test_blocks_come_back_only_when_the_device_has_stored_what_came(
    slow_device: list[float],
) -> None:
    """Over TCP, where this end does the writing and else gives blocks back at once."""
    with pair(Machine("prompt", WHOLE, 1, False, "tcp"), Machine("token", WHOLE, 2)) as (
        prompt,
        token,
    ):
        token.receiver.expect("t", "prompt", TARGET)
        prompt.sender.begin("t", token.receiver.address, SOURCE)
        prompt.sender.layer_ready(["t"], 0)
        eventually(lambda: not np.array_equal(token.now()[0], token.regions[0]))
        token.receiver.cancel("t")
        assert not slow_device
        assert token.event() == Released("t")
        assert slow_device, "it was still copying"
        assert isinstance(prompt.event(), Failed | Cancelled)
