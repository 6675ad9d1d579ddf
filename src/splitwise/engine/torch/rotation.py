"""Rotary embeddings whose frequencies depend on the length of the text: longrope, dynamic NTK.

transformers takes the longest position of a call for the text's length. In a row of tokens of many
requests that is a neighbour's length, and in a prompt's chunk it is less than the prompt's. So here
a rotary module of such a kind is called once for each group of tokens whose texts it treats alike,
with one position more: the last of the text, for it to see how long the text is.

What a request gets is what ``generate`` gives it alone. For longrope, whose factors change once, at
the original length, that is: while the text is that long or shorter, the short factors; afterwards
the long ones, for all its positions. At the first token beyond, its keys in the cache, which were
rotated by the short factors, are computed anew (``crossing``), as transformers' Phi-3 does it.
(Keys of a short text are of no use to one that begins alike and is longer than the original.)
A dynamic NTK changes nothing up to ``max_position_embeddings``, and no longer text is served.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from splitwise.engine.base import Work
from splitwise.engine.errors import ModelError
from splitwise.engine.torch.batch import Batch

_Classes = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""Gives each text length a number; texts of one number are rotated alike."""


class Rotation:
    """Sees to it that each request is rotated by its own length; of one network.

    ``modules`` are the rotary modules that it was done to.
    """

    def __init__(self, network: Any) -> None:
        self.modules: list[Any] = []
        self._lengths: NDArray[np.int64] | None = None
        self._switches_at: set[int] = set()
        for module in network.modules():
            if classes := self._classes(module):
                # On the instance: others look for attributes of the module.
                module.forward = self._grouped(module, module.forward, classes)
                self.modules.append(module)

    @contextmanager
    def of(self, batch: Batch) -> Iterator[None]:
        """Within, the network runs the tokens of ``batch``."""
        self._lengths = batch.text_lengths
        try:
            yield
        finally:
            self._lengths = None

    def crossing(self, work: Sequence[Work]) -> list[Work]:
        """The decodes whose cached keys were rotated for a shorter text, and are of no use now."""
        if not self._switches_at:
            return []
        return [
            entry
            for entry in work
            if entry.start in self._switches_at and len(entry.history) == entry.start + 1
        ]

    def _classes(self, module: Any) -> _Classes | None:
        """How ``module`` tells text lengths apart; None if it does not, or is no such module."""
        kinds = _rope_types(module)
        if "longrope" in kinds:
            switches = _original_lengths(module.config)
            self._switches_at |= switches
            edges = np.array(sorted(switches))
            return lambda lengths: np.searchsorted(edges, lengths)
        if any("dynamic" in kind for kind in kinds):
            shortest = module.original_max_seq_len
            return lambda lengths: np.maximum(lengths, shortest)
        return None

    def _grouped(self, module: Any, usual: Callable[..., Any], classes: _Classes) -> Any:
        def forward(x: torch.Tensor, position_ids: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            if self._lengths is None:
                return usual(x, position_ids, *args, **kwargs)
            lengths = self._lengths
            groups = classes(lengths)
            parts: list[Any] = []
            places: list[NDArray[np.int64]] = []
            for group in np.unique(groups):
                [place] = np.nonzero(groups == group)
                _forget_length(module)
                rows = torch.from_numpy(place).to(position_ids.device)
                positions = _with_last(position_ids[..., rows], int(lengths[place].max()))
                parts.append(usual(x, positions, *args, **kwargs))
                places.append(place)
            return _in_place(parts, places)

        return forward


def refuse_unknown(config: Any, name: str) -> None:
    """
    Raises:
        ModelError: transformers has no rotation of the kind that the configuration names.
    """
    known = {"default", *ROPE_INIT_FUNCTIONS}
    parameters = getattr(config, "rope_parameters", None) or {}
    each = [parameters, *(kind for kind in parameters.values() if isinstance(kind, dict))]
    for kind in each:
        if (rope_type := kind.get("rope_type", "default")) not in known:
            raise ModelError(
                f"model {name!r}: transformers knows no rope_type {rope_type!r}, only "
                f"{', '.join(sorted(known))}; correct config.json, or use a newer transformers"
            )


def _rope_types(module: Any) -> set[str]:
    """A module has one, or one a kind of layer."""
    kind = getattr(module, "rope_type", None)
    if isinstance(kind, dict):
        return set(kind.values())
    return {kind} if isinstance(kind, str) else set()


def _original_lengths(config: Any) -> set[int]:
    """Up to which lengths the short factors hold: for all layers, or one a kind of layer."""
    parameters = config.rope_parameters
    each = [parameters] if "rope_type" in parameters else list(parameters.values())
    return {
        int(kind["original_max_position_embeddings"])
        for kind in each
        if kind.get("rope_type") == "longrope"
    }


def _forget_length(module: Any) -> None:
    """A dynamic NTK remembers the longest text yet; without that it looks at the call alone."""
    for name in [name for name in vars(module) if name.endswith("max_seq_len_cached")]:
        setattr(module, name, 0)


def _with_last(positions: torch.Tensor, length: int) -> torch.Tensor:
    last = positions.new_full((*positions.shape[:-1], 1), length - 1)
    return torch.cat([positions, last], dim=-1)


def _in_place(parts: list[Any], places: list[NDArray[np.int64]]) -> Any:
    """The groups' angles (``[1, tokens + 1, dim]``, one tensor or several) in the row's order."""
    if isinstance(parts[0], tuple):
        return tuple(_in_place(list(each), places) for each in zip(*parts, strict=True))
    joined = torch.cat([part[:, :-1] for part in parts], dim=1)
    if len(parts) == 1:
        return joined
    order = torch.from_numpy(np.argsort(np.concatenate(places))).to(joined.device)
    return joined[:, order]
