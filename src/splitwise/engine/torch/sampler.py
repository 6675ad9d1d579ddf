"""Choosing tokens from logits.

1. Log-probabilities of the raw logits, for the rows that report them.
2. Penalties, on the rows that have them.
3. Greedy rows: the largest logit. If all are greedy, that one call is everything.
4. The other rows: temperature, top-k, top-p, min-p, and a draw keyed by (seed, position).

The draw of a row depends on nothing but its logits, its settings and its position, so that it is
the same in any batch and on any machine.
"""

from collections.abc import Sequence

import numpy as np
import torch

from splitwise.engine.base import Work
from splitwise.engine.sampling import Sample, SamplingParams

_SHORTLIST = 256
"""Top-p first looks at this many tokens, and sorts the vocabulary only if they do not suffice."""


def sample(logits: torch.Tensor, work: Sequence[Work]) -> list[Sample]:
    """One token for each row of ``logits`` (``[len(work), vocabulary]``, float; overwritten)."""
    logits = logits.float()
    reports = [(row, w.sampling.logprobs) for row, w in enumerate(work)]
    reporting = [row for row, count in reports if count is not None]
    raw = torch.log_softmax(logits[reporting], dim=-1) if reporting else None
    for row, entry in enumerate(work):
        if entry.sampling.has_penalties:
            _penalise(logits[row], entry)
    chosen = logits.argmax(dim=-1)
    drawn = [row for row, entry in enumerate(work) if entry.sampling.temperature > 0]
    if drawn:
        chosen[drawn] = draw(logits[drawn], [work[row] for row in drawn])
    samples = [Sample(token) for token in chosen.tolist()]
    if raw is not None:
        for logprobs, row in zip(raw, reporting, strict=True):
            _report(samples[row], logprobs, work[row].sampling.logprobs or 0)
    return samples


def draw(logits: torch.Tensor, work: Sequence[Work]) -> torch.Tensor:
    """Draw one token a row; returns ``[rows]`` token ids.

    The tokens that the filters leave, in the order of their ids, share the interval 0 to 1 by
    probability; the token drawn is the one the row's uniform number falls on.
    """
    params = [entry.sampling for entry in work]
    temperature = logits.new_tensor([p.temperature for p in params])
    probs = torch.softmax(logits / temperature[:, None], dim=-1)
    filtered = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p > 0]
    for i in filtered:
        _filter(probs[i], params[i])
    edges = probs.double().cumsum(dim=-1)
    at = [uniform(entry.sampling.seed, entry.start + len(entry.tokens)) for entry in work]
    points = edges.new_tensor(at)[:, None] * edges[:, -1:]
    # right=True: never a token without probability, whose edge equals the one before it.
    return torch.searchsorted(edges, points, right=True)[:, 0]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) that ``(seed, position)`` determines, from the Philox generator."""
    key = np.array([seed & (2**64 - 1), position], dtype=np.uint64)
    return float(np.random.Generator(np.random.Philox(key=key)).random())


def _filter(probs: torch.Tensor, params: SamplingParams) -> None:
    """Set the probability of what top-k, then top-p, then min-p rule out to zero, in place."""
    size = len(probs)
    count = min(params.top_k or _SHORTLIST, size)
    top, ids = torch.topk(probs, count)
    if not params.top_k and params.top_p < 1 and float(top.sum()) < params.top_p:
        top, ids = torch.sort(probs, descending=True, stable=True)
    whole = top.sum() if params.top_k else 1.0
    keep = torch.ones_like(top, dtype=torch.bool)
    if params.top_p < 1:
        # A token stays while those before it have not reached top-p; so the first always does.
        keep = (top.cumsum(0) - top) < params.top_p * whole
    if params.min_p > 0:
        keep &= top >= params.min_p * top[0]
        if not params.top_k and params.top_p >= 1:
            probs[probs < params.min_p * top[0]] = 0
            return
    kept = torch.zeros_like(probs)
    kept[ids[keep]] = top[keep]
    probs.copy_(kept)


def _penalise(logits: torch.Tensor, entry: Work) -> None:
    """Repetition penalty over prompt and output; frequency and presence over output; in place."""
    params = entry.sampling
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(entry.history)), device=logits.device)
        old = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = torch.where(old > 0, old / penalty, old * penalty)
    output = entry.history[entry.prompt_tokens :]
    if output and (params.frequency_penalty or params.presence_penalty):
        ids, counts = torch.tensor(output, device=logits.device).unique(return_counts=True)
        logits[ids] -= params.frequency_penalty * counts + params.presence_penalty


def _report(sample: Sample, logprobs: torch.Tensor, count: int) -> None:
    sample.logprob = float(logprobs[sample.token])
    values, ids = torch.topk(logprobs, min(count, len(logprobs)))
    sample.top = list(zip(ids.tolist(), values.tolist(), strict=True))
