"""Prompts and settings to a ``Job``: what chat and plain completions do alike."""

from collections.abc import Callable
from dataclasses import dataclass

import msgspec

from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.openai.errors import ApiError, invalid
from splitwise.gateway.openai.generate import Job
from splitwise.gateway.openai.protocol import GenerationFields, StreamOptions
from splitwise.gateway.openai.rendering import Renderer
from splitwise.gateway.openai.validation import (
    ModelFacts,
    check_min_tokens,
    check_priority,
    choice_seed,
    output_options,
    sampling_params,
)
from splitwise.gateway.pace import Turns
from splitwise.gateway.text.codec import TextCodec, TextTooLong
from splitwise.protocol.generation import GenerationRequest


@dataclass(frozen=True)
class Origin:
    """Where a request comes from. ``unique_id`` is its name on the cluster."""

    unique_id: str
    client: str
    least_priority: int
    """The most urgent that this client may ask for."""


@dataclass(frozen=True)
class Front:
    """What a request is validated against."""

    codec: TextCodec
    model: ModelFacts
    limits: HttpLimits
    turns: Turns


async def encode_prompt(
    param: str, text: str, add_special_tokens: bool, at_most_tokens: int, codec: TextCodec
) -> list[int]:
    """Tokenise a prompt; ``param`` names its field.

    Raises:
        ApiError: 400 for a text far over ``at_most_tokens``.
    """
    try:
        return await codec.encode(text, add_special_tokens, at_most_tokens)
    except TextTooLong as error:
        raise ApiError(
            400,
            f"{param} is too long: {error}, but at most {at_most_tokens} are taken: shorten it",
            param,
            "context_length_exceeded",
        ) from error


def make_job(
    fields: GenerationFields,
    prompts: list[tuple[list[int], int]],
    n: int,
    logprobs: int | None,
    renderer: Callable[[str, str, TextCodec, bool], Renderer],
    front: Front,
    origin: Origin,
) -> Job:
    """``n`` generation requests for each prompt; the choices of a prompt follow each other.

    ``prompts`` are token ids with the number of tokens to generate. The ``i``-th choice of every
    prompt has ``choice_seed(seed, i)``, so that a prompt's answers do not depend on its
    neighbours.
    """
    sampling = sampling_params(fields, logprobs, front.model.defaults)
    output = output_options(fields, logprobs, front.model, front.limits, front.codec.special_texts)
    priority = check_priority(fields.priority, origin.least_priority)
    check_min_tokens(fields, min(max_tokens for _, max_tokens in prompts))
    if fields.stream_options is not None and not fields.stream:
        raise invalid("stream_options", fields.stream_options, "set stream to true with it")
    seeded = [
        msgspec.structs.replace(sampling, seed=choice_seed(sampling.seed, choice))
        for choice in range(n)
    ]
    requests = [
        GenerationRequest(
            f"{origin.unique_id}-{place * n + choice}",
            tokens,
            max_tokens,
            seeded[choice],
            list(output.stop_token_ids),
            origin.client,
            priority,
        )
        for place, (tokens, max_tokens) in enumerate(prompts)
        for choice in range(n)
    ]
    return Job(
        requests,
        sum(len(tokens) for tokens, _ in prompts),
        output,
        renderer(origin.unique_id, front.model.name, front.codec, logprobs is not None),
        bool(fields.stream),
        fields.stream_options or StreamOptions(),
    )
