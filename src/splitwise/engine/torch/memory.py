"""The paged cache in memory, as the engine reads and writes it."""

import torch

from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import CacheMemory, HostMemory


class DeviceMemory:
    """A flat cache on a GPU; fulfils ``CacheMemory``."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.tensor = torch.empty(nbytes, dtype=torch.uint8, device=device)
        self.nbytes = nbytes
        self.device = str(self.tensor.device)

    def close(self) -> None:
        """Drop this object's hold on the memory; it is freed when the last tensor over it goes."""
        self.tensor = torch.empty(0, dtype=torch.uint8)


class PagedCache:
    """Keys and values of ``layout.blocks`` blocks in every layer.

    A chunk (one block in one layer) is ``[2, block_tokens, kv_heads, head_dim]``: all keys, then
    all values. Token-major, so that a token's new keys are one contiguous row.
    """

    def __init__(
        self,
        layers: int,
        block_tokens: int,
        kv_heads: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        memory_bytes: int,
    ) -> None:
        block_bytes = 2 * block_tokens * kv_heads * head_dim * dtype.itemsize
        blocks = memory_bytes // (layers * block_bytes)
        if blocks < 1:
            raise ValueError(
                f"cache_memory_bytes={memory_bytes}: one block of {block_tokens} tokens takes "
                f"{layers * block_bytes} bytes; give the cache more memory"
            )
        self.layout = CacheLayout(layers, blocks, block_tokens, block_bytes)
        self.memory: CacheMemory
        if device.type == "cpu":
            host = HostMemory(self.layout.total_bytes)
            flat = torch.frombuffer(host.buffer, dtype=dtype)
            self.memory = host
        else:
            on_device = DeviceMemory(self.layout.total_bytes, device)
            flat = on_device.tensor.view(dtype)
            self.memory = on_device
        shape = (layers, blocks, 2, block_tokens, kv_heads, head_dim)
        self.chunks = list(flat.view(shape))
        """One tensor a layer: ``[blocks, 2, block_tokens, kv_heads, head_dim]``."""
        self._rows = list(flat.view(layers, -1, kv_heads, head_dim))

    def rows(self, blocks: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Where the keys and the values of tokens lie, as row numbers for ``write``.

        ``blocks`` holds each token's block, ``positions`` its position in the request.
        """
        block_tokens = self.layout.block_tokens
        keys = blocks * (2 * block_tokens) + positions % block_tokens
        return keys, keys + block_tokens

    def write(
        self, layer: int, rows: tuple[torch.Tensor, ...], keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Store new tokens; ``keys`` and ``values`` are ``[tokens, kv_heads, head_dim]``."""
        self._rows[layer].index_copy_(0, rows[0], keys)
        self._rows[layer].index_copy_(0, rows[1], values)

    def gather(self, layer: int, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy blocks out: keys and values as ``[*blocks.shape, block_tokens, heads, dim]``."""
        chunks = self.chunks[layer].index_select(0, blocks.flatten())
        keys, values = chunks.unbind(1)
        shape = (*blocks.shape, *keys.shape[1:])
        return keys.reshape(shape), values.reshape(shape)

    def close(self) -> None:
        self.chunks.clear()
        self._rows.clear()
        self.memory.close()
