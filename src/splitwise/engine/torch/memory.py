"""The paged cache in memory, as the engine reads and writes it."""

import torch

from splitwise.engine.base import ModelInfo
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import CacheMemory, HostMemory

LEAST_TOKENS = 8


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
        self, model: ModelInfo, block_tokens: int, device: torch.device, memory_bytes: int
    ) -> None:
        """As many blocks as ``memory_bytes`` hold, of ``model.dtype``.

        Raises:
            ValueError: they hold fewer than ``LEAST_TOKENS`` tokens.
        """
        layers, kv_heads, head_dim = model.layers, model.kv_heads, model.head_dim
        dtype: torch.dtype = getattr(torch, model.dtype)
        block_bytes = 2 * block_tokens * kv_heads * head_dim * dtype.itemsize
        blocks = memory_bytes // (layers * block_bytes)
        if blocks * block_tokens < LEAST_TOKENS:
            raise ValueError(
                f"cache_memory_bytes={memory_bytes}: a block of {block_tokens} tokens takes "
                f"{layers * block_bytes} bytes; give room for {LEAST_TOKENS} tokens at least"
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
        compiled = device.type == "cpu" and dtype == torch.float32
        self.numbers = list(flat.view(layers, -1).numpy()) if compiled else []
        """The same memory for compiled kernels, where they fit: one flat array a layer."""

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
        self.numbers.clear()
        self.memory.close()
