"""An engine without a model: fixed times, known tokens, real (tiny) cache and real transfers.

It lets gateway, scheduler and transfer be measured and tried to breaking without the cost of a
model. Life cycle of an iteration (``step``):

1. The new tokens of all requests are written into the cache, a number a token and layer.
2. The iteration lasts as long as it is told to: a time of its own if all requests are in their
   token phase, else a time a new token, those of requests in their token phase included. The
   thread sleeps meanwhile, layer by layer, so that transfers overlap with it as with a real one.
3. The next tokens are computed from what the cache holds (``tokens``).
"""

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwise.engine.base import Engine, LayerCallback, Work
from splitwise.engine.model_files import ModelFolder, read_model_info, read_stop_token_ids
from splitwise.engine.null.tokens import (
    LAYERS,
    cache_rows,
    looked_at,
    next_tokens,
    sampling_key,
    words_of,
)
from splitwise.engine.sampling import Sample
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import HostMemory

BLOCK_TOKENS: Final = 16
_ROW_BYTES: Final = 8


def null_model() -> ModelFolder:
    """The built-in model: a tokenizer of single bytes and made-up words, and no weights."""
    return ModelFolder(Path(__file__).parent / "model", "null")


class NullEngine(Engine):
    """Says what ``tokens.continuation`` predicts, in the time it is told to take."""

    def __init__(
        self,
        folder: ModelFolder,
        cache_memory_bytes: int,
        prompt_token_s: float = 0.0,
        iteration_s: float = 0.0,
    ) -> None:
        """Of ``folder`` only the configuration is read; any model's tokenizer will do.

        Raises:
            ModelError: the folder is no model's.
            ValueError: ``cache_memory_bytes`` does not hold one block, or a time is negative.
        """
        if min(prompt_token_s, iteration_s) < 0:
            raise ValueError(f"times of {prompt_token_s} s and {iteration_s} s: give 0 or more")
        block_bytes = BLOCK_TOKENS * _ROW_BYTES
        blocks = cache_memory_bytes // (LAYERS * block_bytes)
        if blocks < 1:
            raise ValueError(
                f"cache_memory_bytes={cache_memory_bytes}: a block takes {LAYERS * block_bytes}"
            )
        self.model = read_model_info(folder)
        self.layout = CacheLayout.flat(LAYERS, blocks, BLOCK_TOKENS, block_bytes)
        self.memory = HostMemory(self.layout.total_bytes)
        self._words = words_of(self.model.vocab_size, read_stop_token_ids(folder))
        self._cache = np.frombuffer(self.memory.buffer, np.uint64).reshape(LAYERS, -1)
        self._prompt_token_s = prompt_token_s
        self._iteration_s = iteration_s

    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        began_s = time.monotonic()
        lasts_s = self._lasts_s(work)
        slots, rows = _new_rows(work)
        for layer in range(LAYERS):
            self._cache[layer, slots] = rows[layer]
            if on_layer is not None:
                _sleep_until(began_s + lasts_s * (layer + 1) / LAYERS)
                on_layer(layer)
        samples = self._sample(work)
        _sleep_until(began_s + lasts_s)
        return samples

    def synchronise(self) -> None:
        """All of it runs on the caller's thread."""

    def _lasts_s(self, work: Sequence[Work]) -> float:
        if all(map(_is_decode, work)):
            return self._iteration_s
        computed = sum(len(entry.tokens) for entry in work if entry.like is None)
        return computed * self._prompt_token_s

    def _sample(self, work: Sequence[Work]) -> list[Sample | None]:
        wanting = [entry for entry in work if entry.sample]
        if not wanting:
            return [None] * len(work)
        looks = [
            [_slot(entry, position) for position in looked_at(entry.start + len(entry.tokens))]
            for entry in wanting
        ]
        keys = np.array([sampling_key(entry.sampling) for entry in wanting], np.uint64)
        tokens = iter(next_tokens(self._cache[:, looks], keys, self._words).tolist())
        return [_as_sample(next(tokens), entry) if entry.sample else None for entry in work]

    def close(self) -> None:
        del self._cache  # the memory is unmapped when nothing looks at it
        self.memory.close()


def _is_decode(entry: Work) -> bool:
    return entry.start > 0 and len(entry.tokens) == 1


def _new_rows(work: Sequence[Work]) -> tuple[NDArray[np.int64], NDArray[np.uint64]]:
    """Where in a layer the new tokens' numbers go, and the numbers of every layer."""
    slots: list[NDArray[np.int64]] = []
    positions: list[NDArray[np.int64]] = []
    decodes: list[tuple[int, int]] = []
    tokens: list[int] = []
    for entry in work:
        if not _is_decode(entry):
            run = np.arange(entry.start, entry.start + len(entry.tokens))
            blocks = np.array(entry.blocks, np.int64)
            slots.append(blocks[run // BLOCK_TOKENS] * BLOCK_TOKENS + run % BLOCK_TOKENS)
            positions.append(run)
            tokens += entry.tokens
    for entry in work:
        if _is_decode(entry):
            decodes.append((_slot(entry, entry.start), entry.start))
            tokens += entry.tokens
    each = np.array(decodes, np.int64).reshape(-1, 2)
    all_positions = np.concatenate([*positions, each[:, 1]]).astype(np.uint64)
    rows = cache_rows(np.array(tokens, np.uint64), all_positions)
    return np.concatenate([*slots, each[:, 0]]), rows


def _slot(entry: Work, position: int) -> int:
    return entry.blocks[position // BLOCK_TOKENS] * BLOCK_TOKENS + position % BLOCK_TOKENS


def _as_sample(token: int, entry: Work) -> Sample:
    """Every token is certain: its log-probability is 0, and there is no other."""
    count = entry.sampling.logprobs
    if count is None:
        return Sample(token)
    return Sample(token, 0.0, [(token, 0.0)][:count])


def _sleep_until(end_s: float) -> None:
    left_s = end_s - time.monotonic()
    if left_s > 0:
        time.sleep(left_s)
