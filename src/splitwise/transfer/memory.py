"""Memory that a cache lives in and that a transport can reach from another process."""

import contextlib
import fcntl
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
    taken when first touched. Its size is sealed, so that no process that holds the descriptor
    can cut it short under another's feet.
    """

    device = "cpu"

    def __init__(self, nbytes: int, fd: int | None = None) -> None:
        """Create ``nbytes`` of memory, or map those behind ``fd`` (which this object then owns).

        Raises:
            ValueError: ``fd`` holds another number of bytes than ``nbytes``, or may shrink.
        """
        if fd is None:
            fd = _create(nbytes)
        else:
            _check(fd, nbytes)
        self.fd = fd
        self.nbytes = nbytes
        self._map = mmap.mmap(fd, nbytes)
        self.buffer = memoryview(self._map)

    def close(self) -> None:
        """Close the descriptor at once and unmap as soon as nothing looks at ``buffer``.

        Tensors and arrays over ``buffer`` stay valid: the map goes when the last of them does.
        """
        if self.fd < 0:
            return
        os.close(self.fd)
        self.fd = -1
        with contextlib.suppress(BufferError):  # raised while a tensor still looks at the memory
            self.buffer.release()
            self._map.close()

    def __enter__(self) -> "HostMemory":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()


def _create(nbytes: int) -> int:
    if nbytes <= 0:
        raise ValueError(f"nbytes is {nbytes}: a cache needs at least one byte")
    fd = os.memfd_create("splitwise-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        os.ftruncate(fd, nbytes)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW)
    except OSError:
        os.close(fd)
        raise
    return fd


def _check(fd: int, nbytes: int) -> None:
    actual_bytes = os.fstat(fd).st_size
    if actual_bytes != nbytes:
        os.close(fd)
        raise ValueError(f"the shared cache holds {actual_bytes} bytes where {nbytes} were named")
    if not fcntl.fcntl(fd, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        os.close(fd)
        raise ValueError("the shared cache is not sealed against shrinking")
