"""Our sampler inside vLLM: the same draws as the embedded engine's, keyed by (seed, position).

vLLM's own runner keeps a generator a request, which another machine could not take up. So requests
that draw, or have penalties, come to vLLM as greedy ones, and this logits processor leaves them one
token to choose: the one that our sampler has.
"""

from typing import TYPE_CHECKING, NamedTuple

import torch
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from splitwise.engine.base import Work
from splitwise.engine.sampling import SamplingParams
from splitwise.engine.torch.sampler import sample

if TYPE_CHECKING:
    from vllm import SamplingParams as VllmSamplingParams
    from vllm.config import VllmConfig

KEY = "splitwise_draw"
"""In a request's ``extra_args``: a ``Draw``."""


class Draw(NamedTuple):
    """How a request draws. ``prompt_tokens`` of its history are the prompt; the rest is output."""

    sampling: SamplingParams
    prompt_tokens: int


class _Row(NamedTuple):
    draw: Draw
    prompt: list[int]
    output: list[int]
    """vLLM's own list, which grows."""

    def work(self) -> Work:
        history = [*self.prompt, *self.output]
        return Work(
            tokens=history[-1:],
            start=len(history) - 1,
            blocks=(),
            sampling=self.draw.sampling,
            history=history,
            prompt_tokens=self.draw.prompt_tokens,
        )


class Draws(LogitsProcessor):
    """Chooses for the rows that ask for it."""

    def __init__(
        self, vllm_config: "VllmConfig", device: torch.device, is_pin_memory: bool
    ) -> None:
        self._rows: dict[int, _Row] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        process_dict_updates(self._rows, batch_update, _new_row)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        if not self._rows:
            return logits
        rows = sorted(self._rows)
        chosen = sample(logits[rows], [self._rows[row].work() for row in rows])
        logits[rows] = -torch.inf
        logits[rows, [each.token for each in chosen]] = 0
        return logits


def _new_row(
    params: "VllmSamplingParams", prompt: list[int] | None, output: list[int]
) -> _Row | None:
    draw = (params.extra_args or {}).get(KEY)
    if draw is None:
        return None
    assert prompt is not None, "requests come as tokens"
    return _Row(draw, prompt, output)
