"""The paged cache in memory, as the engine reads and writes it."""

import torch

from splitwise.engine.base import ModelInfo
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import CacheMemory, HostMemory

LEAST_TOKENS = 8


class DeviceMemory:
    """A flat cache on a GPU; fulfils ``CacheMemory``."""

    def __init__(self, nbytes: int, device: torch.device) -> None:
        self.tensors = [torch.empty(nbytes, dtype=torch.uint8, device=device)]
        self.nbytes = nbytes
        self.device = str(self.tensors[0].device)

    def close(self) -> None:
        """Drop this object's hold on the memory; it is freed when the last tensor over it goes."""
        self.tensors = []


class PagedCache:
    """Keys and values of ``layout.blocks`` blocks in every layer.

    A block in one layer is ``[kv_heads, 2, block_tokens, head_dim]``: head by head its keys, then
    its values. So the heads of one rank are one contiguous piece, and attention, which goes head by
    head, reads memory in its order.
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
        self.layout = CacheLayout.flat(layers, blocks, block_tokens, block_bytes, kv_heads)
        self.memory: CacheMemory
        if device.type == "cpu":
            host = HostMemory(self.layout.total_bytes)
            flat = torch.frombuffer(host.buffer, dtype=dtype)
            self.memory = host
        else:
            on_device = DeviceMemory(self.layout.total_bytes, device)
            flat = on_device.tensors[0].view(dtype)
            self.memory = on_device
        shape = (layers, blocks, kv_heads, 2, block_tokens, head_dim)
        self.chunks = list(flat.view(shape))
        """One tensor a layer: ``[blocks, kv_heads, 2, block_tokens, head_dim]``."""
        self._rows = list(flat.view(layers, -1, head_dim))
        self._halves = list(flat.view(layers, -1, block_tokens, head_dim))
        """Of a head in a block: even numbers are keys, odd ones values."""
        self._heads = torch.arange(kv_heads, device=device)
        compiled = device.type == "cpu" and dtype == torch.float32
        self.numbers = list(flat.view(layers, -1).numpy()) if compiled else []
        """The same memory for compiled kernels, where they fit: one flat array a layer."""

    def rows(self, blocks: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Where the keys and the values of tokens lie, as row numbers for ``write``: one a token
        and head.

        ``blocks`` holds each token's block, ``positions`` its position in the request.
        """
        block_tokens = self.layout.block_tokens
        halves = self._keys_of(blocks[:, None], self._heads)
        keys = (halves * block_tokens + (positions % block_tokens)[:, None]).flatten()
        return keys, keys + block_tokens

    def _keys_of(self, blocks: torch.Tensor, heads: torch.Tensor) -> torch.Tensor:
        """The numbers of these keys among ``_halves``."""
        return (blocks * len(self._heads) + heads) * 2

    def write(
        self, layer: int, rows: tuple[torch.Tensor, ...], keys: torch.Tensor, values: torch.Tensor
    ) -> None:
        """Store new tokens; ``keys`` and ``values`` are ``[tokens, kv_heads, head_dim]``."""
        for place, new in zip(rows, (keys, values), strict=True):
            self._rows[layer].index_copy_(0, place, new.reshape(-1, new.shape[-1]))

    def gather(self, layer: int, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Copy blocks out, as ``[tables, heads, tokens, dim]``: keys and values of whole blocks.

        ``blocks`` is ``[tables, blocks a table]``.
        """
        keys = self._keys_of(blocks[:, None], self._heads[:, None])  # [tables, heads, blocks]
        shape = (*keys.shape[:2], -1, self._rows[layer].shape[-1])
        halves = self._halves[layer]
        return (
            halves.index_select(0, keys.flatten()).view(shape),
            halves.index_select(0, keys.flatten() + 1).view(shape),
        )

    def close(self) -> None:
        self.chunks.clear()
        self._rows.clear()
        self._halves.clear()
        self.numbers.clear()
        self.memory.close()
