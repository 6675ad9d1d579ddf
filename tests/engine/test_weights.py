"""Weights that are missing, cut short, too many or of another shape are refused by name."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import save_tiny_model
from transformers import AutoModelForCausalLM

from splitwise.engine.errors import ModelError
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.torch.engine import TorchEngine
from splitwise.engine.weight_files import damage

Tensors = dict[str, torch.Tensor]
BIAS = "model.layers.1.mlp.up_proj.bias"
UP = "model.layers.1.mlp.up_proj.weight"


def load(folder: Path) -> None:
    TorchEngine(ModelFolder(folder, "tiny"), 8 << 20).close()


def change_tensors(folder: Path, change: Callable[[Tensors], Any]) -> None:
    file = folder / "model.safetensors"
    tensors = load_file(file)
    change(tensors)
    save_file(tensors, file, metadata={"format": "pt"})


def change_config(folder: Path, **settings: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))


def save_in_shards(folder: Path) -> list[Path]:
    save_tiny_model("llama", folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="40KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 2
    return shards


@pytest.mark.parametrize(
    ("kind", "change", "reason"),
    [
        ("llama", lambda t: t.pop(UP), f"lack the tensors {UP}"),
        ("llama-tied-biased", lambda t: t.pop(BIAS), f"lack the tensors {BIAS}"),
        ("llama", lambda t: t.pop("lm_head.weight"), "lack the tensors lm_head.weight"),
        (
            "llama-tied-biased",
            lambda t: t.pop("model.embed_tokens.weight"),
            "lack the tensors lm_head.weight, model.embed_tokens.weight",
        ),
        ("llama", lambda t: t.update({UP: torch.zeros(3, 4)}), rf"{UP} \(is \[3, 4\], not"),
        ("llama", lambda t: t.update({BIAS: torch.zeros(80)}), f"no place for the tensors {BIAS}"),
        (
            "llama",
            lambda t: t.update({"lm_head.bias": torch.zeros(97)}),
            "no place for the tensors lm_head.bias",
        ),
        ("qwen3", lambda t: t.pop("model.layers.0.self_attn.q_norm.weight"), "q_norm"),
        ("gpt_neox", lambda t: t.pop("gpt_neox.layers.2.attention.dense.bias"), "dense.bias"),
        ("opt", lambda t: t.pop("model.decoder.embed_positions.weight"), "embed_positions"),
    ],
)
def test_tensors_that_do_not_fit_are_named(
    tmp_path: Path, kind: str, change: Callable[[Tensors], Any], reason: str
) -> None:
    save_tiny_model(kind, tmp_path)
    load(tmp_path)  # as it stands it is fine
    change_tensors(tmp_path, change)
    with pytest.raises(ModelError, match=f"'tiny'.*{reason}"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("kind", "settings", "reason"),
    [
        ("llama", {"num_hidden_layers": 2}, r"no place .*model\.layers\.2\."),
        ("llama", {"num_hidden_layers": 4}, r"lack .*model\.layers\.3\."),
        ("llama", {"vocab_size": 120}, "other shapes: lm_head.weight"),
        ("llama-tied-biased", {"tie_word_embeddings": False}, "lack .*lm_head.weight"),
        ("llama-tied-biased", {"mlp_bias": False}, r"no place .*bias"),
        ("llama", {"attention_bias": True}, r"lack .*bias"),
    ],
)
def test_a_config_of_another_model_is_refused(
    tmp_path: Path, kind: str, settings: dict[str, Any], reason: str
) -> None:
    save_tiny_model(kind, tmp_path)
    change_config(tmp_path, **settings)
    with pytest.raises(ModelError, match=f"'tiny'.*{reason}"):
        load(tmp_path)


def test_tensors_of_other_parts_are_let_lie(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    others = {"vision_tower.x.weight": torch.zeros(2), "model.mtp.0.weight": torch.zeros(3)}
    # as old checkpoints have it
    others["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(6)
    change_tensors(tmp_path, lambda t: t.update(others))
    load(tmp_path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    save_tiny_model("llama", tmp_path)
    change_tensors(tmp_path, lambda t: t[UP][3].fill_(value))
    with pytest.raises(ModelError, match=r"computes no numbers in torch\.float32"):
        load(tmp_path)


def test_masks_of_old_checkpoints_are_let_lie(tmp_path: Path) -> None:
    save_tiny_model("gpt_neox", tmp_path)
    layer = "gpt_neox.layers.0.attention"
    masks = {f"{layer}.bias": torch.ones(1, 1, 8, 8), f"{layer}.masked_bias": torch.tensor(-1e9)}
    change_tensors(tmp_path, lambda t: t.update(masks))
    load(tmp_path)
    change_tensors(tmp_path, lambda t: t.update({f"{layer}.dense.extra": torch.ones(2)}))
    with pytest.raises(ModelError, match=r"dense\.extra"):
        load(tmp_path)


def test_a_head_beside_tied_embeddings_is_taken_if_it_is_the_same(tmp_path: Path) -> None:
    save_tiny_model("llama-tied-biased", tmp_path)
    change_tensors(
        tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()})
    )
    load(tmp_path)


def test_files_cut_short_are_named(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    for kept, reason in (
        (len(whole) - 1, r"model\.safetensors has \d+ bytes of \d+; cut off are .*weight"),
        (len(whole) // 2, "cut off are .*weight"),
        (300, "no header"),
        (3, "no header"),
        (0, "no header"),
    ):
        file.write_bytes(whole[:kept])
        with pytest.raises(ModelError, match=reason):
            load(tmp_path)
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    with pytest.raises(ModelError, match=r"model\.safetensors is no whole safetensors file"):
        load(tmp_path)
    file.unlink()
    with pytest.raises(ModelError, match=r"none of model\.safetensors"):
        load(tmp_path)


def test_a_shard_that_is_not_there_is_named(tmp_path: Path) -> None:
    shards = save_in_shards(tmp_path)
    load(tmp_path)
    lost = shards[1].rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match=rf"index\.json names {shards[1].name}, which is not"):
        load(tmp_path)
    whole = lost.read_bytes()
    shards[1].write_bytes(whole[:-10])
    with pytest.raises(ModelError, match=rf"{shards[1].name} has \d+ bytes of"):
        load(tmp_path)
    shards[1].write_bytes(shards[0].read_bytes())
    with pytest.raises(ModelError, match=rf"{shards[1].name} lacks .*which the index says"):
        load(tmp_path)
    shards[1].write_bytes(whole)
    (tmp_path / "model.safetensors.index.json").unlink()
    with pytest.raises(ModelError, match=f"of weights it has only {shards[0].name}"):
        load(tmp_path)


def test_an_index_without_a_tensor_is_refused(tmp_path: Path) -> None:
    save_in_shards(tmp_path)
    file = tmp_path / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    shard = index["weight_map"][UP]
    index["weight_map"] = {k: v for k, v in index["weight_map"].items() if v != shard}
    file.write_text(json.dumps(index))
    with pytest.raises(ModelError, match="lack the tensors"):
        load(tmp_path)
    for text in ("{}", "[]", '{"weight_map": {}}', "not json"):
        file.write_text(text)
        with pytest.raises(ModelError, match=r"index\.json cannot be read"):
            load(tmp_path)


def test_pickled_weights_are_looked_at_too(tmp_path: Path) -> None:
    save_tiny_model("llama", tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    file.unlink()
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    load(tmp_path)
    tensors.pop(UP)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    with pytest.raises(ModelError, match=f"lack the tensors {UP}"):
        load(tmp_path)
    (tmp_path / "pytorch_model.bin").write_bytes(b"cut")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(tmp_path)


def test_only_headers_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_in_shards(tmp_path)
    assert damage(tmp_path) is None
    monkeypatch.setattr(Path, "read_bytes", lambda self: pytest.fail(f"{self} was read whole"))
    assert damage(tmp_path) is None
