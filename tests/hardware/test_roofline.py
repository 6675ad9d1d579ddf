"""Arithmetic on data sheets, by hand; and how far it is from what was measured."""

import json
from pathlib import Path

import numpy as np
import pytest

from splitwise.hardware import HardwareError, load_profile
from splitwise.hardware.gpus import GPUS, Gpu, GpuMachine, parse_machine
from splitwise.hardware.links import link_of, slower
from splitwise.hardware.model_shape import ModelShape, model_shape
from splitwise.hardware.roofline import Efficiency, prompt_seconds, roofline_times
from splitwise.hardware.roofline_check import SHAPES, roofline_errors

TINY = {
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 16,
    "vocab_size": 10,
}


def test_sizes_of_a_gated_model() -> None:
    """A layer: 2 x 64 + 2 x 32 of attention and 3 x 128; embeddings in and out: 2 x 80."""
    shape = model_shape(TINY)
    assert shape.active_parameters == 2 * (192 + 384)
    assert shape.parameters == 2 * (192 + 384) + 160
    assert shape.kv_bytes_per_token == 2 * 2 * 2 * 2 * 2


def test_experts_count_in_memory_and_by_use_in_time() -> None:
    shape = model_shape({**TINY, "num_local_experts": 4, "num_experts_per_tok": 2})
    assert shape.active_parameters == 2 * (192 + 2 * 384)
    assert shape.parameters == 2 * (192 + 4 * 384) + 160


def test_sizes_of_the_papers_models() -> None:
    assert SHAPES["llama2-70b"].parameters == pytest.approx(69.0e9, rel=0.01)
    assert SHAPES["llama2-70b"].kv_bytes_per_token == 327_680
    assert SHAPES["bloom-176b"].parameters == pytest.approx(176.2e9, rel=0.01)
    assert SHAPES["bloom-176b"].kv_bytes_per_token == 4_014_080


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"hidden_size": None}, "hidden_size"),
        ({"num_hidden_layers": -1}, "num_hidden_layers is -1"),
        ({"kv_lora_rank": 512}, "kv_lora_rank"),
        ({"dtype": "int3"}, "dtype"),
        ({"quantization_config": {"quant_method": "odd"}}, "bits"),
    ],
)
def test_configs_that_cannot_be_modelled(change: dict[str, object], named: str) -> None:
    with pytest.raises(HardwareError, match=named):
        model_shape({**TINY, **change})


def test_the_longer_of_compute_and_memory_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 parameters of 2 bytes; 1e6 flops and 1e4 bytes a second; no attention to speak of."""
    gpu = Gpu(1e6, 1e9, 1e4, 100.0, 1e12, "infiniband-200", "made up", 1.0)
    shape = ModelShape(1, 1, 0, 1000, 1000, 2.0, 4)
    compute_s, memory_s, nvlink_s = prompt_seconds(shape, gpu, 1, np.array([10.0, 1000.0]))
    assert compute_s.tolist() == pytest.approx([0.02, 2.0])
    assert memory_s.tolist() == pytest.approx([0.2, 0.2])
    assert nvlink_s.tolist() == [0, 0]
    monkeypatch.setitem(GPUS, "slow", gpu)
    times = roofline_times(shape, GpuMachine(1, "slow"), Efficiency(1.0, 1.0, 1.0, 0.5))
    assert times.decode_time_s(1, 100) == pytest.approx(0.2 + 0.5 + 400 / 1e4)
    assert times.kv_capacity_tokens == (10**9 - 2000) // 4


def test_machine_names() -> None:
    assert parse_machine("8xh200@32.5") == GpuMachine(8, "h200", 32.5)
    assert parse_machine("4xa100") == GpuMachine(4, "a100")
    for wrong in ("h100", "0xh100", "8xv100", "8xh100@"):
        with pytest.raises(HardwareError):
            parse_machine(wrong)


def test_roofline_profile_from_a_config(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TINY))
    times = load_profile("roofline", "2xh200@10", str(tmp_path))
    assert (times.gpus, times.dollars_per_hour, times.provisioned_watts) == (2, 10.0, 1400.0)
    with pytest.raises(HardwareError, match="2xh200@32"):
        load_profile("roofline", "2xh200", str(tmp_path))


def test_links() -> None:
    assert link_of("infiniband-400").bytes_per_s == 400e9
    both = slower(link_of("infiniband-400"), link_of("infiniband-200"))
    assert both.transfer_time_s(200e9) == pytest.approx(1.0, abs=1e-4)
    with pytest.raises(HardwareError, match="choose from"):
        link_of("carrier pigeon")


def test_fitted_on_a100_the_roofline_foretells_h100() -> None:
    """What `splitwise hardware check` prints; prompts within the batch limit, H100 unseen."""
    unseen = [
        error
        for error in roofline_errors()
        if error.efficiency == "fitted"
        and error.machine == "dgx-h100"
        and error.what == "prompts <= 2048"
    ]
    assert len(unseen) == 2
    assert all(error.median_error < 0.1 for error in unseen)
