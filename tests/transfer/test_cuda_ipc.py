"""Two processes on one GPU, the cache of each on the device; TCP and NIXL as between two hosts,
too."""

import multiprocessing
import multiprocessing.connection
import queue
from typing import Any

import pytest
from device_memory import DeviceMemory
from transfer_machines import KEY, NEEDS_NIXL

from splitwise.transfer import Arrived, CacheLayout, KVReceiver, KVSender, ReceiverAddress, Sent
from waiting import WAIT_S

LAYOUT = CacheLayout.flat(layers=8, blocks=64, block_tokens=16, block_bytes=32_768)
SOURCE, TARGET = [3, 4, 5, 20, 9], [10, 11, 12, 40, 1]


def _cuda_missing() -> bool:
    torch = pytest.importorskip("torch")
    return not torch.cuda.is_available()


pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(_cuda_missing(), reason="no CUDA device here"),
]


def device_memory() -> DeviceMemory:
    import torch

    return DeviceMemory([torch.zeros(LAYOUT.total_bytes, dtype=torch.uint8, device="cuda:0")])


def expected_layer(layer: int) -> int:
    return 17 * (layer + 1) % 256


def prompt_machine(
    calls: multiprocessing.connection.Connection,
    address: ReceiverAddress,
    transport: str,
    checksum: bool,
) -> None:
    """Writes each layer late on its stream, so that a put that did not wait would send zeros."""
    import torch

    memory = device_memory()
    events: queue.Queue[object] = queue.Queue()
    sender = KVSender(
        memory, LAYOUT, "prompt", KEY, events.put, transport=transport, checksum=checksum
    )
    cache = memory.tensors[0].view(LAYOUT.layers, LAYOUT.blocks, LAYOUT.block_bytes(0))
    work = torch.rand(4096, 4096, device="cuda:0")
    sender.begin("t", address, SOURCE)
    for layer in range(LAYOUT.layers):
        for _ in range(10):
            work = (work @ work).clamp(0, 1)
        cache[layer, SOURCE] = expected_layer(layer)
        sender.layer_ready(["t"], layer)
    sender.finish("t", b"first token")
    calls.send(isinstance(events.get(timeout=WAIT_S), Sent))
    sender.close()


@pytest.mark.parametrize("checksum", [False, True])
@pytest.mark.parametrize("transport", ["cuda_ipc", "tcp", pytest.param("nixl", marks=NEEDS_NIXL)])
def test_layers_land_on_the_device_after_they_are_written(transport: str, checksum: bool) -> None:
    memory = device_memory()
    events: queue.Queue[Any] = queue.Queue()
    receiver = KVReceiver(memory, LAYOUT, "token", KEY, events.put)
    assert receiver.address.transports[0] == "cuda_ipc"
    receiver.expect("t", "prompt", TARGET)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    child = context.Process(
        target=prompt_machine, args=(theirs, receiver.address, transport, checksum)
    )
    child.start()
    arrived = events.get(timeout=60)
    assert isinstance(arrived, Arrived), arrived
    assert arrived.payload == b"first token"
    assert arrived.stats.transport == transport
    assert arrived.stats.puts == LAYOUT.layers  # one gather, one piece, one write
    cache = memory.tensors[0].view(LAYOUT.layers, LAYOUT.blocks, LAYOUT.block_bytes(0)).cpu()
    for layer in range(LAYOUT.layers):
        assert (cache[layer, TARGET] == expected_layer(layer)).all()
        others = [block for block in range(LAYOUT.blocks) if block not in TARGET]
        assert (cache[layer, others] == 0).all()
    assert ours.poll(WAIT_S) and ours.recv()
    child.join(WAIT_S)
    assert child.exitcode == 0
    receiver.close()
    memory.close()
