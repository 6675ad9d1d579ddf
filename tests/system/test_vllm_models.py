"""Models whose layers do not all attend to the whole context, on machines of vLLM."""

import random
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_process import COMMAND, ready_server

from splitwise.engine.model_files import DEFAULT_MODEL, resolve_model

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

SIZES = {
    "vocab_size": 49152,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 2048,
    "initializer_range": 0.3,
    "sliding_window": 64,
}
ENGINE = ["--engine=vllm", "--dtype=float32", "--kv-cache-gib=0.1", "--prompt=1", "--token=1"]
CHUNKED = "--vllm-args=--enforce-eager --max-num-batched-tokens 256 --max-num-seqs 16"
TOKENS = 8


def save(model: Any, folder: Path) -> Path:
    model.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve_model(DEFAULT_MODEL).path / name, folder)
    return folder


def test_windows_in_some_layers_are_served_as_transformers_does(tmp_path: Path) -> None:
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.Gemma2Config(query_pre_attn_scalar=32, **SIZES)
    network = transformers.AutoModelForCausalLM.from_config(config)
    folder = save(network, tmp_path / "windows")
    rng = random.Random(3)
    prompts = [[rng.randrange(1000, 40_000) for _ in range(n)] for n in (5, 127, 300, 700)]
    with (
        ready_server(str(folder), *ENGINE, CHUNKED, log=tmp_path / "log") as (_, url),
        httpx.Client(base_url=url, timeout=120) as client,
    ):
        for prompt in prompts:
            output = network.generate(
                torch.tensor([prompt]), max_new_tokens=TOKENS, do_sample=False, eos_token_id=None
            )
            assert complete(client, prompt) == output[0, len(prompt) :].tolist()
    assert "engine failed" not in (tmp_path / "log").read_text()


def complete(client: httpx.Client, prompt: list[int]) -> list[int]:
    body = {"model": "windows", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    asked = client.post("/v1/completions", json=body)
    assert asked.status_code == 200, asked.text
    tokens: list[int] = asked.json()["choices"][0]["token_ids"]
    return tokens


@pytest.mark.parametrize("kind", ["windows in all layers", "states"])
def test_what_is_no_cache_of_all_tokens_is_refused_with_the_reason(
    kind: str, tmp_path: Path
) -> None:
    transformers = pytest.importorskip("transformers")
    if kind == "states":
        config = transformers.MambaConfig(hidden_size=128, num_hidden_layers=2, vocab_size=49152)
    else:
        config = transformers.MistralConfig(**SIZES)
    network = transformers.AutoModelForCausalLM.from_config(config)
    folder = save(network, tmp_path / "refused")
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
