"""Finding, converting and refusing models."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import VOCABULARY, save_tiny_model, tiny_config
from transformers import AutoModelForCausalLM

from splitwise.engine import model_files
from splitwise.engine.errors import ModelError
from splitwise.engine.gguf import cache_folder
from splitwise.engine.model_files import (
    ModelFolder,
    read_model_info,
    read_stop_token_ids,
    resolve_model,
)
from splitwise.engine.torch.engine import TorchEngine

MakeTiny = Callable[[str], ModelFolder]


def test_cache_folder_follows_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPLITWISE_CACHE", "/a")
    assert cache_folder() == Path("/a")
    monkeypatch.delenv("SPLITWISE_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert cache_folder() == Path("/b/splitwise")


def test_a_folder_is_read_without_torch(tiny_model: MakeTiny) -> None:
    code = (
        "import sys\n"
        "from splitwise.engine.model_files import *\n"
        "f = resolve_model(sys.argv[1])\n"
        "i = read_model_info(f)\n"
        "print(f.name, i.layers, i.kv_heads, i.head_dim, i.vocab_size, i.max_context_tokens,\n"
        "      i.dtype, read_stop_token_ids(f), 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tiny_model("qwen3").path)],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
        env=os.environ | {"CUDA_VISIBLE_DEVICES": ""},
    )
    name = tiny_model("qwen3").path.name
    assert done.stdout.strip() == f"{name} 3 2 32 {VOCABULARY} 512 float32 [0] False"


def test_stop_tokens_come_from_four_files(tmp_path: Path) -> None:
    files: dict[str, Any] = {
        "config.json": {"eos_token_id": 5},
        "generation_config.json": {"eos_token_id": [7, 5]},
        "tokenizer_config.json": {"eos_token": {"content": "<end>"}},
        "tokenizer.json": {
            "added_tokens": [
                {"id": 9, "content": "<end>"},
                {"id": 1, "content": "x"},
                {"id": 11, "content": "<over>"},
            ]
        },
        "special_tokens_map.json": {"eos_token": "<over>"},
    }
    for name, content in files.items():
        (tmp_path / name).write_text(json.dumps(content))
    folder = ModelFolder(tmp_path, "m")
    assert read_stop_token_ids(folder) == [5, 7, 9, 11]
    # Tokens that were not added but are pieces like others, by name or in a list with scores.
    scored = [["a", 0.0]] * 9 + [["<end>", -1.0]]
    for vocabulary, ids in (({"<end>": 9, "<over>": 11}, [5, 7, 9, 11]), (scored, [5, 7, 9])):
        (tmp_path / "tokenizer.json").write_text(json.dumps({"model": {"vocab": vocabulary}}))
        assert read_stop_token_ids(folder) == ids


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_encoder_decoder": True}, "not a decoder-only"),
        ({"architectures": ["BertForMaskedLM"]}, "not a decoder-only"),
        ({"architectures": None}, "not a decoder-only"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised \\(gptq\\)"),
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"sliding_window": 128}, "sliding_window=128"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "sliding_attention"),
        ({"layer_types": ["linear_attention"]}, "linear_attention"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
    ],
)
def test_config_is_refused_with_the_reason(
    tmp_path: Path, change: dict[str, Any], reason: str
) -> None:
    config = tiny_config("mistral", {"sliding_window": None}).to_dict()
    config |= {"architectures": ["MistralForCausalLM"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    read_model_info(ModelFolder(tmp_path, "m"))  # as it stands it is fine
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(ModelError, match=f"'m'.*{reason}"):
        read_model_info(ModelFolder(tmp_path, "m"))


def test_a_window_as_long_as_the_context_is_none(tmp_path: Path) -> None:
    config = tiny_config("mistral", {"sliding_window": 512}).to_dict()
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["XForCausalLM"]}))
    assert read_model_info(ModelFolder(tmp_path, "m")).max_context_tokens == 512


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("/no/such/folder", "not a folder"),
        ("./nothing", "not a folder"),
        ("nameonly", "not a folder"),
        ("missing.gguf", "no such file"),
    ],
)
def test_what_does_not_exist_is_refused(spec: str, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        resolve_model(spec)


def test_an_unreachable_hub_is_said_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ModelError, match=r"nobody/nothing.* the network"):
        resolve_model("nobody/nothing")


HUB = {"config.json": "{}", "model.safetensors": "", "tokenizer.json": "{}"}


@pytest.mark.parametrize(
    ("there", "reason"),
    [
        ({"tokenizer.json", "config.json"}, r"no weights as \*\.safetensors .*GGUF"),
        ({"config.json", "model.safetensors"}, r"no tokenizer\.json; .*AutoTokenizer"),
        ({"model.safetensors", "tokenizer.json"}, r"no config\.json"),
        (set(), r"no config\.json"),
    ],
)
def test_a_hub_model_without_what_is_needed_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: set[str], reason: str
) -> None:
    snapshot = tmp_path / "models--owner--some-name" / "snapshots" / "0f3a"
    snapshot.mkdir(parents=True)
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(snapshot))
    for name in there:
        (snapshot / name).write_text(HUB[name])
    with pytest.raises(ModelError, match=f"'owner/some-name': its files on the hub have {reason}"):
        resolve_model("owner/some-name")
    for name, text in HUB.items():
        (snapshot / name).write_text(text)
    assert resolve_model("owner/some-name") == ModelFolder(snapshot, "owner/some-name")


def test_a_hub_snapshot_is_served_under_the_hubs_name(tmp_path: Path) -> None:
    snapshot = tmp_path / "hub" / "models--owner--some-name" / "snapshots" / "0f3a1b"
    plain = tmp_path / "snapshots" / "my-model"
    for folder in (snapshot, plain):
        folder.mkdir(parents=True)
        (folder / "config.json").write_text("{}")
    link = tmp_path / "link"
    link.symlink_to(snapshot)
    for given in (snapshot, link, f"{snapshot}/"):
        assert resolve_model(str(given)) == ModelFolder(snapshot, "owner/some-name")
    assert resolve_model(str(plain)).name == "my-model"


def test_a_folder_without_config_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{ not json")
    with pytest.raises(ModelError, match=r"config\.json cannot be read"):
        read_model_info(ModelFolder(tmp_path, "m"))


def test_a_missing_default_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_files, "_DEFAULT_PACKAGE", "no_such_package")
    with pytest.raises(ModelError, match="pip install"):
        resolve_model(None)


@pytest.mark.parametrize(
    ("model_type", "settings", "reason"),
    [
        # transformers' own code of the family does not go through the attention interface
        ("bloom", {"n_layer": 2, "n_head": 4}, "attention interface"),
        # caps attention scores, which shows only in what it computes
        (
            "gemma2",
            {
                "layer_types": ["full_attention"] * 3,
                "attn_logit_softcapping": 0.5,
                "head_dim": 12,
                "sliding_window": 512,
            },
            "something else with a paged cache",
        ),
    ],
)
def test_the_engine_refuses_what_it_would_compute_wrongly(
    tmp_path: Path, model_type: str, settings: dict[str, Any], reason: str
) -> None:
    config = tiny_config(model_type, settings)
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    written = json.loads((tmp_path / "config.json").read_text())
    written.setdefault("max_position_embeddings", 512)
    (tmp_path / "config.json").write_text(json.dumps(written))
    with pytest.raises(ModelError, match=reason):
        TorchEngine(ModelFolder(tmp_path, "m"), 8 << 20)


def test_saving_again_changes_nothing(tmp_path: Path) -> None:
    """The tiny models of these tests are the same in every run."""
    for name in ("a", "b"):
        save_tiny_model("llama", tmp_path / name)
    a, b = ((tmp_path / n / "model.safetensors").read_bytes() for n in "ab")
    assert a == b
