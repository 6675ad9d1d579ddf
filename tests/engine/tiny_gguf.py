"""A two-layer Llama as a GGUF file, with a byte-level tokenizer, and what a test adds to it."""

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import gguf
import numpy as np
from numpy.typing import NDArray

HIDDEN, HEADS, KV_HEADS, LAYERS, INNER, CONTEXT = 32, 4, 2, 2, 64, 256
TOKENS = ["<|end|>", *[chr(c) for c in range(ord("!"), ord("z") + 1)], "Ġ", "Ġa", "<|turn|>"]
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def write_tiny_gguf(
    file: Path,
    without: Collection[str] = (),
    extra: Mapping[str, NDArray[np.float32]] | None = None,
    settings: Callable[[gguf.GGUFWriter], object] = lambda writer: None,
    template: str = TEMPLATE,
) -> Path:
    writer = gguf.GGUFWriter(str(file), "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_rope_freq_base(10000.0)
    writer.add_vocab_size(len(TOKENS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("default")
    writer.add_token_list(TOKENS)
    writer.add_token_types([3, *[1] * (len(TOKENS) - 2), 3])
    writer.add_token_merges(["Ġ a"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(0)
    writer.add_chat_template(template)
    settings(writer)
    tensors = {name: value for name, value in _tensors().items() if name not in without}
    for name, value in (tensors | dict(extra or {})).items():
        writer.add_tensor(name, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _tensors() -> dict[str, NDArray[np.float32]]:
    rng = np.random.default_rng(0)

    def draw(*shape: int) -> NDArray[np.float32]:
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(0.2)

    made = {"token_embd.weight": draw(len(TOKENS), HIDDEN)}
    for i in range(LAYERS):
        made[f"blk.{i}.attn_norm.weight"] = draw(HIDDEN)
        made[f"blk.{i}.ffn_norm.weight"] = draw(HIDDEN)
        made[f"blk.{i}.attn_q.weight"] = draw(HIDDEN, HIDDEN)
        made[f"blk.{i}.attn_k.weight"] = draw(HIDDEN * KV_HEADS // HEADS, HIDDEN)
        made[f"blk.{i}.attn_v.weight"] = draw(HIDDEN * KV_HEADS // HEADS, HIDDEN)
        made[f"blk.{i}.attn_output.weight"] = draw(HIDDEN, HIDDEN)
        made[f"blk.{i}.ffn_gate.weight"] = draw(INNER, HIDDEN)
        made[f"blk.{i}.ffn_up.weight"] = draw(INNER, HIDDEN)
        made[f"blk.{i}.ffn_down.weight"] = draw(HIDDEN, INNER)
    made["output_norm.weight"] = draw(HIDDEN)
    made["output.weight"] = draw(len(TOKENS), HIDDEN)
    return made
