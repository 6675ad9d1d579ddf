"""Memory that a cache lives in and that a transport can reach from another process."""

import mmap
import os
from typing import Any, Protocol


class CacheMemory(Protocol):
    """A flat cache, in host memory or on a device."""

    nbytes: int
    device: str
    """``cpu`` or ``cuda:N``."""

    def close(self) -> None: ...


class HostMemory:
    """Anonymous shared memory that has no name, so that nothing is left behind.

    It is a Linux memfd: another process reaches it only by being handed the file descriptor, and
    the kernel frees it when the last process that holds it ends, however it ends. Pages are
    taken when first touched.
    """

    device = "cpu"

    def __init__(self, nbytes: int, fd: int | None = None) -> None:
        """Create ``nbytes`` of memory, or map those behind ``fd`` (which this object then owns)."""
        if fd is None:
            fd = os.memfd_create("splitwise-kv", os.MFD_CLOEXEC)
            os.ftruncate(fd, nbytes)
        self.fd = fd
        self.nbytes = nbytes
        self._map = mmap.mmap(fd, nbytes)
        self.buffer = memoryview(self._map)

    def close(self) -> None:
        """Unmap and close. Tensors over ``buffer`` must be gone; else the map stays until they are.

        The descriptor closes at once, so no new process can map the memory.
        """
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        self.buffer.release()
        try:
            self._map.close()
        except BufferError:
            # A tensor still looks at it; the map goes when the last of them does.
            return

    def __enter__(self) -> "HostMemory":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()
