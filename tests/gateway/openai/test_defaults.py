"""A model's own sampling settings hold for requests that do not say; a client's word wins."""

from dataclasses import replace
from typing import Any

import httpx
import pytest
from api_server import Running, Serve

from splitwise.engine.generation_config import GenerationDefaults
from splitwise.engine.sampling import SamplingParams
from splitwise.gateway.openai.validation import ModelFacts

DEFAULTS = GenerationDefaults(
    temperature=0.6, top_k=20, top_p=0.9, min_p=0.1, repetition_penalty=1.2, max_new_tokens=21
)
CHAT = {"messages": [{"role": "user", "content": "Hello"}]}
PATHS = [("/v1/chat/completions", CHAT), ("/v1/completions", {"prompt": "Hello"})]


@pytest.fixture
def running(serve: Serve, facts: ModelFacts) -> Running:
    return serve(facts=replace(facts, defaults=DEFAULTS))


def asked(running: Running, path: str, body: dict[str, Any]) -> tuple[SamplingParams, int]:
    """What the cluster was asked for; the seed is left out."""
    answer = httpx.post(running.url + path, json=body | {"seed": 0}, timeout=20)
    assert answer.status_code == 200, answer.text
    request = running.parrot.requests[-1]
    return request.sampling, request.max_tokens


@pytest.mark.parametrize(("path", "body"), PATHS)
@pytest.mark.parametrize("nulls", [False, True])
def test_they_hold_where_nothing_is_said(
    running: Running, path: str, body: dict[str, Any], nulls: bool
) -> None:
    names = ["temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_tokens"]
    unsaid = dict.fromkeys(names) if nulls else {}
    sampling, max_tokens = asked(running, path, body | unsaid)
    assert sampling == SamplingParams(0, 0.6, 20, 0.9, 0.1, 1.2)
    assert max_tokens == 21


@pytest.mark.parametrize(("path", "body"), PATHS)
def test_a_clients_word_wins(running: Running, path: str, body: dict[str, Any]) -> None:
    """Also where it says what would be the usual without them."""
    said = {"temperature": 1, "top_k": -1, "top_p": 1, "min_p": 0, "repetition_penalty": 1}
    assert asked(running, path, body | said | {"max_tokens": 40}) == (SamplingParams(), 40)
    sampling, _ = asked(running, path, body | {"temperature": 0, "top_k": 0})
    assert sampling == SamplingParams(0, 0.0, 0, 0.9, 0.1, 1.2)


def test_they_are_cut_to_what_the_context_holds(serve: Serve, facts: ModelFacts) -> None:
    huge = serve(facts=replace(facts, defaults=GenerationDefaults(max_new_tokens=10**6)))
    _, max_tokens = asked(huge, "/v1/completions", {"prompt": [5] * 10, "ignore_eos": True})
    assert max_tokens == facts.max_context_tokens - 10


def test_without_any_all_is_as_ever(serve: Serve, facts: ModelFacts) -> None:
    plain = serve(facts=facts)
    assert asked(plain, "/v1/completions", {"prompt": "Hello"}) == (SamplingParams(), 16)
    tiny = asked(plain, "/v1/completions", {"prompt": "Hello", "temperature": 1e-39})[0]
    assert tiny.is_greedy


def test_a_token_that_the_model_lacks_is_named(serve: Serve, facts: ModelFacts) -> None:
    """Tokenizers with more tokens than their model has rows for are not rare."""
    small = serve(facts=replace(facts, vocab_size=300))
    for path, body in PATHS:
        answer = httpx.post(small.url + path, json=body, timeout=20)
        assert answer.status_code == 400
        assert "token ids are 0 to 299" in answer.json()["error"]["message"]
