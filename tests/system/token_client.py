"""A client that asks by tokens and is answered in tokens, greedily."""

import shutil
from pathlib import Path
from typing import Any

import httpx

from splitwise.engine.model_files import DEFAULT_MODEL, resolve_model


def complete(client: httpx.Client, model: str, prompt: list[int], tokens: int) -> list[int]:
    """So many tokens, whatever they are."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0}
    body |= {"ignore_eos": True, "return_token_ids": True}
    asked = client.post("/v1/completions", json=body)
    assert asked.status_code == 200, asked.text
    answer: list[int] = asked.json()["choices"][0]["token_ids"]
    return answer


def generate(network: Any, prompt: list[int], tokens: int) -> list[int]:
    """The same by transformers."""
    import torch

    ids = torch.tensor([prompt])
    output = network.generate(
        ids,
        attention_mask=torch.ones_like(ids),  # else tokens like its padding are passed over
        max_new_tokens=tokens,
        do_sample=False,
        eos_token_id=None,
    )
    answer: list[int] = output[0, len(prompt) :].tolist()
    return answer


def random_model(folder: Path, config: Any) -> Any:
    """Random weights, the same ones every time, saved in ``folder`` beside a tokenizer."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    network = AutoModelForCausalLM.from_config(config)
    network.save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(resolve_model(DEFAULT_MODEL).path / name, folder)
    return network
