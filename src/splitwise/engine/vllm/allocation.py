"""Where vLLM's cache lies: in memory that a transfer can reach from another process.

vLLM allocates the caches of all layers as one tensor of bytes, within a context that a connector
may give (``get_mem_pool_context``). Ours gives that tensor its memory.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from splitwise.engine.errors import ModelError
from splitwise.transfer.memory import CacheMemory, HostMemory


class ReachableAllocation(TorchFunctionMode):
    """Backs the one allocation of zeros made within it; ``memory`` is that, afterwards."""

    def __init__(self) -> None:
        super().__init__()
        self.memory: CacheMemory | None = None

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """
        Raises:
            ModelError: the cache is in more than one piece.
        """
        kwargs = kwargs or {}
        if func is not torch.zeros:
            return func(*args, **kwargs)
        if self.memory is not None:
            raise ModelError("vLLM allocates the cache in several pieces: not with this release")
        if torch.device(kwargs["device"]).type != "cpu":
            on_device = OnDevice(func(*args, **kwargs))
            self.memory = on_device
            return on_device.tensors[0].view(torch.int8)
        host = HostMemory(args[0])
        self.memory = host
        return torch.frombuffer(host.buffer, dtype=torch.int8)


class OnDevice:
    """vLLM's cache on a GPU; fulfils the transfer's ``DeviceMemory``."""

    def __init__(self, cache: torch.Tensor) -> None:
        self.tensors = [cache.view(torch.uint8)]
        self.nbytes = cache.nbytes
        self.device = str(cache.device)

    def close(self) -> None:
        """Drop this object's hold on the memory, which is vLLM's."""
        self.tensors = []
