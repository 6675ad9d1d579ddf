"""What vLLM's cache looks like to a transfer.

vLLM shows each layer as ``[blocks, heads, block_tokens, content]``, where ``content`` is a token's
key and value of a head. With its layout LBHNC the layers follow each other in memory, and heads
come first inside a block, which is a ``CacheLayout`` of one region.
"""

from collections.abc import Mapping

import torch

from splitwise.engine.errors import ModelError
from splitwise.transfer.layout import CacheLayout, Region

LAYOUT = "LBHNC"
"""vLLM's name for it."""


def read_layout(
    caches: Mapping[str, torch.Tensor], all_heads: int, rank: int, ranks: int
) -> tuple[CacheLayout, dict[str, int]]:
    """The layout of a rank's cache, and each layer's place in it by name.

    Raises:
        ModelError: it lies in memory in another way.
    """
    names = sorted(caches, key=lambda name: caches[name].storage_offset())
    first = caches[names[0]]
    if first.dim() != 4:
        raise _unknown(f"a layer is {list(first.shape)}")
    blocks, heads, block_tokens, content = first.shape
    for place, name in enumerate(names):
        cache = caches[name]
        is_next = cache.storage_offset() == place * first.numel()
        if cache.shape != first.shape or not cache.is_contiguous() or not is_next:
            raise _unknown(f"{name} is {list(cache.shape)} with strides {list(cache.stride())}")
    if heads * ranks != all_heads and not (heads == 1 and ranks >= all_heads):
        raise _unknown(f"{heads} heads on each of {ranks} ranks, of {all_heads}")
    region = Region(0, len(names), block_tokens * content * first.element_size())
    layout = CacheLayout(
        layers=len(names),
        blocks=blocks,
        block_tokens=block_tokens,
        heads=heads,
        all_heads=all_heads,
        regions=(region,),
        first_head=rank * all_heads // ranks,
        form=f"vLLM {LAYOUT}",
    )
    return layout, {name: place for place, name in enumerate(names)}


def _unknown(what: str) -> ModelError:
    return ModelError(
        f"vLLM's cache is not laid out as {LAYOUT} ({what}): an attention backend that takes "
        "VLLM_KV_CACHE_LAYOUT=LBHNC, and a model whose layers are all alike, are needed"
    )
