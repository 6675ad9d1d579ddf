"""The engine without a model: known tokens out of a cache that matters, in the time it is told."""

import time
from collections.abc import Iterator

import engine_driver
import pytest

from splitwise.engine.model_files import read_model_info, read_stop_token_ids
from splitwise.engine.null.engine import NullEngine, null_model
from splitwise.engine.null.tokens import continuation, words_of
from splitwise.engine.sampling import SamplingParams
from splitwise.gateway.text.codec import TextCodec

INFO = read_model_info(null_model())
WORDS = words_of(INFO.vocab_size, read_stop_token_ids(null_model()))
SEEDED = SamplingParams(seed=7)


@pytest.fixture
def engine() -> Iterator[NullEngine]:
    engine = NullEngine(null_model(), cache_memory_bytes=1 << 20)
    yield engine
    engine.close()


def test_tokens_are_those_predicted_alone_and_in_batches(engine: NullEngine) -> None:
    prompts = [[5], list(range(16)), list(range(40, 140)), [9] * 33]
    requests = [
        engine_driver.Request(prompt, 50, sampling, chunk_tokens=chunk)
        for prompt in prompts
        for sampling, chunk in ((engine_driver.GREEDY, 10**9), (SEEDED, 7))
    ]
    engine_driver.run(engine, requests)
    for request in requests:
        assert request.output == continuation(request.prompt, 50, request.sampling, WORDS)


def test_a_text_is_taken_up_again_where_it_stopped_and_seeds_differ(engine: NullEngine) -> None:
    whole = continuation([1, 2, 3], 20, SEEDED, WORDS)
    assert continuation([1, 2, 3, *whole[:8]], 12, SEEDED, WORDS) == whole[8:]
    assert continuation([1, 2, 3], 20, SamplingParams(seed=8), WORDS) != whole
    assert len(set(whole)) > 10


def test_a_cache_that_is_damaged_shows(engine: NullEngine) -> None:
    request = engine_driver.Request([3] * 40, 30)
    engine_driver.scatter_blocks(engine, [request])
    (first,) = engine.step([request.work()])
    assert first is not None
    request.done_tokens = 40
    request.samples.append(first)
    engine.memory.buffer[:] = bytes(engine.memory.nbytes)
    (second,) = engine.step([request.work()])
    expected = continuation(request.prompt, 2, request.sampling, WORDS)
    assert [first.token] == expected[:1]
    assert second is not None and second.token != expected[1]


def test_time_is_fixed_and_costs_no_cpu() -> None:
    engine = NullEngine(null_model(), 1 << 20, prompt_token_s=0.001, iteration_s=0.05)
    try:
        request = engine_driver.Request(list(range(100)), 3)
        reported: list[int] = []
        began_s, cpu_s = time.monotonic(), time.thread_time()
        engine_driver.scatter_blocks(engine, [request])
        engine.step([request.work()], reported.append)
        prompt_s = time.monotonic() - began_s
        engine_driver.run(engine, [request])
    finally:
        engine.close()
    assert reported == [0, 1]
    assert 0.1 <= prompt_s < 0.15
    assert 0.3 <= time.monotonic() - began_s < 0.4  # the prompt again, and two tokens
    assert time.thread_time() - cpu_s < 0.05


def test_logprobs_are_those_of_certainty(engine: NullEngine) -> None:
    request = engine_driver.Request([1, 2], 2, SamplingParams(logprobs=1))
    engine_driver.run(engine, [request])
    for sample in request.samples:
        assert sample.logprob == 0.0 and sample.top == [(sample.token, 0.0)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [({"cache_memory_bytes": 10}, "cache_memory_bytes=10"), ({"iteration_s": -1.0}, "-1.0 s")],
)
def test_what_it_cannot_do_is_named(arguments: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        NullEngine(null_model(), **({"cache_memory_bytes": 1 << 20} | arguments))  # type: ignore[arg-type]


async def test_its_tokenizer_takes_any_text_and_says_words() -> None:
    codec = TextCodec.load(null_model().path)
    try:
        text = "Any text: ünïcödé, 東京, \x00\n"
        tokens = await codec.encode(text, False, 1000)
        assert await codec.decode(tokens) == text
        assert len(tokens) == len(text.encode())
        said = await codec.decode([int(token) for token in WORDS[:3]])
        assert said == " bal ban bar"
        assert codec.render_chat([{"role": "user", "content": "Hi"}]).endswith("assistant\n")
    finally:
        codec.close()


def test_prompts_that_are_alike_take_the_time_of_one() -> None:
    engine = NullEngine(null_model(), cache_memory_bytes=1 << 20, prompt_token_s=0.001)
    requests = [
        engine_driver.Request(list(range(4, 104)), 20, SamplingParams(seed=seed))
        for seed in range(20)
    ]
    engine_driver.scatter_blocks(engine, requests)
    works = [request.work() for request in requests]
    for work in works[1:]:
        work.like = 0
    assert engine._lasts_s(works) == pytest.approx(0.1)
    for request, first in zip(requests, engine.step(works), strict=True):
        assert first is not None
        assert [first.token] == continuation(request.prompt, 1, request.sampling, WORDS)
        request.done_tokens = 100
        request.samples.append(first)
        (second,) = engine.step([request.work()])
        assert second is not None
        assert second.token == continuation(request.prompt, 2, request.sampling, WORDS)[1]
    engine.close()
