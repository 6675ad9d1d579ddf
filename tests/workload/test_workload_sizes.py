"""Built-in sizes stand for the public traces; drawn ones keep to their table."""

import os
from pathlib import Path

import numpy as np
import pytest

from splitwise.workload import (
    ConstantSizes,
    QuantileSizes,
    Requests,
    WorkloadError,
    built_in_sizes,
    generate,
    read_requests,
    summarise,
)

ROOT = Path(__file__).parents[2]
TRACES = {"conversation": "conv", "coding": "code"}
MANY = 200_000


@pytest.mark.parametrize("name", TRACES)
@pytest.mark.parametrize("seed", [0, 1])
def test_built_in_sizes_match_the_trace(name: str, seed: int) -> None:
    data = Path(os.environ.get("SPLITWISE_TRACES", ROOT.parent / "shared" / "data"))
    file = data / "azure_llm_2023" / f"AzureLLMInferenceTrace_{TRACES[name]}.csv"
    if not file.exists():
        pytest.skip(f"no {file.name} in {data}; set SPLITWISE_TRACES to the traces' folder")
    real = summarise(read_requests(file))
    drawn = summarise(generate(name, 10, count=MANY, seed=seed))
    for kind in ("prompt_tokens", "output_tokens"):
        for figure in ("mean", "p50", "p90", "p99"):
            wanted = getattr(getattr(real, kind), figure)
            assert getattr(getattr(drawn, kind), figure) == pytest.approx(wanted, rel=0.03), figure
    # Both correlations are nearly 0, so that 3 % of them is less than the sampling error.
    assert drawn.rank_correlation == pytest.approx(real.rank_correlation, abs=0.01)


@pytest.mark.parametrize(
    ("name", "prompt", "output"), [("conversation", 1155, 211), ("coding", 2048, 27.9)]
)
def test_built_in_means_are_the_published_ones(name: str, prompt: float, output: float) -> None:
    requests = generate(name, 10, count=MANY)
    assert requests.prompt_tokens.mean() == pytest.approx(prompt, rel=0.01)
    assert requests.output_tokens.mean() == pytest.approx(output, rel=0.01)


@pytest.mark.parametrize("correlation", [-1.0, -0.6, 0.0, 0.4, 1.0])
def test_the_rank_correlation_asked_for_comes_out(correlation: float) -> None:
    ends = np.array([0.0, 1.0]), np.array([1.0, 9999.0]), np.array([1.0, 500.0])
    sizes = QuantileSizes(*ends, rank_correlation=correlation)
    drawn = summarise(generate(sizes, 10, count=50_000))
    assert drawn.rank_correlation == pytest.approx(correlation, abs=0.015)


def test_recorded_sizes_are_drawn_in_pairs() -> None:
    recorded = Requests(np.array([0.0, 1.0]), np.array([10, 20]), np.array([1, 2]))
    drawn = generate(recorded, 10, count=1000)
    assert set(drawn.prompt_tokens.tolist()) == {10, 20}
    assert (drawn.prompt_tokens == 10 * drawn.output_tokens).all()


def test_constant_sizes_are_constant() -> None:
    drawn = generate(ConstantSizes(512, 32), 10, count=5)
    assert drawn.prompt_tokens.tolist() == [512] * 5
    assert drawn.output_tokens.tolist() == [32] * 5
    assert summarise(drawn).rank_correlation is None


def test_bad_sizes_are_refused() -> None:
    with pytest.raises(WorkloadError, match="choose from conversation, coding"):
        built_in_sizes("chat")
    with pytest.raises(WorkloadError, match="prompt_tokens 0"):
        ConstantSizes(0, 1)
    with pytest.raises(WorkloadError, match="let it ascend from 0 to 1"):
        QuantileSizes(np.array([0.5, 1.0]), np.ones(2), np.ones(2), 0.0)
    with pytest.raises(WorkloadError, match="output_tokens"):
        QuantileSizes(np.array([0.0, 1.0]), np.ones(2), np.array([5.0, 4.0]), 0.0)
