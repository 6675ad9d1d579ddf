"""Which of vLLM's arguments and models are refused, by what vLLM itself makes of them."""

from pathlib import Path

import pytest
from transformers import BartConfig, BertConfig, PretrainedConfig

from splitwise.engine.errors import ModelError
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.vllm.settings import VllmSettings

pytestmark = pytest.mark.vllm


def read(folder: ModelFolder, arguments: str) -> object:
    from splitwise.engine.vllm.core import _engine_args

    return _engine_args(folder, VllmSettings("cpu", arguments=arguments))


@pytest.mark.parametrize(
    ("arguments", "flag"),
    [
        ("--speculative-config.method ngram", "--speculative-config"),
        ("-pp 2", "--pipeline-parallel-size"),
        ("--pipeline-parallel-si=2", "--pipeline-parallel-size"),
        ("-dp 2", "--data-parallel-size"),
        ("-dcp 2", "--decode-context-parallel-size"),
        ("--async_scheduling", "--async-scheduling"),
        ("--scheduling-policy fcfs", "--scheduling-policy"),
        ("--no-disable-hybrid-kv-cache-manager", "--disable-hybrid-kv-cache-manager"),
        ("--kv-offloading-size 4", "--kv-offloading-size"),
        ("--logits-processors some.module:Own", "--logits-processors"),
        ("--enable-lora", "--enable-lora"),
        ("--kv-transfer-config {}", "--kv-transfer-config"),
        ("--model another", "--model"),
        ("--max-modle-len 5", "--max-modle-len"),
        ("another", "another"),
    ],
)
def test_what_would_break_a_promise_is_refused_however_it_is_spelled(
    arguments: str, flag: str, model_folder: ModelFolder
) -> None:
    with pytest.raises(ModelError, match=f"^--vllm-args: .*{flag}"):
        read(model_folder, arguments)


def test_what_a_file_of_vllms_names_is_refused_too(
    model_folder: ModelFolder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    file = tmp_path_factory.mktemp("config") / "vllm.yaml"
    file.write_text("data-parallel-size: 2\n")
    with pytest.raises(ModelError, match="--data-parallel-size is 2: start more machines"):
        read(model_folder, f"--config {file}")


@pytest.mark.parametrize(
    "arguments",
    [
        "",
        "--tensor-parallel-size 2 --quantization fp8 --no-enable-prefix-caching",
        "--no-async-scheduling --scheduling-policy priority --kv-cache-dtype fp8 --block-size 64",
    ],
)
def test_everything_else_is_passed_on(arguments: str, model_folder: ModelFolder) -> None:
    read(model_folder, arguments)


@pytest.mark.parametrize(
    ("config", "architecture", "kind"),
    [
        (BertConfig(hidden_size=64, num_attention_heads=2), "BertModel", "pooling"),
        (BartConfig(d_model=64), "BartForConditionalGeneration", "encoder-decoder"),
    ],
    ids=["embeddings", "encoder-decoder"],
)
def test_a_model_that_does_not_go_on_with_a_text_is_refused(
    config: PretrainedConfig,
    architecture: str,
    kind: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from splitwise.engine.vllm.core import VllmCore

    # This process starts others' workers, which are to have variables of their own.
    monkeypatch.setattr("splitwise.engine.vllm.core._set_environment", lambda _: None)
    config.architectures = [architecture]
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=f"model 'other': it is {architecture}, .* for {kind},"):
        VllmCore(ModelFolder(tmp_path, "other"), VllmSettings("cpu"))
