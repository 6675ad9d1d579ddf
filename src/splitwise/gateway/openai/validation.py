"""From a request's bytes to settings that the rest of the system may trust.

1. ``decode`` parses the body into its struct: JSON, types, required fields.
2. ``check_model`` and ``refuse_unsupported`` look at what is asked of whom.
3. ``sampling_params``, ``output_options`` and ``check_room`` check every range.

Each refusal is an ``ApiError`` that names the field, its value and the remedy.
"""

import math
import random
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec

from splitwise.engine.generation_config import GenerationDefaults
from splitwise.engine.sampling import SamplingParams
from splitwise.gateway.api_keys import PRIORITIES, USUAL_PRIORITY
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.openai.errors import ApiError, invalid
from splitwise.gateway.openai.protocol import GenerationFields
from splitwise.gateway.text.stops import SpecialTexts, StopStrings

T = TypeVar("T")

SEEDS = 2**63
"""Seeds are taken modulo this, so that negative ones are welcome too."""
_PATH = re.compile(r" - at `\$\.?(.*)`$")
_MISSING = re.compile(r"missing required field `(.*?)`")


@dataclass(frozen=True)
class ModelFacts:
    """What the HTTP layer must know of the model it fronts."""

    name: str
    max_context_tokens: int
    vocab_size: int
    stop_token_ids: tuple[int, ...]
    defaults: GenerationDefaults = field(default_factory=GenerationDefaults)
    """For requests that do not say."""


@dataclass(frozen=True)
class OutputOptions:
    """How tokens become the answer."""

    stops: StopStrings | None
    include_stop: bool
    skip_special_tokens: bool
    stop_token_ids: tuple[int, ...]
    logprobs: int | None
    return_token_ids: bool


def decode(body: bytes, decoder: "msgspec.json.Decoder[T]") -> T:
    """Parse a body.

    Raises:
        ApiError: 400; ``param`` is the path of the field that does not fit.
    """
    try:
        return decoder.decode(body)
    except msgspec.ValidationError as error:
        message = str(error)
        path = match[1] if (match := _PATH.search(message)) else ""
        if match := _MISSING.search(message):
            path = f"{path}.{match[1]}" if path else match[1]
        said = _PATH.sub("", message)
        raise ApiError(400, f"{path or 'the body'}: {said}", path or None) from None
    except UnicodeDecodeError:
        raise ApiError(400, "the body is not UTF-8: encode it as UTF-8") from None
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply: send a flatter object") from None
    except (msgspec.MsgspecError, ValueError) as error:
        raise ApiError(400, f"the body is not valid JSON: {error}") from None


def check_model(asked: str | None, served: str) -> None:
    """Leaving the model out means the one that is served."""
    if asked is None or asked == served:
        return
    raise ApiError(
        404,
        f"model {asked[:200]!r} does not exist: this server has {served!r}",
        "model",
        "model_not_found",
    )


def sampling_params(
    fields: GenerationFields, logprobs: int | None, defaults: GenerationDefaults
) -> SamplingParams:
    """Checked sampling settings; a seed is drawn where the client names none."""
    if fields.seed is None:
        seed = random.randrange(SEEDS)
    else:
        seed = _within("seed", fields.seed, -SEEDS, SEEDS - 1) % SEEDS
    top_k = defaults.top_k if fields.top_k is None else fields.top_k
    return SamplingParams(
        seed=seed,
        temperature=_number("temperature", fields.temperature, defaults.temperature, 0.0, 2.0),
        top_k=max(0, _within("top_k", top_k, -1, 2**31 - 1)),  # -1 is vLLM's old "all tokens"
        top_p=_number("top_p", fields.top_p, defaults.top_p, 0.0, 1.0, above=True),
        min_p=_number("min_p", fields.min_p, defaults.min_p, 0.0, 1.0),
        repetition_penalty=_number(
            "repetition_penalty",
            fields.repetition_penalty,
            defaults.repetition_penalty,
            0.0,
            100.0,
            above=True,
        ),
        presence_penalty=_number("presence_penalty", fields.presence_penalty, 0.0, -2.0, 2.0),
        frequency_penalty=_number("frequency_penalty", fields.frequency_penalty, 0.0, -2.0, 2.0),
        logprobs=logprobs,
    )


def choice_seed(seed: int, choice: int) -> int:
    """The seed of a request's ``choice``-th answer.

    The first has the request's own, so that ``n`` does not change it; the others are spread over
    all seeds by SplitMix64's finaliser (Steele, Lea and Flood, 2014).
    """
    if choice == 0:
        return seed
    mask = 2**64 - 1
    mixed = (seed + choice * 0x9E3779B97F4A7C15) & mask
    mixed = ((mixed ^ (mixed >> 30)) * 0xBF58476D1CE4E5B9) & mask
    mixed = ((mixed ^ (mixed >> 27)) * 0x94D049BB133111EB) & mask
    return (mixed ^ (mixed >> 31)) % SEEDS


def output_options(
    fields: GenerationFields,
    logprobs: int | None,
    model: ModelFacts,
    limits: HttpLimits,
    special: SpecialTexts,
) -> OutputOptions:
    """Checked stop conditions and settings of the text; ``special`` are the model's tokens that it
    may not show."""
    asked = fields.stop_token_ids or []
    if len(asked) > limits.max_stop_token_ids:
        raise ApiError(
            400,
            f"stop_token_ids has {len(asked)} entries: send at most {limits.max_stop_token_ids}",
            "stop_token_ids",
        )
    check_token_ids("stop_token_ids", asked, model)
    own = () if fields.ignore_eos else model.stop_token_ids
    include_stop = bool(fields.include_stop_str_in_output)
    skips = fields.skip_special_tokens is not False
    stops = _stop_strings(fields.stop, limits)
    return OutputOptions(
        stops=StopStrings(stops, include_stop, special if skips else None) if stops else None,
        include_stop=include_stop,
        skip_special_tokens=skips,
        stop_token_ids=tuple(dict.fromkeys((*own, *asked))),
        logprobs=logprobs,
        return_token_ids=bool(fields.return_token_ids),
    )


def check_choices(param: str, prompts: int, n: int | None, limits: HttpLimits) -> int:
    """How many answers each of ``prompts`` prompts gets."""
    choices = 1 if n is None else _within("n", n, 1, limits.max_choices)
    if prompts * choices > limits.max_choices:
        raise ApiError(
            400,
            f"{param} and n ask for {prompts} x {choices} answers: "
            f"ask for at most {limits.max_choices} in one request",
            param,
        )
    return choices


def check_priority(value: int | None, least: int) -> int:
    """Lower is earlier; ``least`` is the lowest that this client may ask for."""
    if value is None:
        return max(USUAL_PRIORITY, least)
    return _within("priority", value, least, PRIORITIES[-1])


def check_max_tokens(param: str, value: int | None) -> int | None:
    return None if value is None else _within(param, value, 1, None)


def check_min_tokens(fields: GenerationFields, max_tokens: int) -> None:
    """Nothing here holds an end of text back, so ``min_tokens`` is taken only from a request whose
    answers cannot end before ``max_tokens``, as load generators send it."""
    if fields.min_tokens is None or _within("min_tokens", fields.min_tokens, 0, max_tokens) == 0:
        return
    if fields.ignore_eos and not fields.stop and not fields.stop_token_ids:
        return
    raise ApiError(
        400,
        f"min_tokens {fields.min_tokens} is supported only where nothing ends an answer early: "
        "set ignore_eos to true and leave out stop and stop_token_ids, or leave min_tokens out",
        "min_tokens",
        "unsupported_parameter",
    )


def check_room(
    param: str, prompt_tokens: int, max_tokens: int | None, default: int | None, model: ModelFacts
) -> int:
    """How many tokens may be generated.

    Without ``max_tokens`` it is ``default``, or all that fit if that is less or None. ``param``
    names the prompt's field.
    """
    if prompt_tokens == 0:
        raise ApiError(400, f"{param} is empty: send at least one token", param)
    room = model.max_context_tokens - prompt_tokens
    wanted = max_tokens or max(1, room if default is None else min(default, room))
    if wanted <= room:
        return wanted
    raise ApiError(
        400,
        f"the prompt has {prompt_tokens} tokens and {wanted} are to be generated, but the "
        f"context of {model.name} holds {model.max_context_tokens}: "
        "shorten the prompt or lower max_tokens",
        param,
        "context_length_exceeded",
    )


def check_logprobs(param: str, value: int | None, limits: HttpLimits) -> int:
    """How many alternatives to report for a token."""
    return 0 if value is None else _within(param, value, 0, limits.max_logprobs)


def max_token_ids(model: ModelFacts, limits: HttpLimits) -> int:
    """How many a request may have, over all its prompts."""
    return max(model.max_context_tokens, limits.least_token_ids)


def check_token_ids(param: str, tokens: Sequence[int], model: ModelFacts) -> None:
    if not tokens or (min(tokens) >= 0 and max(tokens) < model.vocab_size):
        return
    place, wrong = next(
        (i, token) for i, token in enumerate(tokens) if not 0 <= token < model.vocab_size
    )
    raise invalid(f"{param}[{place}]", wrong, f"token ids are 0 to {model.vocab_size - 1}")


def _stop_strings(stop: str | list[str] | None, limits: HttpLimits) -> tuple[str, ...]:
    stops = [stop] if isinstance(stop, str) else stop or []
    if len(stops) > limits.max_stop_strings:
        raise ApiError(
            400,
            f"stop has {len(stops)} strings: send at most {limits.max_stop_strings}",
            "stop",
        )
    for place, text in enumerate(stops):
        if not text:
            raise invalid(f"stop[{place}]", text, "a stop string has at least one character")
        if len(text) > limits.max_stop_string_chars:
            raise invalid(
                f"stop[{place}]",
                text,
                f"it has {len(text)} characters, send at most {limits.max_stop_string_chars}",
            )
    return tuple(stops)


def _number(
    param: str,
    value: float | None,
    default: float,
    low: float,
    high: float,
    above: bool = False,
) -> float:
    """A number from ``low`` (or, with ``above``, from just above it) to ``high``."""
    if value is None:
        return default
    if math.isfinite(value) and low <= value <= high and not (above and value == low):
        return value
    least = f"above {low:g}" if above else f"at least {low:g}"
    raise invalid(param, value, f"it must be {least} and at most {high:g}")


def _within(param: str, value: Any, low: int, high: int | None) -> int:
    if low <= value and (high is None or value <= high):
        return int(value)
    most = "" if high is None else f" and at most {high}"
    raise invalid(param, value, f"it must be at least {low}{most}")
