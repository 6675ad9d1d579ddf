"""Reads a model's weights, and refuses what does not belong together.

transformers draws a tensor at random that the files do not have, and lets lie what it has no place
for. Both would be served as answers.
"""

import re
from collections.abc import Callable
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from splitwise.engine.errors import ModelError
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.weight_files import damage, some

_OLD_BUFFERS = re.compile(r"(attn|attention)\.(masked_)?bias$")
"""Causal masks, which GPT-2 and GPT-NeoX once saved."""
_REMEDY = "download the model again, or give config.json the settings that the weights were made by"


def load_weights(folder: ModelFolder, dtype: torch.dtype) -> Any:
    """The model as transformers has it, with every tensor from its files.

    Raises:
        ModelError: files or tensors are missing, cut short, of another shape or too many.
    """
    if found := damage(folder.path):
        raise ModelError(
            f"model {folder.name!r}: in {folder.path}, {found}; download the model again"
        )
    return read_whole(
        folder.name,
        lambda: AutoModelForCausalLM.from_pretrained(
            folder.path, dtype=dtype, output_loading_info=True, ignore_mismatched_sizes=True
        ),
    )


def read_whole(name: str, load: Callable[[], tuple[Any, dict[str, Any]]]) -> Any:
    """The model that ``load`` reads; it gives transformers' loading info, too.

    Raises:
        ModelError: it cannot be read, or the info tells of tensors that do not fit.
    """
    try:
        network, info = load()
    except Exception as error:
        # Files of any content come in here, and transformers has no class of error for it.
        raise ModelError(
            f"model {name!r} cannot be loaded ({type(error).__name__}: {error}); {_REMEDY}"
        ) from error
    if missing := info["missing_keys"]:
        raise ModelError(f"model {name!r}: its files lack the tensors {some(missing)}; {_REMEDY}")
    if mismatched := info["mismatched_keys"]:
        shapes = {f"{n} (is {list(there)}, not {list(want)})" for n, there, want in mismatched}
        raise ModelError(f"model {name!r}: tensors have other shapes: {some(shapes)}; {_REMEDY}")
    if unused := {key for key in info["unexpected_keys"] if _is_of(network, key)}:
        raise ModelError(
            f"model {name!r}: config.json has no place for the tensors {some(unused)}; {_REMEDY}"
        )
    return network


def _is_of(network: Any, key: str) -> bool:
    """Whether a tensor belongs to a part that the network has, such as its layers.

    Others are of parts that a text model is better without: what sees images, or a draft of the
    tokens after next.
    """
    if _OLD_BUFFERS.search(key):
        return False
    prefix = f"{network.base_model_prefix}."
    inner = key.removeprefix(prefix)
    part = inner.split(".")[0]
    owners = (network.base_model,) if key.startswith(prefix) else (network, network.base_model)
    return any(hasattr(owner, part) for owner in owners)
