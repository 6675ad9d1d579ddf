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

_CACHED_NUMBERS = 1 << 16
_SHORTLIST = 256
"""Top-p first looks at this many tokens, and sorts the vocabulary only if they do not suffice."""


def sample(logits: torch.Tensor, work: Sequence[Work]) -> list[Sample]:
    """One token for each row of ``logits`` (``[len(work), vocabulary]``, float; overwritten)."""
    logits = _finite(logits.float())
    reports = [(row, w.sampling.logprobs) for row, w in enumerate(work)]
    reporting = [row for row, count in reports if count is not None]
    raw = torch.log_softmax(logits[reporting], dim=-1) if reporting else None
    for row, entry in enumerate(work):
        if entry.sampling.has_penalties:
            _penalise(logits[row], entry)
    chosen = logits.argmax(dim=-1)
    drawn = [row for row, entry in enumerate(work) if not entry.sampling.is_greedy]
    if drawn:
        chosen[drawn] = draw(logits[drawn], [work[row] for row in drawn])
    samples = [Sample(token) for token in chosen.tolist()]
    if raw is not None:
        for logprobs, row in zip(raw, reporting, strict=True):
            _report(samples[row], logprobs, work[row].sampling.logprobs or 0)
    return samples


def draw(logits: torch.Tensor, work: Sequence[Work]) -> torch.Tensor:
    """Draw one token a row; returns ``[rows]`` token ids.

    A race: each token waits for a time that is exponential with its probability as the rate, and
    the first one wins. Logits that differ by rounding (a prompt recomputed elsewhere) give the
    same winner unless two tokens arrive almost together. Dividing the interval 0 to 1 among the
    tokens would not do: there a small change of one token moves all those after it.
    """
    params = [entry.sampling for entry in work]
    temperature = logits.new_tensor([p.temperature for p in params])
    # The largest first becomes 0, so that a division by little overflows to no chance at all.
    below = logits - logits.amax(dim=-1, keepdim=True)
    probs = torch.softmax(below / temperature[:, None], dim=-1)
    filtered = [i for i, p in enumerate(params) if p.top_k or p.top_p < 1 or p.min_p > 0]
    for i in filtered:
        _filter(probs[i], params[i])
    keys = [race_keys(entry.sampling.seed, entry.start + len(entry.tokens)) for entry in work]
    # On a CPU a few rows at a time, so that their numbers stay in the cache.
    size = probs.shape[1]
    rows = max(1, _CACHED_NUMBERS // size) if logits.device.type == "cpu" else len(keys)
    parts = torch.split(torch.from_numpy(np.stack(keys)).to(logits.device), rows)
    waits = torch.cat([exponentials(part, size) for part in parts])
    return probs.div_(waits).argmax(dim=-1)


def race_keys(seed: int, position: int) -> "np.ndarray[tuple[int], np.dtype[np.int32]]":
    """Two numbers that ``(seed, position)`` determines, from the Philox generator."""
    key = np.array([seed & (2**64 - 1), position], dtype=np.uint64)
    return np.random.Philox(key=key).random_raw(1).view(np.int32)


def exponentials(keys: torch.Tensor, count: int) -> torch.Tensor:
    """``[rows, count]`` exponential numbers (mean 1), hashed from their row's keys and their place.

    ``keys`` is ``[rows, 2]`` int32. The same on every device, whatever other rows there are. The
    hash is the 32-bit mixer "lowbias32" (C. Wellons' hash-prospector), once for each key.
    """
    x = torch.arange(count, dtype=torch.int32, device=keys.device).repeat(len(keys), 1)
    for key in keys.T:
        x ^= key[:, None]
        for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B - 2**32)):
            x ^= (x >> shift) & ((1 << (32 - shift)) - 1)  # a shift that brings zeros in
            x *= factor
        x ^= (x >> 16) & 0xFFFF
    fraction = (((x >> 8) & 0xFFFFFF).float() + 0.5) * 2.0**-24
    fraction.clamp_(max=1 - 2.0**-24)  # the last one is rounded to 1, a wait without an end
    return fraction.neg_().log1p_().neg_()


def _filter(probs: torch.Tensor, params: SamplingParams) -> None:
    """Set the probability of what top-k, then top-p, then min-p rule out to zero, in place."""
    lowest = params.min_p * probs.max()
    if params.top_k or params.top_p < 1:
        top, ids = _most_likely(probs, params)
        if params.top_p < 1:
            # A token stays while those before it have not reached top-p; the first stays anyhow.
            whole = top.sum() if params.top_k else 1.0
            keep = (top.cumsum(0) - top) < params.top_p * whole
            keep[0] = True
            top, ids = top[keep], ids[keep]
        probs.zero_()
        probs[ids] = top
    probs[probs < lowest] = 0


def _most_likely(probs: torch.Tensor, params: SamplingParams) -> tuple[torch.Tensor, torch.Tensor]:
    """The probabilities and ids that top-k leaves, or enough of them for top-p, falling."""
    if params.top_k:
        top, ids = torch.topk(probs, min(params.top_k, len(probs)))
        return top, ids
    top, ids = torch.topk(probs, min(_SHORTLIST, len(probs)))
    if float(top.sum()) < params.top_p:
        top, ids = torch.sort(probs, descending=True, stable=True)
    return top, ids


def _finite(logits: torch.Tensor) -> torch.Tensor:
    """An overflown logit becomes the largest number there is, in place: two infinite ones have no
    difference. Minus infinity stays; it rules a token out."""
    return logits.clamp_(max=torch.finfo(logits.dtype).max)


def _penalise(logits: torch.Tensor, entry: Work) -> None:
    """Repetition penalty over prompt and output; frequency and presence over output; in place."""
    params = entry.sampling
    if params.repetition_penalty != 1.0:
        seen = torch.tensor(sorted(set(entry.history)), device=logits.device)
        old = logits[seen]
        penalty = params.repetition_penalty
        logits[seen] = _finite(torch.where(old > 0, old / penalty, old * penalty))
    output = entry.history[entry.prompt_tokens :]
    if output and (params.frequency_penalty or params.presence_penalty):
        counts = torch.bincount(torch.tensor(output, device=logits.device), minlength=len(logits))
        logits -= params.frequency_penalty * counts + params.presence_penalty * (counts > 0)


def _report(sample: Sample, logprobs: torch.Tensor, count: int) -> None:
    sample.logprob = float(logprobs[sample.token])
    values, ids = torch.topk(logprobs, min(count, len(logprobs)))
    sample.top = list(zip(ids.tolist(), values.tolist(), strict=True))
