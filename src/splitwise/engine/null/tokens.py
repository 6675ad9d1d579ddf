"""Which token follows a text: a fixed function of its tokens, its seed and nothing else.

Each position leaves one number a layer in the cache (``cache_rows``), as keys and values would be.
The next token is a hash of the numbers at a few positions (``looked_at``): the newest, which every
token depends on, and others that change from step to step. So a cache that was moved wrongly, or
not at all, soon shows as wrong tokens, while a step costs the same however long the text is.
"""

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from splitwise.engine.sampling import SamplingParams

LAYERS: Final = 2
LOOKS: Final = 3
_ODD: Final = np.array([0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9], np.uint64)
_FINISH: Final = np.uint64(0xD6E8FEB86659FD93)
_HALF: Final = np.uint64(32)


def cache_rows(tokens: NDArray[np.uint64], positions: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """What tokens leave in the cache: ``[LAYERS, tokens]``, different in each layer."""
    row = (tokens << _HALF) | positions
    return np.stack([row, ~row])


def looked_at(position: int) -> tuple[int, int, int]:
    """The positions that decide the token at ``position``."""
    return position - 1, (position * 40503 >> 4) % position, (position * 30011 >> 5) % position


def next_tokens(
    rows: NDArray[np.uint64], keys: NDArray[np.uint64], words: NDArray[np.int64]
) -> NDArray[np.int64]:
    """A token of ``words`` for each text.

    ``rows`` is ``[LAYERS, texts, LOOKS]``, what the cache holds at the positions looked at;
    ``keys`` is one number a text (``sampling_key``).
    """
    mixed = (rows[0] * _ODD + (rows[1] >> np.uint64(7)) * _ODD[::-1]).sum(axis=1) + keys * _ODD[0]
    mixed ^= mixed >> _HALF
    mixed *= _FINISH
    mixed ^= mixed >> _HALF
    said: NDArray[np.int64] = words[(mixed % np.uint64(len(words))).astype(np.int64)]
    return said


def sampling_key(sampling: SamplingParams) -> int:
    """The seed, of which greedy texts are independent."""
    return 0 if sampling.is_greedy else sampling.seed & (2**63 - 1)


def words_of(vocab_size: int, stop_token_ids: Sequence[int]) -> NDArray[np.int64]:
    """The tokens that are said: the upper half, where vocabularies have words rather than bytes
    and control tokens. None of them ends a text."""
    stops = set(stop_token_ids)
    said = [token for token in range(vocab_size // 2, vocab_size) if token not in stops]
    return np.array(said, np.int64)


def continuation(
    prompt: Sequence[int], count: int, sampling: SamplingParams, words: NDArray[np.int64]
) -> list[int]:
    """The ``count`` tokens that follow ``prompt``, computed without any cache."""
    history = np.array([*prompt, *[0] * count], np.uint64)
    positions = np.arange(len(history), dtype=np.uint64)
    key = np.array([sampling_key(sampling)], np.uint64)
    for position in range(len(prompt), len(history)):
        looks = list(looked_at(position))
        rows = cache_rows(history[looks], positions[looks])
        history[position] = next_tokens(rows[:, None, :], key, words)[0]
    return [int(token) for token in history[len(prompt) :]]
