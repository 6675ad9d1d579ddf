"""GGUF files: converted once and whole, with all that they say, or refused by name."""

import json
import multiprocessing
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from tiny_gguf import CONTEXT, HEADS, HIDDEN, KV_HEADS, LAYERS, TOKENS, write_tiny_gguf
from transformers import AutoModelForCausalLM

from splitwise.engine.errors import ModelError
from splitwise.engine.gguf_conversion import convert
from splitwise.engine.model_files import (
    ModelFolder,
    read_model_info,
    read_stop_token_ids,
    resolve_model,
)

ROTATED = HIDDEN // HEADS // 2


@pytest.fixture
def tiny_gguf(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "Tiny-Llama.gguf")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SPLITWISE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def nothing_is_kept(cache: Path) -> bool:
    return not [entry for entry in (cache / "models").iterdir() if entry.is_dir()]


def converted(file: Path) -> ModelFolder:
    """What the child process writes, without its start."""
    folder = file.with_suffix(".folder")
    convert(file, folder)
    return ModelFolder(folder, file.stem)


def _resolve(spec: str, barrier: Any, answers: Any) -> None:
    barrier.wait(timeout=60)
    answers.put(str(resolve_model(spec).path))


def test_two_processes_convert_a_gguf_once(tiny_gguf: Path, own_cache: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, answers = context.Barrier(2), context.Queue()
    both = [
        context.Process(target=_resolve, args=(str(tiny_gguf), barrier, answers)) for _ in range(2)
    ]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=120)
    assert [process.exitcode for process in both] == [0, 0]
    (path,) = {answers.get(timeout=10) for _ in both}
    folders = [entry.name for entry in (own_cache / "models").iterdir() if entry.is_dir()]
    assert folders == [Path(path).name]  # one, and nothing half-written beside it

    folder = ModelFolder(Path(path), "Tiny-Llama")
    config = json.loads((folder.path / "config.json").read_text())
    assert "quantization_config" not in config
    assert config["rope_parameters"]["rope_type"] == "default"
    assert read_stop_token_ids(folder) == [0]
    assert (folder.path / "chat_template.jinja").exists()
    weights = AutoModelForCausalLM.from_pretrained(folder.path).lm_head.weight
    assert weights.dtype == torch.float32
    stored = gguf.GGUFReader(str(tiny_gguf)).tensors[-1]
    np.testing.assert_array_equal(weights.detach().numpy(), stored.data)


def test_a_half_written_cache_is_replaced(tiny_gguf: Path) -> None:
    whole = resolve_model(str(tiny_gguf)).path
    config = (whole / "config.json").read_text()
    leftover = whole.with_name(f"{whole.name}.4242.partial")
    whole.rename(leftover)  # as if the process that wrote it had been killed before it finished
    (leftover / "model.safetensors").write_bytes(b"half")
    again = resolve_model(str(tiny_gguf)).path
    assert again == whole
    assert (again / "config.json").read_text() == config
    assert (again / "model.safetensors").stat().st_size > 1000
    assert not leftover.exists()
    info = read_model_info(ModelFolder(again, "x"))
    assert (info.layers, info.kv_heads, info.head_dim) == (LAYERS, KV_HEADS, HIDDEN // HEADS)


def test_a_damaged_cache_is_made_anew(tiny_gguf: Path) -> None:
    file = resolve_model(str(tiny_gguf)).path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-5])
    assert resolve_model(str(tiny_gguf)).path == file.parent
    assert file.read_bytes() == whole


def test_a_broken_gguf_is_refused(tmp_path: Path, own_cache: Path) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(b"GGUF" + b"\x00" * 100)
    with pytest.raises(ModelError, match=r"broken\.gguf cannot be converted: it is damaged"):
        resolve_model(str(broken))
    assert nothing_is_kept(own_cache)


@pytest.mark.parametrize("lost_bytes", [1, 5000, 30_000])
def test_a_gguf_cut_short_is_refused(tiny_gguf: Path, lost_bytes: int) -> None:
    whole = tiny_gguf.read_bytes()
    tiny_gguf.write_bytes(whole[:-lost_bytes])
    with pytest.raises(ModelError, match="damaged or cut short"):
        converted(tiny_gguf)


@pytest.mark.parametrize("part", [0, 1])
def test_a_part_of_a_split_gguf_is_refused(tmp_path: Path, own_cache: Path, part: int) -> None:
    """The first part has the metadata of all, and looks like a whole file."""

    def split(writer: gguf.GGUFWriter) -> None:
        writer.add_uint16("split.no", part)
        writer.add_uint16("split.count", 2)
        writer.add_int32("split.tensors.count", 21)

    first = write_tiny_gguf(
        tmp_path / f"Tiny-0000{part + 1}-of-00002.gguf",
        without=[f"blk.1.{name}.weight" for name in ("ffn_up", "ffn_down", "attn_q")],
        settings=split,
    )
    with pytest.raises(ModelError, match=f"part {part + 1} of 2; join .*gguf-split --merge"):
        resolve_model(str(first))
    assert nothing_is_kept(own_cache)


def test_missing_tensors_are_named(tmp_path: Path) -> None:
    file = write_tiny_gguf(tmp_path / "less.gguf", without=["blk.1.ffn_up.weight"])
    with pytest.raises(ModelError, match=r"lack the tensors model\.layers\.1\.mlp\.up_proj"):
        converted(file)


def test_tensors_that_nothing_reads_are_named(tmp_path: Path) -> None:
    extra = {"blk.0.attn_q.bias": np.ones(HIDDEN, np.float32)}
    file = write_tiny_gguf(tmp_path / "more.gguf", extra=extra)
    with pytest.raises(ModelError, match=r"nothing here reads its tensors blk\.0\.attn_q\.bias"):
        converted(file)


def test_all_its_ends_are_stop_tokens(tmp_path: Path) -> None:
    def ends(writer: gguf.GGUFWriter) -> None:
        writer.add_eot_token_id(len(TOKENS) - 1)
        writer.add_uint32("tokenizer.ggml.eom_token_id", 7)

    file = write_tiny_gguf(tmp_path / "chat.gguf", settings=ends)
    assert read_stop_token_ids(converted(file)) == [0, 7, len(TOKENS) - 1]
    # As some converters say that there is none.
    none = write_tiny_gguf(
        tmp_path / "none.gguf", settings=lambda writer: writer.add_eot_token_id(2**32 - 1)
    )
    assert read_stop_token_ids(converted(none)) == [0]


def test_its_sampling_settings_are_kept(tmp_path: Path) -> None:
    def sampling(writer: gguf.GGUFWriter) -> None:
        writer.add_float32("general.sampling.temp", 0.5)
        writer.add_int32("general.sampling.top_k", 20)
        writer.add_float32("general.sampling.penalty_repeat", 1.5)

    folder = converted(write_tiny_gguf(tmp_path / "set.gguf", settings=sampling)).path
    written = json.loads((folder / "generation_config.json").read_text())
    assert written["temperature"] == 0.5
    assert written["top_k"] == 20
    assert written["repetition_penalty"] == 1.5
    assert written["eos_token_id"] == [0]


def frequencies(file: Path) -> tuple[torch.Tensor, float]:
    """Those of the converted model, and what its angles are scaled by."""
    rotary = AutoModelForCausalLM.from_pretrained(converted(file).path).model.rotary_emb
    return rotary.inv_freq, rotary.attention_scaling


PLAIN = 10000.0 ** -(torch.arange(ROTATED) / ROTATED)


def test_frequency_factors_are_divided_by(tmp_path: Path) -> None:
    """As Llama 3.1's files have them."""
    factors = np.linspace(1, 8, ROTATED, dtype=np.float32)
    file = write_tiny_gguf(tmp_path / "l3.gguf", extra={"rope_freqs.weight": factors})
    got, scale = frequencies(file)
    torch.testing.assert_close(got, PLAIN / torch.from_numpy(factors))
    assert scale == 1.0


def test_short_and_long_factors_are_longrope(tmp_path: Path) -> None:
    """As Phi-3's files have them."""
    short, long = (np.linspace(1, end, ROTATED, dtype=np.float32) for end in (2, 9))

    def scaling(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_orig_ctx_len(CONTEXT // 4)
        writer.add_rope_scaling_attn_factors(1.25)

    file = write_tiny_gguf(
        tmp_path / "phi.gguf",
        extra={"rope_factors_short.weight": short, "rope_factors_long.weight": long},
        settings=scaling,
    )
    got, scale = frequencies(file)
    torch.testing.assert_close(got, PLAIN / torch.from_numpy(short))
    assert scale == 1.25
    config = json.loads((converted(file).path / "config.json").read_text())
    rope = config["rope_parameters"]
    assert rope["rope_type"] == "longrope"
    assert rope["original_max_position_embeddings"] == CONTEXT // 4
    assert rope["long_factor"] == pytest.approx(long.tolist())


def test_linear_scaling_is_kept(tmp_path: Path) -> None:
    def scaling(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(4.0)

    got, _ = frequencies(write_tiny_gguf(tmp_path / "linear.gguf", settings=scaling))
    torch.testing.assert_close(got, PLAIN / 4)


def test_yarn_is_kept(tmp_path: Path) -> None:
    def scaling(writer: gguf.GGUFWriter) -> None:
        writer.add_rope_scaling_type(gguf.RopeScalingType.YARN)
        writer.add_rope_scaling_factor(4.0)
        writer.add_rope_scaling_orig_ctx_len(CONTEXT // 4)

    got, scale = frequencies(write_tiny_gguf(tmp_path / "yarn.gguf", settings=scaling))
    assert scale == pytest.approx(1 + 0.1 * np.log(4))  # Peng et al., YaRN, 2023
    assert got[0] == pytest.approx(1.0)
    assert got[-1] == pytest.approx(float(PLAIN[-1]) / 4)


def test_an_unknown_rotation_is_refused(tmp_path: Path) -> None:
    file = write_tiny_gguf(
        tmp_path / "odd.gguf",
        settings=lambda writer: writer.add_string("llama.rope.scaling.type", "spiral"),
    )
    with pytest.raises(ModelError, match="rotates positions by 'spiral'"):
        converted(file)


def test_a_window_is_refused(tmp_path: Path) -> None:
    file = write_tiny_gguf(
        tmp_path / "window.gguf", settings=lambda writer: writer.add_sliding_window(64)
    )
    with pytest.raises(ModelError, match="sliding_window=64"):
        read_model_info(converted(file))
