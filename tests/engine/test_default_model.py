"""The real default model, end to end through the engine."""

import torch
from engine_driver import Request, run
from transformers import AutoModelForCausalLM, AutoTokenizer

from splitwise.engine.model_files import ModelFolder, read_model_info, read_stop_token_ids
from splitwise.engine.sampling import SamplingParams
from splitwise.engine.torch.engine import TorchEngine

QUESTIONS = [
    "What is the capital of France?",
    "Write one sentence about the sea. " * 12,
    "List three primes.",
]


def test_answers_equal_generate(default_model: ModelFolder) -> None:
    tokenizer = AutoTokenizer.from_pretrained(default_model.path)
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in QUESTIONS
    ]
    engine = TorchEngine(default_model, cache_memory_bytes=64 << 20)
    requests = [
        Request(prompt, 12, chunk_tokens=n) for prompt, n in zip(prompts, (999, 50, 7), strict=True)
    ]
    run(engine, requests)
    sampled = [Request(prompts[0], 8, SamplingParams(seed=11, top_p=0.9)) for _ in range(2)]
    run(engine, sampled[:1])
    run(engine, [sampled[1], Request(prompts[2], 5)], scatter_seed=3)
    engine.close()

    model = AutoModelForCausalLM.from_pretrained(default_model.path)
    for request in requests:
        ids = torch.tensor([request.prompt])
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False
        )[0, ids.shape[1] :].tolist()
        assert request.output[: len(out)] == out
    assert "Paris" in tokenizer.decode(requests[0].output)
    assert sampled[0].output == sampled[1].output


def test_what_the_gateway_reads(default_model: ModelFolder) -> None:
    info = read_model_info(default_model)
    assert (info.name, info.layers, info.kv_heads, info.head_dim) == (
        "SmolLM2-135M-Instruct",
        30,
        3,
        64,
    )
    assert info.max_context_tokens == 8192
    tokenizer = AutoTokenizer.from_pretrained(default_model.path)
    assert read_stop_token_ids(default_model) == [tokenizer.convert_tokens_to_ids("<|im_end|>")]
