"""The paged engine against transformers' own generate and forward."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from engine_driver import GREEDY, Request, run, scatter_blocks
from tiny_models import KINDS, VOCABULARY, tiny_config
from transformers import AutoModelForCausalLM

from splitwise.engine.base import Work
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.sampling import SamplingParams
from splitwise.engine.torch.cpu_modules import CompiledRMSNorm, FusedAttention, GatedMLP
from splitwise.engine.torch.engine import TorchEngine

CACHE_BYTES = 8 << 20
MakeTiny = Callable[[str], ModelFolder]


def reference_model(folder: ModelFolder) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(folder.path, attn_implementation="eager").eval()


def generate(model: torch.nn.Module, prompt: list[int], count: int) -> list[int]:
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        min_new_tokens=count,
        do_sample=False,
    )
    return out[0, len(prompt) :].tolist()


def random_prompt(rng: random.Random, length: int) -> list[int]:
    return [rng.randrange(1, VOCABULARY) for _ in range(length)]


@pytest.mark.parametrize("kind", KINDS)
def test_mixed_batches_equal_generate(tiny_model: MakeTiny, kind: str) -> None:
    folder = tiny_model(kind)
    rng = random.Random(1)
    lengths = [1, 2, 15, 16, 17, 40, 70]
    requests = [
        Request(random_prompt(rng, n), 12, chunk_tokens=rng.choice([7, 16, 1000])) for n in lengths
    ]
    engine = TorchEngine(folder, CACHE_BYTES)
    # Some run, some wait, in every iteration: prompts, chunks and decodes meet in all mixtures.
    run(engine, requests, lambda waiting: rng.sample(waiting, rng.randint(1, len(waiting))))
    engine.close()
    model = reference_model(folder)
    # Token 0 ends a text; generate, asked for a least length, never chooses it.
    for request in requests:
        if 0 not in request.output:
            assert request.output == generate(model, request.prompt, 12), len(request.prompt)
    assert sum(0 not in request.output for request in requests) >= 4


@pytest.mark.parametrize("block_tokens", [1, 5, 16, 32])
@pytest.mark.parametrize("kind", ["llama", "qwen3"])
def test_any_block_size(tiny_model: MakeTiny, kind: str, block_tokens: int) -> None:
    folder = tiny_model(kind)
    prompt = random_prompt(random.Random(2), 37)
    engine = TorchEngine(folder, CACHE_BYTES, block_tokens=block_tokens)
    request = Request(prompt, 20, chunk_tokens=10)
    run(engine, [request])
    engine.close()
    ids = torch.tensor([prompt + request.output])
    logits = reference_model(folder)(ids).logits[0]
    assert request.output == logits[36:-1].argmax(-1).tolist()


@pytest.mark.parametrize("kind", ["llama", "qwen2", "phi3"])
def test_logprobs_equal_forward(tiny_model: MakeTiny, kind: str) -> None:
    folder = tiny_model(kind)
    params = SamplingParams(temperature=0.0, logprobs=VOCABULARY)
    requests = [
        Request(random_prompt(random.Random(n), n), 4, params, chunk_tokens=11) for n in (1, 9, 30)
    ]
    engine = TorchEngine(folder, CACHE_BYTES)
    run(engine, requests)
    engine.close()
    model = reference_model(folder)
    for request in requests:
        logits = model(torch.tensor([request.prompt + request.output])).logits[0]
        expected = torch.log_softmax(logits, -1)[len(request.prompt) - 1 : -1]
        for sample, row in zip(request.samples, expected, strict=True):
            assert sample.top is not None
            got = torch.empty(VOCABULARY)
            got[[token for token, _ in sample.top]] = torch.tensor([p for _, p in sample.top])
            torch.testing.assert_close(got, row, atol=2e-3, rtol=1e-4)
            assert sample.logprob == pytest.approx(float(got[sample.token]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_dtypes_take_the_gather_path(tiny_model: MakeTiny, dtype: torch.dtype) -> None:
    folder = tiny_model("llama")
    prompt = random_prompt(random.Random(3), 21)
    engine = TorchEngine(folder, CACHE_BYTES, dtype=dtype)
    requests = [Request(prompt, 8, chunk_tokens=n) for n in (8, 100)]
    run(engine, requests)
    engine.close()
    assert engine.model.dtype == str(dtype).removeprefix("torch.")
    model = reference_model(folder).to(dtype)
    if dtype is torch.float64:
        assert [r.output for r in requests] == [generate(model, prompt, 8)] * 2
    logits = model(torch.tensor([prompt])).logits[0, -1]
    assert logits[requests[0].output[0]] >= logits.max() - 0.05 * logits.std()


@pytest.mark.parametrize(
    ("kind", "short_ways"),
    [
        ("llama", [True, True, True]),
        ("llama-tied-biased", [True, True, True]),
        ("qwen2", [True, True, True]),
        ("qwen3", [False, False, False]),  # norms on its heads
        ("smollm3", [True, False, True]),  # no rotation in the second layer
        ("granite", [False, False, False]),  # scales its residuals: only the probe can tell
        ("gemma", [False, False, False]),
    ],
)
def test_single_rows_take_the_short_way_where_it_agrees(
    tiny_model: MakeTiny, kind: str, short_ways: list[bool]
) -> None:
    engine = TorchEngine(tiny_model(kind), CACHE_BYTES)
    engine.close()
    layers = engine._network.base_model.layers
    assert ["forward" in vars(layer) for layer in layers] == short_ways


def test_fast_modules_are_used_where_they_fit(tiny_model: MakeTiny) -> None:
    def kinds_of(name: str) -> set[type]:
        engine = TorchEngine(tiny_model(name), CACHE_BYTES)
        engine.close()
        return {type(m) for m in engine._network.modules()}

    assert kinds_of("llama") >= {FusedAttention, GatedMLP, CompiledRMSNorm}
    assert kinds_of("qwen3") >= {FusedAttention, GatedMLP, CompiledRMSNorm}
    # Gemma's norm scales by 1 + weight: the probe must tell it from Llama's.
    assert CompiledRMSNorm not in kinds_of("gemma")
    # A layer without rotation looks like any other, but computes something else.
    smollm3 = TorchEngine(tiny_model("smollm3"), CACHE_BYTES)
    smollm3.close()
    fused = [isinstance(x.self_attn, FusedAttention) for x in smollm3._network.model.layers]
    assert fused == [True, False, True]


def test_a_layer_is_complete_when_reported(tiny_model: MakeTiny) -> None:
    """What lies in the cache when ``on_layer`` is called is what a later reader finds."""
    engine = TorchEngine(tiny_model("llama"), CACHE_BYTES)
    request = Request(random_prompt(random.Random(4), 40), 1)
    scatter_blocks(engine, [request])
    memory = engine.memory.buffer  # type: ignore[attr-defined]
    seen: list[tuple[int, list[bytes]]] = []

    def blocks_of(layer: int) -> list[bytes]:
        layout = engine.layout
        [plane] = layout.planes(layer)
        starts = [plane.offset_bytes + b * plane.stride_bytes for b in request.blocks[:3]]
        return [bytes(memory[s : s + layout.block_bytes(layer)]) for s in starts]

    engine.step([request.work()], lambda layer: seen.append((layer, blocks_of(layer))))
    assert [layer for layer, _ in seen] == list(range(engine.layout.layers))
    for layer, content in seen:
        assert content == blocks_of(layer)
        assert all(any(block) for block in content)
    engine.close()


def test_the_heads_of_a_rank_are_one_piece_of_a_block(tiny_model: MakeTiny) -> None:
    """As ``of_rank`` says: what lies there is that head's keys, then its values, and no more."""
    engine = TorchEngine(tiny_model("llama"), CACHE_BYTES)
    request = Request(random_prompt(random.Random(4), 20), 1)
    scatter_blocks(engine, [request])
    engine.step([request.work()])
    heads, layout = engine.model.kv_heads, engine.layout
    assert layout.all_heads == heads > 1
    cache = torch.frombuffer(engine.memory.buffer, dtype=torch.float32)  # type: ignore[attr-defined]
    keys, values = engine._cache.gather(1, torch.tensor([request.blocks[:2]]))
    numbers = layout.block_bytes(1) // 4
    start = (layout.planes(1)[0].offset_bytes // 4) + request.blocks[0] * numbers
    each = numbers // heads
    for head in range(heads):
        piece = cache[start + head * each : start + (head + 1) * each]
        first = torch.cat(
            [keys[0, head, : layout.block_tokens], values[0, head, : layout.block_tokens]]
        )
        torch.testing.assert_close(piece, first.flatten(), rtol=0, atol=0)
        assert piece.any()
    engine.close()


def test_blocks_moved_to_another_engine_continue_the_text(tiny_model: MakeTiny) -> None:
    """The whole idea: prompt on one machine, tokens on another, with other blocks."""
    folder = tiny_model("qwen2")
    prompt = random_prompt(random.Random(5), 45)
    prompt_machine = TorchEngine(folder, CACHE_BYTES)
    token_machine = TorchEngine(folder, CACHE_BYTES // 2)
    assert token_machine.layout.accepts(prompt_machine.layout)
    whole, split = Request(prompt, 10), Request(prompt, 10)
    run(prompt_machine, [whole])
    scatter_blocks(prompt_machine, [split], seed=6)
    first = prompt_machine.step([split.work()])[0]
    assert first is not None
    split.samples.append(first)
    split.done_tokens = len(prompt)
    source, source_blocks = prompt_machine.layout, split.blocks
    scatter_blocks(token_machine, [split], seed=7)
    target = token_machine.layout
    for layer in range(source.layers):
        for old, new in zip(source_blocks, split.blocks, strict=True):
            n = source.block_bytes(layer)
            a = source.planes(layer)[0].offset_bytes + old * n
            b = target.planes(layer)[0].offset_bytes + new * n
            token_machine.memory.buffer[b : b + n] = prompt_machine.memory.buffer[a : a + n]  # type: ignore[attr-defined]
    while not split.finished:
        work = split.work()
        sample = token_machine.step([work])[0]
        assert sample is not None
        split.samples.append(sample)
        split.done_tokens += 1
    assert split.output == whole.output
    prompt_machine.close()
    token_machine.close()


def test_too_little_memory_names_the_need(tiny_model: MakeTiny) -> None:
    with pytest.raises(ValueError, match=r"cache_memory_bytes=1000: .* takes .* bytes"):
        TorchEngine(tiny_model("llama"), cache_memory_bytes=1000)


def test_close_frees_the_memory_and_is_harmless_twice(tiny_model: MakeTiny) -> None:
    engine = TorchEngine(tiny_model("llama"), CACHE_BYTES)
    engine.step([Work([1, 2, 3], 0, [0], GREEDY, [1, 2, 3], 3)])
    engine.close()
    engine.close()
    assert engine.memory.fd == -1  # type: ignore[attr-defined]


def test_random_weights_are_the_same_everywhere(tmp_path: Path) -> None:
    """A folder with a config and no weights; each worker draws the same ones."""
    tiny_config(*KINDS["llama"]).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    outputs = []
    for _ in range(2):
        engine = TorchEngine(ModelFolder(tmp_path, "dummy"), CACHE_BYTES, random_weights=True)
        request = Request(list(range(1, 20)), 8)
        run(engine, [request])
        outputs.append(request.output)
        engine.close()
    assert outputs[0] == outputs[1]
    assert len(set(outputs[0])) > 1


@pytest.mark.parametrize("kind", KINDS)
def test_prompts_that_are_alike_have_caches_of_their_own(tiny_model: MakeTiny, kind: str) -> None:
    """Computed once, beside other prompts and decodes, and decoded apart from each other."""
    folder = tiny_model(kind)
    rng = random.Random(4)
    prompt, other = random_prompt(rng, 37), random_prompt(rng, 11)
    prompts = [random_prompt(rng, 3), prompt, other, prompt, other, prompt]
    requests = [Request(each, 8) for each in prompts]
    engine = TorchEngine(folder, CACHE_BYTES)
    scatter_blocks(engine, requests)
    first, *rest = requests

    def step(together: list[Request], likes: list[int | None]) -> None:
        works = [request.work() for request in together]
        for work, like in zip(works, likes, strict=True):
            work.like = like
        for request, work, sample in zip(together, works, engine.step(works), strict=True):
            assert sample is not None
            request.done_tokens += len(work.tokens)
            request.samples.append(sample)

    step([first], [None])
    step([first, *rest], [None, None, None, 1, 2, 1])
    for request in rest:  # one after another: nobody's cache is written by another
        while not request.finished:
            step([request], [None])
    engine.close()
    model = reference_model(folder)
    for request in rest:
        if 0 not in request.output:
            assert request.output == generate(model, request.prompt, 8)
    assert rest[0].output == rest[2].output == rest[4].output
    assert rest[1].output == rest[3].output
