"""How the next token is chosen, as a request states it. Light: the gateway imports this too."""

from typing import Annotated

import msgspec

GREEDY_BELOW = 1e-5
"""A temperature below this is greedy, as in vLLM: all but the likeliest token have no chance left,
and still smaller ones do not even divide a float32."""

Probability = Annotated[float, msgspec.Meta(ge=0, le=1)]
Penalty = Annotated[float, msgspec.Meta(ge=-2, le=2)]


class SamplingParams(msgspec.Struct, frozen=True, omit_defaults=True):
    """Sampling settings of one request, validated at the gateway.

    Names, meanings and order of application are those of vLLM's ``SamplingParams``: penalties,
    temperature, then top-k, top-p and min-p. ``seed`` is always set
    (the gateway draws one where the client names none), because a draw is keyed by
    ``(seed, position)`` so that a replay on another machine gives the same tokens.
    ``logprobs`` is the number of alternatives to report a token; None reports nothing at all.
    Log-probabilities are those of the raw logits, before penalties and temperature.
    """

    seed: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] = 0
    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)] = 0
    """0 means all tokens."""
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    min_p: Probability = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    """Over prompt and output."""
    presence_penalty: Penalty = 0.0
    """Over output only."""
    frequency_penalty: Penalty = 0.0
    """Over output only."""
    logprobs: Annotated[int, msgspec.Meta(ge=0, le=1000)] | None = None

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )


class Sample(msgspec.Struct, array_like=True, omit_defaults=True):
    """One sampled token. ``top`` holds (token, logprob) pairs, most likely first."""

    token: int
    logprob: float | None = None
    top: list[tuple[int, float]] | None = None
