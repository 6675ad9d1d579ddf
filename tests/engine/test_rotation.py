"""Rotations that depend on a text's length: beside others, in chunks, and across the switch."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from engine_driver import Request, run
from tiny_models import VOCABULARY, tiny_config
from transformers import AutoModelForCausalLM
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from splitwise.engine.errors import ModelError
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.sampling import SamplingParams
from splitwise.engine.torch.engine import TorchEngine

ORIGINAL, CONTEXT = 64, 256
HEAD_DIM = 12
FACTORS = {
    "short_factor": [1.0 + 0.1 * i for i in range(HEAD_DIM // 2)],
    "long_factor": [1.5 + 1.5 * i for i in range(HEAD_DIM // 2)],
}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, **FACTORS}
ALL_LOGPROBS = SamplingParams(temperature=0.0, logprobs=VOCABULARY)
Score = Callable[[list[int], int], torch.Tensor]


def save(folder: Path, model_type: str, rope: dict[str, Any], **settings: Any) -> ModelFolder:
    config = tiny_config(
        model_type, {"max_position_embeddings": CONTEXT, "rope_parameters": rope, **settings}
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return ModelFolder(folder, model_type)


def phi3(folder: Path) -> ModelFolder:
    rope = LONGROPE | {"original_max_position_embeddings": ORIGINAL}
    return save(folder, "phi3", rope, original_max_position_embeddings=ORIGINAL)


def llama(folder: Path) -> ModelFolder:
    """With the modules that are faster on a CPU."""
    rope = LONGROPE | {"original_max_position_embeddings": ORIGINAL, "factor": 4.0}
    return save(folder, "llama", rope)


def phimoe(folder: Path) -> ModelFolder:
    """Scales its angles by the length as well."""
    rope = LONGROPE | {"original_max_position_embeddings": ORIGINAL, "factor": 4.0}
    rope |= {"short_mscale": 1.1, "long_mscale": 1.4}
    return save(folder, "phimoe", rope, num_local_experts=2, sliding_window=None)


def prompt_of(length: int, seed: int = 0) -> list[int]:
    rng = random.Random(1000 * seed + length)
    return [rng.randrange(1, VOCABULARY) for _ in range(length)]


def logprobs(request: Request) -> torch.Tensor:
    rows = torch.empty(len(request.samples), VOCABULARY)
    for row, sample in zip(rows, request.samples, strict=True):
        assert sample.top is not None
        tokens, values = zip(*sample.top, strict=True)
        row[list(tokens)] = torch.tensor(values)
    return rows


def served(folder: ModelFolder, requests: Sequence[Request], seed: int = 0) -> None:
    rng = random.Random(seed)
    engine = TorchEngine(folder, 8 << 20)
    run(engine, requests, lambda waiting: rng.sample(waiting, rng.randint(1, len(waiting))))
    engine.close()


def by_forward(folder: ModelFolder) -> Score:
    """Log-probabilities after a text's every beginning, each computed anew and alone."""
    model = AutoModelForCausalLM.from_pretrained(folder.path).eval()

    @torch.inference_mode()
    def score(text: list[int], from_length: int) -> torch.Tensor:
        rows = [
            model(torch.tensor([text[:end]]), use_cache=False).logits[0, -1]
            for end in range(from_length, len(text))
        ]
        return torch.log_softmax(torch.stack(rows), -1)

    return score


def check_each(requests: Sequence[Request], score: Score) -> None:
    for request in requests:
        expected = score(request.prompt + request.output, len(request.prompt))
        torch.testing.assert_close(logprobs(request), expected, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("make", [phi3, llama, phimoe])
def test_longrope_beside_longer_and_shorter_texts(
    tmp_path: Path, make: Callable[[Path], ModelFolder]
) -> None:
    """Short and long ones, whole and in chunks, and two that cross from short to long."""
    folder = make(tmp_path)
    requests = [
        Request(prompt_of(length), 6, ALL_LOGPROBS, chunk_tokens=chunk)
        for length, chunk in [
            (5, 1000), (30, 7), (ORIGINAL - 6, 1000),
            (100, 1000), (150, 40), (ORIGINAL + 1, ORIGINAL), (ORIGINAL + 20, 10),
            (ORIGINAL - 3, 1000), (ORIGINAL, 9),
        ]
    ]  # fmt: skip
    served(folder, requests)
    check_each(requests, by_forward(folder))


def test_crossing_is_what_generate_does(tmp_path: Path) -> None:
    folder = phi3(tmp_path)
    request = Request(prompt_of(ORIGINAL - 10), 40)
    served(folder, [request, Request(prompt_of(100), 40)])
    model = AutoModelForCausalLM.from_pretrained(folder.path).eval()
    ids = torch.tensor([request.prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=40,
        min_new_tokens=40,
        do_sample=False,
    )
    assert request.output == out[0, len(request.prompt) :].tolist()


def test_a_request_taken_up_again_goes_on_the_same(tmp_path: Path) -> None:
    """Prompt and tokens so far as a new prompt, from before and from after the switch."""
    folder = phi3(tmp_path)
    whole = Request(prompt_of(ORIGINAL - 5), 16)
    served(folder, [whole])
    for done in (2, 4, 5, 6, 12):
        again = Request(whole.prompt + whole.output[:done], 16 - done)
        served(folder, [again])
        assert again.output == whole.output[done:]


def test_dynamic_ntk_beside_a_longer_text(tmp_path: Path) -> None:
    """The engine alone takes texts beyond the model's context; a server would not."""
    rope = {"rope_type": "dynamic", "factor": 3.0, "rope_theta": 10000.0}
    folder = save(tmp_path, "llama", rope, max_position_embeddings=32)
    requests = [Request(prompt_of(n), 1, ALL_LOGPROBS) for n in (5, 31, 100, 50, 20)]
    engine = TorchEngine(folder, 8 << 20)
    run(engine, requests)
    again = Request(prompt_of(5), 1, ALL_LOGPROBS)
    run(engine, [again])
    engine.close()
    for request in [*requests, again]:
        check_each([request], by_forward(folder))  # by a model that has seen no longer text yet


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_type": "default"},
        {"rope_type": "linear", "factor": 2.0},
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": ORIGINAL},
        {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": ORIGINAL,
        },
        {"rope_type": "proportional", "partial_rotary_factor": 0.5},
    ],
    ids=lambda rope: rope["rope_type"],
)
def test_rotations_that_do_not_depend_on_the_length(tmp_path: Path, rope: dict[str, Any]) -> None:
    folder = save(tmp_path, "llama", rope | {"rope_theta": 10000.0})
    requests = [Request(prompt_of(n), 5, ALL_LOGPROBS, chunk_tokens=25) for n in (10, 62, 120)]
    served(folder, requests)
    check_each(requests, by_forward(folder))


def test_an_unknown_rotation_by_the_longest_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path, "llama", {"rope_type": "default", "rope_theta": 10000.0})
    from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

    usual = LlamaRotaryEmbedding.forward

    def stretched(self: Any, x: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return usual(self, x, position_ids / (1 + position_ids.max() / 100))

    monkeypatch.setattr(LlamaRotaryEmbedding, "forward", stretched)
    with pytest.raises(ModelError, match=r"'llama' computes something else .* a longer one"):
        TorchEngine(folder, 8 << 20)


def test_settings_as_older_files_have_them(tmp_path: Path) -> None:
    folder = phi3(tmp_path)
    file = tmp_path / "config.json"
    config = json.loads(file.read_text())
    config.pop("rope_parameters")
    config |= {"rope_theta": 10000.0, "rope_scaling": {"type": "longrope", **FACTORS}}
    file.write_text(json.dumps(config))
    requests = [Request(prompt_of(n), 6, ALL_LOGPROBS, chunk_tokens=40) for n in (20, 62, 100)]
    served(folder, requests)
    check_each(requests, by_forward(folder))
    # One that transformers does not take any more is refused, not a traceback.
    config["rope_scaling"]["type"] = "su"
    file.write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"'phi3': transformers does not take its config\.json"):
        TorchEngine(folder, 8 << 20)


def test_a_rope_type_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    folder = save(tmp_path, "llama", {"rope_type": "default", "rope_theta": 10000.0})
    config = json.loads((tmp_path / "config.json").read_text())
    config["rope_parameters"]["rope_type"] = "spiral"
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert "spiral" not in ROPE_INIT_FUNCTIONS
    with pytest.raises(ModelError, match="spiral"):
        TorchEngine(folder, 8 << 20)
