"""One iteration's work, laid out as tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from splitwise.engine.base import LayerCallback, Work
from splitwise.engine.torch.memory import PagedCache


@dataclass
class Piece:
    """Several tokens of one request: a whole prompt (``start`` 0) or a chunk of it."""

    rows: slice
    """The tokens among all tokens of the iteration."""
    start: int
    blocks: torch.Tensor
    mask: torch.Tensor | None
    """For a chunk with tokens before it: which cached position each token sees; else None."""


@dataclass
class Decodes:
    """The requests that run one token each; their tokens are the first of the iteration."""

    count: int
    tables: torch.Tensor
    """``[count, longest table]`` int32, padded with block 0."""
    lengths: torch.Tensor
    """``[count]`` int32: cached positions to attend to, the new token's included."""


@dataclass
class Copies:
    """Prompts that are computed with another (``Work.like``)."""

    rows: torch.Tensor
    """The other's tokens among all tokens of the iteration, for one copy after the other."""
    cache_rows: tuple[torch.Tensor, ...]


@dataclass
class Batch:
    """All tokens of an iteration in one row: decodes first, then the pieces, without padding."""

    tokens: torch.Tensor
    positions: torch.Tensor
    text_lengths: NDArray[np.int64]
    """How long each token's text is by now, what later chunks bring of a prompt included."""
    sample_rows: torch.Tensor
    sampled: list[int]
    """Which entries of the work ``sample_rows`` belong to, in that order."""
    cache: PagedCache
    cache_rows: tuple[torch.Tensor, ...]
    copies: Copies | None
    decodes: Decodes
    pieces: list[Piece]
    on_layer: LayerCallback | None


def make_batch(
    work: Sequence[Work], cache: PagedCache, device: torch.device, on_layer: LayerCallback | None
) -> Batch:
    """Lay ``work`` out on ``device``."""
    order = [i for i, entry in enumerate(work) if entry.like is None]
    order.sort(key=lambda i: len(work[i].tokens) > 1)
    entries = [work[i] for i in order]
    ends = np.cumsum([len(entry.tokens) for entry in entries]).tolist()
    positions = [np.arange(e.start, e.start + len(e.tokens)) for e in entries]
    blocks = [
        np.asarray(entry.blocks)[at // cache.layout.block_tokens]
        for entry, at in zip(entries, positions, strict=True)
    ]
    position_row = torch.from_numpy(np.concatenate(positions)).to(device)
    block_row = torch.from_numpy(np.concatenate(blocks)).to(device)
    end_of = dict(zip(order, ends, strict=True))
    copied = [i for i, entry in enumerate(work) if entry.like is not None]
    sampling = [(i, end_of[_computed_at(work, i)] - 1) for i in order + copied if work[i].sample]
    return Batch(
        tokens=torch.tensor([[token for e in entries for token in e.tokens]], device=device),
        positions=position_row[None],
        text_lengths=np.repeat([len(e.history) for e in entries], [len(e.tokens) for e in entries]),
        sample_rows=torch.tensor([row for _, row in sampling], device=device),
        sampled=[i for i, _ in sampling],
        cache=cache,
        cache_rows=cache.rows(block_row, position_row),
        copies=_copies([work[i] for i in copied], end_of, cache, device),
        decodes=_decodes([e for e in entries if len(e.tokens) == 1], cache, device),
        pieces=[
            _piece(entry, slice(end - len(entry.tokens), end), cache, device)
            for entry, end in zip(entries, ends, strict=True)
            if len(entry.tokens) > 1
        ],
        on_layer=on_layer,
    )


def _computed_at(work: Sequence[Work], place: int) -> int:
    like = work[place].like
    return place if like is None else like


def _copies(
    copied: Sequence[Work], end_of: dict[int, int], cache: PagedCache, device: torch.device
) -> Copies | None:
    if not copied:
        return None
    positions = [np.arange(len(entry.tokens)) for entry in copied]
    rows = [
        at + end_of[entry.like] - len(at)
        for entry, at in zip(copied, positions, strict=True)
        if entry.like is not None
    ]
    blocks = [
        np.asarray(entry.blocks)[at // cache.layout.block_tokens]
        for entry, at in zip(copied, positions, strict=True)
    ]
    position_row, block_row, row = (
        torch.from_numpy(np.concatenate(part)).to(device) for part in (positions, blocks, rows)
    )
    return Copies(row, cache.rows(block_row, position_row))


def _piece(entry: Work, rows: slice, cache: PagedCache, device: torch.device) -> Piece:
    end = entry.start + len(entry.tokens)
    used = torch.tensor(entry.blocks[: cache.layout.blocks_for(end)], device=device)
    if entry.start == 0:
        return Piece(rows, 0, used, None)
    seen = torch.arange(end, device=device)
    mask = seen[None] <= torch.arange(entry.start, end, device=device)[:, None]
    return Piece(rows, entry.start, used, mask)


def _decodes(work: Sequence[Work], cache: PagedCache, device: torch.device) -> Decodes:
    lengths = np.array([entry.start + 1 for entry in work], dtype=np.int32)
    used = -(-lengths // cache.layout.block_tokens)
    tables = np.zeros((len(work), int(used.max(initial=0))), dtype=np.int32)
    for row, entry, count in zip(tables, work, used, strict=True):
        row[:count] = entry.blocks[:count]
    return Decodes(
        len(work), torch.from_numpy(tables).to(device), torch.from_numpy(lengths).to(device)
    )
