"""From measured points to curves: the two rules a profile can follow, and its power.

Both read prompt times off one axis, prompt tokens x batch. They differ in decodes: ``measured``
follows the measured batch sizes, ``published-2024`` looks the number of decodes up on the prompts'
axis, as the authors' public simulator does, so that a batch costs hardly more than one request.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np

from splitwise.hardware.iteration_times import MAX_DECODES, TINY_S, Floats, straight_lines
from splitwise.hardware.profile_file import Knot, Point

STEADY_BATCH: Final = 8
"""From this batch size on, what a request adds to a decode iteration stands out of the noise."""
SHORT_PROMPT_TOKENS: Final = 512
"""Prompts of up to so many tokens are a small part of a run's time."""


@dataclass(frozen=True)
class Curves:
    """Seconds, in the shapes of ``IterationTimes``."""

    prompt_tokens: Floats
    prompt_s: Floats
    decode_s: Floats
    decode_s_per_context_token: Floats


@dataclass(frozen=True)
class PowerFractions:
    """Fractions of the GPU power limit: ``prompt`` at ``tokens``, and one for all decodes."""

    tokens: Floats
    prompt: Floats
    decode: float


def measured(points: list[Point], knots: list[Knot]) -> Curves:
    """Decodes by the measured batch sizes, with a share that grows with their context."""
    del knots  # the points have it all
    tokens, prompt_s = _medians(points, _tokens, lambda point: point.prompt_ms / 1e3)
    batches, batch_s = _batch_curve(points)
    context = _batch_curve_context(points)
    slope = _context_slope(points, batches, batch_s, context)
    bare_s = batch_s - slope * batches * context
    decodes = np.arange(MAX_DECODES + 1)
    if len(batches) > 1:
        decode_s = np.maximum(straight_lines(batches, bare_s, decodes), TINY_S)
    else:
        decode_s = np.full(len(decodes), bare_s[0])
    decode_s[0] = 0.0
    return Curves(tokens, prompt_s, decode_s, np.full(MAX_DECODES + 1, slope))


def published_2024(points: list[Point], knots: list[Knot]) -> Curves:
    """The rule of the authors' public simulator; its exact medians where ``knots`` has them."""
    tokens, prompt_s = _medians(points, _tokens, lambda point: point.prompt_ms / 1e3)
    _, token_s = _medians(points, _tokens, lambda point: point.token_ms / 1e3)
    for knot in knots:
        prompt_s[tokens == knot.tokens] = knot.prompt_ms / 1e3
        if knot.token_ms is not None:
            token_s[tokens == knot.tokens] = knot.token_ms / 1e3
    decode_s = np.maximum(straight_lines(tokens, token_s, np.arange(MAX_DECODES + 1)), TINY_S)
    decode_s[0] = 0.0
    return Curves(tokens, prompt_s, decode_s, np.zeros(MAX_DECODES + 1))


RULES: Final[dict[str, Callable[[list[Point], list[Knot]], Curves]]] = {
    "measured": measured,
    "published-2024": published_2024,
}


def power_fractions(points: list[Point]) -> PowerFractions:
    """Prompts at the peak of a run, decodes at its average; the whole limit where not measured."""
    known = [point for point in points if point.peak_power_fraction is not None]
    if not known:
        return PowerFractions(np.array([1.0]), np.array([1.0]), 1.0)
    tokens, prompt = _medians(known, _tokens, lambda point: point.peak_power_fraction or 1.0)
    # Where the prompt is a small part of the run, its average is that of the decodes.
    limit = max(SHORT_PROMPT_TOKENS, min(_tokens(point) for point in known))
    average = [point.average_power_fraction or 1.0 for point in known if _tokens(point) <= limit]
    return PowerFractions(tokens, prompt, float(np.median(average)))


def _tokens(point: Point) -> int:
    return point.prompt_tokens * point.batch


def _medians(
    points: list[Point], key: Callable[[Point], int], value: Callable[[Point], float]
) -> tuple[Floats, Floats]:
    """Ascending keys, and the median over all runs of the points of each."""
    groups: dict[int, list[float]] = {}
    for point in points:
        groups.setdefault(key(point), []).extend([value(point)] * point.runs)
    keys = sorted(groups)
    return (
        np.array(keys, dtype=np.float64),
        np.array([np.median(groups[one]) for one in keys], dtype=np.float64),
    )


def _prompt_of_batches(points: list[Point]) -> int:
    """The prompt size at which most batch sizes were measured."""
    sizes: dict[int, set[int]] = {}
    for point in points:
        sizes.setdefault(point.prompt_tokens, set()).add(point.batch)
    return max(sizes, key=lambda size: (len(sizes[size]), -size))


def _batch_points(points: list[Point]) -> list[Point]:
    """Points of one prompt size, and of the shortest output measured with it."""
    prompt = _prompt_of_batches(points)
    chosen = [point for point in points if point.prompt_tokens == prompt]
    shortest = min(point.output_tokens for point in chosen)
    return [point for point in chosen if point.output_tokens == shortest]


def _batch_curve(points: list[Point]) -> tuple[Floats, Floats]:
    chosen = _batch_points(points)
    return _medians(chosen, lambda point: point.batch, lambda point: point.token_ms / 1e3)


def _batch_curve_context(points: list[Point]) -> float:
    return _mean_context(_batch_points(points)[0])


def _mean_context(point: Point) -> float:
    """Tokens of context of a request, on average over its decodes."""
    return point.prompt_tokens + point.output_tokens / 2


def _context_slope(points: list[Point], batches: Floats, batch_s: Floats, context: float) -> float:
    """Seconds a token of context: from single requests, within what the batch curve leaves.

    A single request's time grows with its context. That growth is not taken beyond the point
    where more requests of no context would take less time than fewer.
    """
    single = [point for point in points if point.batch == 1]
    contexts = np.array([_mean_context(point) for point in single])
    if len(set(contexts.tolist())) < 2:
        return 0.0
    token_s = np.array([point.token_ms / 1e3 for point in single])
    weights = np.sqrt([point.runs for point in single])
    slope = float(np.polyfit(contexts, token_s, 1, w=weights)[0])
    steady = batches >= STEADY_BATCH
    growth = np.diff(batch_s[steady]) / np.diff(batches[steady])
    if len(growth):
        slope = min(slope, float(growth.min()) / context)
    return max(slope, 0.0)
