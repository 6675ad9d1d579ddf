"""The optional library's predictions: a stand-in for the arithmetic, the library where it is."""

import importlib.util
import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from splitwise.hardware import HardwareError, load_profile, predicted
from splitwise.hardware.roofline_check import LLAMA2_70B

LLAMA_70B = LLAMA2_70B | {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "torch_dtype": "float16",
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
}


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_70B))
    return str(tmp_path)


def test_two_contexts_give_the_slope(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    """Prompts of 0.1 ms a token; decodes of 5 ms, 1 ms a request and 1 us a token of context."""
    handle = SimpleNamespace(
        predict_prefill_latency=lambda batch, tokens: 0.1 * tokens,
        predict_decode_latency=lambda batch, context, osl: 5 + batch + batch * context / 1e3,
    )
    kind = SimpleNamespace(compile=lambda *names, tp_size: handle)
    monkeypatch.setattr(predicted, "_library", lambda: SimpleNamespace(EngineHandle=kind))
    times = load_profile("aiconfigurator", "8xh100", folder)
    assert float(times.prompt_time_s(1500)) == pytest.approx(0.150)
    assert times.decode_time_s(3, 3000) == pytest.approx(0.008 + 0.003)
    assert times.dollars_per_hour == 38


def test_missing_library_is_named(monkeypatch: pytest.MonkeyPatch, folder: str) -> None:
    monkeypatch.setattr(predicted, "MODULES", ("no_such_library_here",))
    with pytest.raises(HardwareError, match=r"splitwise-llm\[predict\]"):
        load_profile("aiconfigurator", "8xh100", folder)


@pytest.mark.skipif(
    importlib.util.find_spec("aiconfigurator_core") is None,
    reason="aiconfigurator-core is not installed",
)
def test_library_is_near_the_published_prompt_times(folder: str) -> None:
    """Llama2-70B, 1500 tokens on A100: 185 ms in the paper."""
    times = load_profile("aiconfigurator", "8xa100", folder)
    assert float(times.prompt_time_s(1500)) == pytest.approx(0.185, rel=0.15)
