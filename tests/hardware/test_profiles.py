"""The built-in profiles against arithmetic by hand, and profile files that are wrong."""

import json
from pathlib import Path
from typing import Any

import pytest

from splitwise.hardware import HardwareError, load_profile

BOTH = ["measured", "published-2024"]


@pytest.mark.parametrize(
    ("profile", "model", "tokens"),
    [
        ("published-2024", "bloom-176b", 89_234),
        ("published-2024", "llama2-70b", 210_645),
        ("measured", "bloom-176b", 89_234),
        ("measured", "llama2-70b", (8 * 80 * 2**30 - 135 * 10**9) // 327_680),
    ],
)
def test_cache_capacity(profile: str, model: str, tokens: int) -> None:
    assert load_profile(profile, "dgx-a100", model).kv_capacity_tokens == tokens


@pytest.mark.parametrize(("profile", "ms"), [("measured", 288.0), ("published-2024", 287.467)])
def test_prompts_of_1024_tokens_are_the_median_of_both_batches(profile: str, ms: float) -> None:
    """One prompt of 1024 tokens took 289.2 ms, two of 512 took 286.8; five runs each.

    The public simulator has the median of the ten single runs.
    """
    times = load_profile(profile, "dgx-a100", "bloom-176b")
    at_1024_s = float(times.prompt_time_s(1024))
    assert at_1024_s == pytest.approx(ms / 1e3, rel=1e-5)
    halfway = at_1024_s + (float(times.prompt_time_s(2048)) - at_1024_s) / 2
    assert float(times.prompt_time_s(1536)) == pytest.approx(halfway)


@pytest.mark.parametrize(("batch", "ms"), [(1, 48.76), (8, 52.95), (32, 65.38), (64, 96.58)])
def test_measured_decodes_follow_the_measured_batches(batch: int, ms: float) -> None:
    """Prompts of 512 tokens and 128 tokens out: 576 tokens of context on average."""
    times = load_profile("measured", "dgx-a100", "bloom-176b")
    assert times.decode_time_s(batch, batch * 576) == pytest.approx(ms / 1e3)


def test_measured_decodes_beyond_the_last_batch() -> None:
    times = load_profile("measured", "dgx-a100", "bloom-176b")
    step = (0.09658 - 0.06538) / 32
    assert times.decode_time_s(96, 96 * 576) == pytest.approx(0.09658 + 32 * step)


@pytest.mark.parametrize("machine", ["dgx-a100", "dgx-h100", "dgx-h100-capped"])
@pytest.mark.parametrize("model", ["llama2-70b", "bloom-176b"])
def test_more_context_and_more_decodes_take_longer(machine: str, model: str) -> None:
    times = load_profile("measured", machine, model)
    assert times.decode_time_s(8, 8000) >= times.decode_time_s(8, 4000)
    assert (times.decode_s[8:513:8][1:] >= times.decode_s[8:513:8][:-1]).all()


def test_published_decodes_are_looked_up_on_the_prompt_axis() -> None:
    """47.61 ms at 128 and 47.71 at 256 make 47.56 at 64, whatever the context."""
    times = load_profile("published-2024", "dgx-a100", "bloom-176b")
    assert times.decode_time_s(64, 0) == pytest.approx(0.04756, rel=2e-4)
    assert times.decode_time_s(64, 50_000) == pytest.approx(0.04756, rel=2e-4)


def test_published_links_are_all_alike() -> None:
    times = load_profile("published-2024", "dgx-h100", "bloom-176b")
    assert (times.link_bytes_per_s, times.link_latency_s) == (200 * 2**30, 0)


def test_capped_machine_is_slower_at_prompts_alone() -> None:
    free = load_profile("measured", "dgx-h100", "bloom-176b")
    capped = load_profile("measured", "dgx-h100-capped", "bloom-176b")
    assert capped.prompt_s == pytest.approx(1.3 * free.prompt_s)
    assert capped.decode_s == pytest.approx(free.decode_s)
    assert capped.prompt_watts.max() <= 8 * 350 < free.prompt_watts.max()


def test_plots_prices_give_the_posters_cost_and_power() -> None:
    """25 H100 and 26 A100 against 70 A100: 1.141 of the cost, 1.005 of the power."""
    a100 = load_profile("published-2024", "dgx-a100", "bloom-176b", prices="plots")
    h100 = load_profile("published-2024", "dgx-h100", "bloom-176b", prices="plots")
    cost = (25 * h100.dollars_per_hour + 26 * a100.dollars_per_hour) / (70 * a100.dollars_per_hour)
    power = 25 * h100.provisioned_watts + 26 * a100.provisioned_watts
    assert cost == pytest.approx(1.141, abs=5e-4)
    assert power / (70 * a100.provisioned_watts) == pytest.approx(1.005, abs=5e-4)


def test_paper_prices_and_power() -> None:
    a100, h100, capped = (
        load_profile("measured", machine, "bloom-176b")
        for machine in ("dgx-a100", "dgx-h100", "dgx-h100-capped")
    )
    assert (a100.dollars_per_hour, h100.dollars_per_hour) == (17.6, 38.0)
    assert h100.provisioned_watts == pytest.approx(1.75 * a100.provisioned_watts)
    assert capped.provisioned_watts == pytest.approx(1.23 * a100.provisioned_watts)
    assert (a100.link_bytes_per_s, h100.link_bytes_per_s) == (200e9, 400e9)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("nowhere.json", "dgx-a100", "bloom-176b"), "nowhere.json"),
        (("measured", "dgx-b100", "bloom-176b"), "dgx-h100"),
        (("measured", "dgx-a100", "bloom"), "llama2-70b"),
        (("measured", "dgx-a100", "bloom-176b", "cheap"), "paper, plots"),
    ],
)
def test_unknown_names_are_answered_with_the_known(arguments: tuple[str, ...], named: str) -> None:
    with pytest.raises(HardwareError, match=named):
        load_profile(*arguments)


def own_profile() -> dict[str, Any]:
    point = {"machine": "mine", "model": "tiny", "batch": 1, "output_tokens": 8}
    return {
        "format": 1,
        "source": "measured by hand",
        "machines": {
            "mine": {
                "gpus": 1,
                "gpu_memory_bytes": 1000,
                "gpu_watts": 100,
                "link_bytes_per_s": 1e9,
                "prices": {"ours": {"dollars_per_hour": 2, "provisioned_watts": 120}},
            }
        },
        "models": {"tiny": {"weights_bytes": 400, "kv_bytes_per_token": 60, "layers": 2}},
        "points": [
            {**point, "prompt_tokens": 10, "prompt_ms": 5.0, "token_ms": 2.0},
            {**point, "prompt_tokens": 30, "prompt_ms": 7.0, "token_ms": 2.2},
        ],
    }


def test_own_file_is_a_profile(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(own_profile()))
    times = load_profile(file, "mine", "tiny")
    assert float(times.prompt_time_s(20)) == pytest.approx(0.006)
    assert times.kv_capacity_tokens == 10
    assert times.dollars_per_hour == 2
    assert times.prompt_watts_at(20) == 100
    assert times.decode_s_per_context_token[1] == pytest.approx(1e-5)


@pytest.mark.parametrize(
    ("path", "value", "named"),
    [
        (("format",), 2, "format is 2"),
        (("machines", "mine", "gpus"), 0, r"machines.mine.gpus is 0; use a number above 0"),
        (("machines", "mine", "gpus"), "one", r"Expected `int`.*machines"),
        (("machines", "mine", "prices"), {}, "machines.mine.prices is empty"),
        (("machines", "mine", "points_of"), "yours", "points_of is 'yours'; choose from mine"),
        (("machines", "mine", "colour"), "red", "unknown field `colour`"),
        (("points", 1, "model"), "huge", r"points\[1\].model is 'huge'; choose from tiny"),
        (("points", 0, "prompt_ms"), -1.0, r"points\[0\].prompt_ms is -1.0"),
        (("points",), [], "too few points of mine with tiny"),
        (("rule",), "guess", "rule is 'guess'; choose from measured, published-2024"),
        (("models", "tiny", "weights_bytes"), 1000, "the weights leave no memory"),
    ],
)
def test_wrong_files_name_the_field(
    tmp_path: Path, path: tuple[Any, ...], value: object, named: str
) -> None:
    content = own_profile()
    place: Any = content
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(content))
    with pytest.raises(HardwareError, match=named):
        load_profile(file, "mine", "tiny")
