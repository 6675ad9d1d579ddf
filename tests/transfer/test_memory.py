"""The memory that a cache lives in."""

import gc
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from shared_names import no_shared_name_left

from splitwise.transfer import CacheLayout, HostMemory
from splitwise.transfer.layout import Plane


def test_a_second_map_of_the_descriptor_is_the_same_memory() -> None:
    with HostMemory(8192) as memory, HostMemory(8192, os.dup(memory.fd)) as other:
        memory.buffer[5000] = 77
        assert other.buffer[5000] == 77


def test_close_drops_the_descriptor_and_leaves_arrays_valid() -> None:
    memory = HostMemory(4096)
    array = np.frombuffer(memory.buffer, np.uint8)
    fd = memory.fd
    memory.close()
    memory.close()
    with pytest.raises(OSError):
        os.fstat(fd)
    array[:] = 3
    assert int(array.sum()) == 3 * 4096


def test_memory_is_unmapped_once_the_last_array_is_gone() -> None:
    memory = HostMemory(4096)
    inode = f" {os.fstat(memory.fd).st_ino} "
    array = np.frombuffer(memory.buffer, np.uint8)
    memory.close()
    assert inode in Path("/proc/self/maps").read_text()
    del array, memory
    gc.collect()
    assert inode not in Path("/proc/self/maps").read_text()


def test_size_is_sealed() -> None:
    with HostMemory(8192) as memory:
        for nbytes in (4096, 16384):
            with pytest.raises(PermissionError):
                os.ftruncate(memory.fd, nbytes)


def test_memory_of_another_size_or_unsealed_is_refused_and_closed() -> None:
    with HostMemory(8192) as memory:
        fd = os.dup(memory.fd)
        with pytest.raises(ValueError, match="8192 bytes where 4096"):
            HostMemory(4096, fd)
        with pytest.raises(OSError):
            os.fstat(fd)
    fd = os.memfd_create("plain")
    os.ftruncate(fd, 4096)
    with pytest.raises(ValueError, match="not sealed"):
        HostMemory(4096, fd)
    with pytest.raises(ValueError, match="at least one byte"):
        HostMemory(0)


def test_a_killed_owner_leaves_no_name_behind() -> None:
    code = (
        "import os, signal; from splitwise.transfer import *;"
        "layout = CacheLayout.flat(2, 4, 16, 4096); memory = HostMemory(layout.total_bytes);"
        "receiver = KVReceiver(memory, layout, 'm', 'key', print);"
        "print(receiver.address.unix_name, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with no_shared_name_left():
        run = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=60
        )
    assert run.returncode == -9
    name = run.stdout.strip()
    assert name.startswith("splitwise-")
    assert name not in Path("/proc/net/unix").read_text()


def test_layout_checks_block_tables() -> None:
    layout = CacheLayout.flat(layers=2, blocks=4, block_tokens=16, block_bytes=10)
    layout.check_blocks([3, 0])
    assert layout.planes(1) == [Plane(0, offset_bytes=40, stride_bytes=10, head_bytes=10)]
    for blocks, message in [([], "empty"), ([4], "cache of 4"), ([-1], "cache of 4")]:
        with pytest.raises(ValueError, match=message):
            layout.check_blocks(blocks)
    with pytest.raises(ValueError, match="named twice"):
        layout.check_blocks([1, 2, 1])
