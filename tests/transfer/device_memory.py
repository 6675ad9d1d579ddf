"""A cache on a device as its tensors, which may be said to be there and lie in host memory."""

from dataclasses import dataclass
from typing import Any


@dataclass
class DeviceMemory:
    tensors: list[Any]
    device: str = "cuda:0"

    @property
    def nbytes(self) -> int:
        return sum(int(tensor.numel()) for tensor in self.tensors)

    def close(self) -> None:
        self.tensors.clear()
