"""Reads one GGUF file and writes a Hugging Face folder; the child process of ``gguf``.

1. The file is opened. One that is cut short, or one part of several, is refused.
2. transformers reads configuration, tokenizer and weights, all of them or none (``weights``).
3. What transformers' reader leaves out is made good: how positions are rotated, a window, the
   tokens that end a turn, the sampling settings. A tensor that nothing reads is refused.
4. The folder is written, down to the disk: a crash leaves no file that is there but empty.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from gguf import GGUFReader

from splitwise.engine.errors import ModelError
from splitwise.engine.gguf_rotation import ROTATION_TENSORS, rotation_of
from splitwise.engine.weight_files import some

_END_TOKENS = ("eos", "eot", "eom")
_SAMPLING = {
    "temp": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "penalty_repeat": "repetition_penalty",
}
"""GGUF's names (``general.sampling.*``) and those of generation_config.json."""


def convert(source: Path, folder: Path) -> None:
    """Write ``folder``.

    Raises:
        ModelError: the file is not whole, or holds what would be computed wrongly.
    """
    fields, tensors = _open(source)
    model, unread = _read(source)
    if lost := unread - ROTATION_TENSORS:
        raise ModelError(f"nothing here reads its tensors {some(lost)}")
    _complete(model.config, fields, tensors)
    model.save_pretrained(folder)
    _save_tokenizer(source, folder)
    _add_generation_settings(folder / "generation_config.json", fields, model.config.vocab_size)
    _write_through(folder)


def _open(source: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The file's fields but for lists, and its tensors, by name."""
    try:
        reader = GGUFReader(source)
    except (ValueError, IndexError, KeyError, OSError) as error:
        raise ModelError(f"it is damaged or cut short ({error}); download it again") from error
    fields = {
        name: field.contents() for name, field in reader.fields.items() if len(field.data) == 1
    }
    if (count := fields.get("split.count", 1)) > 1:
        raise ModelError(
            f"it is part {fields.get('split.no', 0) + 1} of {count}; join the parts with "
            "llama.cpp's `llama-gguf-split --merge` and give the file that this makes"
        )
    return fields, {tensor.name: tensor for tensor in reader.tensors}


def _read(source: Path) -> tuple[Any, set[str]]:
    """The model, in float32, and the names of the tensors that were not read into it."""
    import torch
    from transformers import AutoModelForCausalLM, GgufConfig
    from transformers.modeling_gguf_pytorch_utils import (
        TENSOR_PROCESSORS,
        TensorProcessor,
        get_gguf_hf_weights_map,
    )

    from splitwise.engine.torch.weights import read_whole

    model = read_whole(
        source.name,
        lambda: AutoModelForCausalLM.from_pretrained(
            source.parent,
            gguf_file=source.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        ),
    )
    reader = GGUFReader(source)
    architecture = reader.fields["general.architecture"].contents()
    processor = TENSOR_PROCESSORS.get(architecture, TensorProcessor)(config=model.config.to_dict())
    read = get_gguf_hf_weights_map(model, processor)
    # The tensors of experts go by their name without the last part.
    return model, {t.name for t in reader.tensors if not {t.name, _stem(t.name)} & read.keys()}


def _stem(tensor: str) -> str:
    return tensor.rpartition(".")[0]


def _complete(config: Any, fields: dict[str, Any], tensors: dict[str, Any]) -> None:
    architecture = fields["general.architecture"]
    if (rotation := rotation_of(fields, tensors)) is not None:
        config.rope_parameters = (config.rope_parameters or {}) | rotation
        original = rotation.get("original_max_position_embeddings")
        if hasattr(config, "original_max_position_embeddings"):
            config.original_max_position_embeddings = original
    window = fields.get(f"{architecture}.attention.sliding_window")
    if window and getattr(config, "sliding_window", None) is None:
        config.sliding_window = window  # whoever serves the folder decides what it makes of it


def _save_tokenizer(source: Path, folder: Path) -> None:
    from transformers import AutoTokenizer

    AutoTokenizer.from_pretrained(source.parent, gguf_file=source.name).save_pretrained(folder)


def _add_generation_settings(file: Path, fields: dict[str, Any], vocab_size: int) -> None:
    ends = {fields.get(f"tokenizer.ggml.{name}_token_id") for name in _END_TOKENS}
    ids = sorted(token for token in ends if token is not None and 0 <= token < vocab_size)
    settings = {
        ours: fields[f"general.sampling.{theirs}"]
        for theirs, ours in _SAMPLING.items()
        if f"general.sampling.{theirs}" in fields
    }
    known = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if ids:
        known["eos_token_id"] = ids
    file.write_text(json.dumps(known | settings, indent=2), "utf-8")


def _write_through(folder: Path) -> None:
    for path in [*folder.iterdir(), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


if __name__ == "__main__":
    try:
        convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except ModelError as error:
        sys.exit(str(error))
