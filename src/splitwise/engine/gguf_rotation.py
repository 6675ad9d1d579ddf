"""How a GGUF file rotates positions, in Hugging Face's terms; transformers' reader leaves it out.

llama.cpp divides each frequency by a factor, where the file has a tensor of them. That is longrope
with such factors. (Llama 3's own scaling comes as such a tensor, the same for every length.)
"""

from typing import Any, Final

from splitwise.engine.errors import ModelError

_ONE, _SHORT, _LONG = (
    "rope_freqs.weight",
    "rope_factors_short.weight",
    "rope_factors_long.weight",
)
ROTATION_TENSORS: Final = {_ONE, _SHORT, _LONG}


def rotation_of(fields: dict[str, Any], tensors: dict[str, Any]) -> dict[str, Any] | None:
    """What ``rope_parameters`` must say beside the base; None where the file says nothing.

    Raises:
        ModelError: the file rotates in a way that is not known here.
    """
    architecture = fields["general.architecture"]
    scaling = f"{architecture}.rope.scaling"
    context = int(fields[f"{architecture}.context_length"]) if tensors else 0
    original = int(fields.get(f"{scaling}.original_context_length", context))
    kind = fields.get(f"{scaling}.type", "none")
    factor = fields.get(f"{scaling}.factor") or fields.get(f"{architecture}.rope.scale_linear")
    if _SHORT in tensors and _LONG in tensors:
        long = _longrope(tensors[_SHORT], tensors[_LONG], original) | {"factor": context / original}
        attention = fields.get(f"{scaling}.attn_factor")
        return long if attention is None else long | {"attention_factor": attention}
    if _ONE in tensors:
        one = tensors[_ONE]
        return _longrope(one, one, context) | {"factor": 1.0, "attention_factor": 1.0}
    if kind == "yarn" and factor and f"{scaling}.yarn_log_multiplier" not in fields:
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": original,
        }
    if kind in ("linear", "none") and factor not in (None, 0, 1):
        return {"rope_type": "linear", "factor": factor}
    if kind in ("none", "linear"):
        return None
    raise ModelError(f"it rotates positions by {kind!r} with settings that are not known here")


def _longrope(short: Any, long: Any, original: int) -> dict[str, Any]:
    return {
        "rope_type": "longrope",
        "short_factor": short.data.astype(float).ravel().tolist(),
        "long_factor": long.data.astype(float).ravel().tolist(),
        "original_max_position_embeddings": original,
    }
