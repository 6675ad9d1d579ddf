"""A model's own sampling settings, for requests that do not say (``generation_config.json``).

The fields that count are vLLM's choice. ``do_sample`` is not among them: a file that is to have a
model decode greedily says ``temperature`` 0.
"""

import json
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from splitwise.engine.errors import ModelError
from splitwise.engine.sampling import Probability

FILE: Final = "generation_config.json"
OWN, NONE = "auto", ("none", "vllm")
"""What ``--generation-config`` may say beside a folder: the model's own, or none (vLLM's word for
it is its own name)."""
_REMEDY: Final = "correct it, or start with --generation-config none"


class GenerationDefaults(msgspec.Struct, frozen=True, omit_defaults=True):
    """Settings of requests that do not say; units and meaning are those of ``SamplingParams``."""

    temperature: Annotated[float, msgspec.Meta(ge=0, le=2)] = 1.0
    top_k: Annotated[int, msgspec.Meta(ge=-1, le=2**31 - 1)] = 0
    """0 or -1 means all tokens."""
    top_p: Annotated[float, msgspec.Meta(gt=0, le=1)] = 1.0
    min_p: Probability = 0.0
    repetition_penalty: Annotated[float, msgspec.Meta(gt=0, le=100)] = 1.0
    max_new_tokens: Annotated[int, msgspec.Meta(ge=1)] | None = None
    """None leaves it to the kind of request."""


def read_generation_defaults(model: Path, chosen: str = OWN) -> GenerationDefaults:
    """Those of the folder ``model``, or what ``--generation-config`` has ``chosen`` instead.

    Raises:
        ModelError: the folder that was chosen has no such file, or a value makes no sense.
    """
    if chosen in NONE:
        return GenerationDefaults()
    file = generation_config_file(model, chosen)
    if not file.is_file():
        return GenerationDefaults()
    try:
        content = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{file} cannot be read ({error}); {_REMEDY}") from error
    if not isinstance(content, dict):
        raise ModelError(f"{file} holds no JSON object; {_REMEDY}")
    return GenerationDefaults(**_said(content, file))


def generation_config_file(model: Path, chosen: str = OWN) -> Path:
    """The file that counts; it may be absent only from the model's own folder.

    Raises:
        ModelError: what was chosen is no folder with such a file.
    """
    if chosen == OWN or chosen in NONE:
        return model / FILE
    folder = Path(chosen).expanduser()
    if not (folder / FILE).is_file():
        raise ModelError(
            f"--generation-config {chosen!r}: there is no {folder / FILE}; "
            f"give auto, none or a folder with a {FILE}"
        )
    return folder / FILE


def _said(content: dict[str, Any], file: Path) -> dict[str, Any]:
    """The fields that count and are not null."""
    said: dict[str, Any] = {}
    for field in msgspec.structs.fields(GenerationDefaults):
        value = content.get(field.name)
        if value is None:
            continue
        try:
            said[field.name] = msgspec.convert(value, field.type)
        except msgspec.ValidationError as error:
            raise ModelError(f"{file}: {field.name} is {value!r}: {error}; {_REMEDY}") from error
    return said
