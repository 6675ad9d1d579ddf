"""Models whose layers do not all attend to the whole context, on machines of vLLM."""

import random
import subprocess
from pathlib import Path

import httpx
import pytest
from command_process import COMMAND, ready_server
from tiny_models import tiny_config
from token_client import complete, generate, random_model
from transformers import MambaConfig

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SIZES = {"vocab_size": 49152, "hidden_size": 128, "head_dim": 32, "max_position_embeddings": 2048}
WINDOW = {"sliding_window": 64}
ENGINE = ["--engine=vllm", "--dtype=float32", "--kv-cache-gib=0.1", "--prompt=1", "--token=1"]
CHUNKED = "--vllm-args=--enforce-eager --max-num-batched-tokens 256 --max-num-seqs 16"
TOKENS = 8


def test_windows_in_some_layers_are_served_as_transformers_does(tmp_path: Path) -> None:
    folder = tmp_path / "windows"
    own = {"query_pre_attn_scalar": 32, "num_hidden_layers": 4}
    network = random_model(folder, tiny_config("gemma2", SIZES | WINDOW | own))
    rng = random.Random(3)
    prompts = [[rng.randrange(1000, 40_000) for _ in range(n)] for n in (5, 127, 300, 700)]
    with (
        ready_server(str(folder), *ENGINE, CHUNKED, log=tmp_path / "log") as (_, url),
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        for prompt in prompts:
            answer = complete(client, "windows", prompt, TOKENS)
            assert answer == generate(network, prompt, TOKENS)
    assert "engine failed" not in (tmp_path / "log").read_text()


@pytest.mark.parametrize("kind", ["windows in all layers", "states"])
def test_what_is_no_cache_of_all_tokens_is_refused_with_the_reason(
    kind: str, tmp_path: Path
) -> None:
    folder = tmp_path / "refused"
    if kind == "states":
        random_model(folder, MambaConfig(hidden_size=128, num_hidden_layers=2, vocab_size=49152))
    else:
        random_model(folder, tiny_config("mistral", SIZES | WINDOW))
    ended = subprocess.run(
        [*COMMAND, "serve", str(folder), "--port=0", *ENGINE, CHUNKED],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert ended.returncode == 1
    spec = "MambaSpec" if kind == "states" else "SlidingWindowSpec"
    assert f"its layers keep {spec}" in ended.stderr.strip().splitlines()[-1]
