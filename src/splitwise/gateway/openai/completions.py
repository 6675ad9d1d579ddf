"""``/v1/completions``: one or several plain prompts to a job."""

from typing import cast

from splitwise.gateway.openai.errors import ApiError, invalid
from splitwise.gateway.openai.generate import Job
from splitwise.gateway.openai.jobs import Front, Origin, encode_prompt, make_job
from splitwise.gateway.openai.protocol import CompletionRequest, Prompt
from splitwise.gateway.openai.rendering import CompletionRenderer
from splitwise.gateway.openai.validation import (
    check_choices,
    check_logprobs,
    check_max_tokens,
    check_room,
    check_token_ids,
)

DEFAULT_MAX_TOKENS = 16
"""OpenAI's default for plain completions, where the model has none."""


async def prepare_completion(request: CompletionRequest, front: Front, origin: Origin) -> Job:
    """Validate a completion request and tokenise its prompts.

    Raises:
        ApiError: 400 or 404, naming the field.
    """
    logprobs = None
    if request.logprobs is not None:
        logprobs = check_logprobs("logprobs", request.logprobs, front.limits)
    prompts = _split(request.prompt)
    n = check_choices("prompt", len(prompts), request.n, front.limits)
    max_tokens = check_max_tokens("max_tokens", request.max_tokens)
    default = front.model.defaults.max_new_tokens or DEFAULT_MAX_TOKENS
    sized: list[tuple[list[int], int]] = []
    pace = front.turns.pace()
    for place, prompt in enumerate(prompts):
        if place:
            await pace.rest()
        where = "prompt" if len(prompts) == 1 else f"prompt[{place}]"
        if isinstance(prompt, str):
            prompt = await encode_prompt(
                where,
                prompt,
                request.add_special_tokens is not False,
                front.model.max_context_tokens,
                front.codec,
            )
        room = check_room(where, len(prompt), max_tokens, default, front.model)
        check_token_ids(where, prompt, front.model)
        sized.append((prompt, room))
    return make_job(request, sized, n, logprobs, CompletionRenderer, front, origin)


def _split(prompt: Prompt) -> list[str | list[int]]:
    """The prompts of a request: a string, token ids, or a list of either."""
    if isinstance(prompt, str):
        return [prompt]
    if not prompt:
        raise invalid("prompt", [], "send a string or at least one token id")
    kinds = set(map(type, prompt))  # as fast as can be: it may be a hundred thousand token ids
    if kinds == {int}:
        return [cast(list[int], prompt)]
    if kinds in ({str}, {list}):
        return cast(list[str | list[int]], prompt)
    raise ApiError(
        400, "prompt mixes strings, token ids and lists: send a list of one kind", "prompt"
    )
