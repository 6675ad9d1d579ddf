"""What a machine needs of an engine: run one iteration over a paged KV cache.

The worker's machine scheduler decides what runs (``Work``), owns the blocks, and calls ``step``
once an iteration from one thread. The engine decides nothing.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated

import msgspec

from splitwise.engine.sampling import Sample, SamplingParams
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import CacheMemory

Count = Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
LayerCallback = Callable[[int], None]
"""Called on the engine's thread with a layer's index once that layer's new keys and values are
written (on a GPU: queued on the current stream), before the layer's attention is computed."""


@dataclass(frozen=True)
class ModelInfo:
    """What the rest of the system must know of a model."""

    name: str
    layers: int
    kv_heads: int
    head_dim: int
    dtype: str
    vocab_size: Count
    max_context_tokens: Count


@dataclass
class Work:
    """One request's share of an iteration.

    ``tokens`` run at positions ``start``, ``start + 1``, ...; keys and values of the positions
    before ``start`` are in the cache already. ``blocks`` is the block table of the whole request
    and covers ``start + len(tokens)`` positions. A prompt has ``start == 0`` and all its tokens,
    a decode exactly one token. Both kinds may share an iteration.

    ``history`` is the prompt and all output so far (``tokens`` and what later chunks bring
    included); its first ``prompt_tokens`` entries are the prompt. Penalties read it, and its
    length decides how a text is rotated where that depends on it.
    ``sample`` False skips the output head (a prompt chunk that is not the last).
    ``like`` is the place in the iteration's work of an entry that is no such copy itself and has
    the same ``tokens`` at ``start`` 0: they are computed there, and their keys and values go
    into this entry's blocks, too. Its own are its blocks and its draw.
    """

    tokens: Sequence[int]
    start: int
    blocks: Sequence[int]
    sampling: SamplingParams
    history: Sequence[int]
    prompt_tokens: int
    sample: bool = True
    like: int | None = None


class Engine(ABC):
    """A model on one machine, with its paged KV cache."""

    model: ModelInfo
    layout: CacheLayout
    memory: CacheMemory
    """The cache as the transfer layer sees it: ``layout.total_bytes`` bytes."""

    @abstractmethod
    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        """Run one iteration and sample one token for each entry that asks for it.

        The token sampled for an entry sits at position ``start + len(tokens)``, which with the
        request's seed keys the draw. On return the device has passed all of the iteration; where
        this raises, or ``on_layer`` does, some of it may still be queued (``synchronise``).
        """

    @abstractmethod
    def synchronise(self) -> None:
        """Wait until nothing that ``step`` has queued runs any more: only then may blocks of an
        iteration that did not end well be given to others, above all to another machine."""

    @abstractmethod
    def close(self) -> None:
        """Give the cache memory back."""
