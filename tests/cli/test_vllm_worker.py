"""``splitwise worker --engine vllm``: how its engine is made and ended, with vLLM itself faked."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from splitwise.cli.main import app
from splitwise.engine.errors import ModelError
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.null.engine import null_model
from splitwise.engine.vllm.settings import VllmSettings
from splitwise.gateway.process import Gateway, ServeOptions
from splitwise.worker.options import WorkerError, WorkerOptions


class FakeVllm:
    """Both modules that import vLLM, and the worker that runs over them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[tuple[ModelFolder, VllmSettings]] = []
        self.runs: list[WorkerOptions] = []
        self.closed = 0
        self.failure: Exception | None = None
        fake = self

        class VllmCore:
            def __init__(self, folder: ModelFolder, settings: VllmSettings) -> None:
                fake.made.append((folder, settings))

            def close(self) -> None:
                fake.closed += 1

        core, machine = ModuleType("core"), ModuleType("vllm_machine")
        core.VllmCore = VllmCore  # type: ignore[attr-defined]
        machine.opens_vllm = lambda core, options: (core, options)  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "splitwise.engine.vllm.core", core)
        monkeypatch.setitem(sys.modules, "splitwise.worker.vllm_machine", machine)
        monkeypatch.setattr("splitwise.engine.vllm.versions.check_version", lambda _: "0.32.0")
        monkeypatch.setattr("splitwise.worker.worker.run_machine", self._run)
        # Set, so that what the worker puts there is taken back.
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
        monkeypatch.setenv("VLLM_LOGGING_PREFIX", "")

    def _run(self, opened: Any, options: WorkerOptions) -> None:
        assert opened[1] is options and self.closed == len(self.runs)
        self.runs.append(options)
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def vllm(monkeypatch: pytest.MonkeyPatch) -> FakeVllm:
    return FakeVllm(monkeypatch)


def run(*arguments: str) -> Result:
    command = ["worker", "--join=127.0.0.1:1", "--engine=vllm", f"--model={null_model().path}"]
    return CliRunner().invoke(app, [*command, *arguments], env={"SPLITWISE_CLUSTER_KEY": "key"})


def test_the_engine_is_told_all_that_concerns_it(vllm: FakeVllm) -> None:
    result = run(
        *("--role=prefill", "--threads=2", "--cores=3,5", "--dtype=float32", "--model-name=mine"),
        *("--prompt-batch-tokens=99", "--max-num-seqs=9", "--load-format=dummy"),
        *("--vllm-args", "--block-size 32 --hf-overrides '{}'"),
    )
    assert result.exit_code == 0, result.output
    [(folder, settings)] = vllm.made
    assert folder == ModelFolder(null_model().path, "mine")
    assert settings == VllmSettings(
        device="cpu",
        dtype="float32",
        kv_cache_gib=2.0,
        threads=2,
        cores=[3, 5],
        load_format="dummy",
        arguments="--block-size 32 --hf-overrides '{}'",
        layerwise=True,
        batch_tokens=99,
        batch_requests=9,
    )
    assert vllm.closed == 1


@pytest.mark.parametrize(("role", "layerwise"), [("prompt", 1), ("mixed", 1), ("token", 0)])
def test_machines_that_run_prompts_push_layer_by_layer(
    role: str, layerwise: int, vllm: FakeVllm
) -> None:
    assert run(f"--role={role}").exit_code == 0
    assert vllm.made[0][1].layerwise == bool(layerwise)


def test_on_a_gpu_the_cache_is_what_vllm_finds_unless_it_is_said(
    vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    assert run("--device=cuda", "--rank=1").exit_code == 0
    assert run("--device=cuda", "--rank=1", "--kv-cache-gib=2").exit_code == 0
    (_, unsaid), (_, said) = vllm.made
    assert (unsaid.device, unsaid.kv_cache_gib) == ("cuda:0", None)
    assert said.kv_cache_gib == 2


@pytest.mark.parametrize(
    ("arguments", "visible", "expected"),
    [
        (["--device=cuda", "--rank=1"], None, "1,0,2,3"),
        (["--device=cuda", "--rank=5"], None, "1,0,2,3"),
        (["--device=cuda:2"], "7,6,5,4", "5,7,6,4"),
        (["--device=cuda", "--rank=1", "--vllm-args=--tensor-parallel-size 2"], None, "2,3,0,1"),
        (["--device=cuda", "--rank=2", "--vllm-args=-tp 2"], "GPU-a,GPU-b,c,d", "GPU-a,GPU-b,c,d"),
        (["--device=cuda", "--rank=1", "--vllm-args=--tensor_parallel_size=4"], None, "0,1,2,3"),
    ],
)
def test_a_machine_sees_its_own_gpus_first_and_the_others_too(
    arguments: list[str],
    visible: str | None,
    expected: str,
    vllm: FakeVllm,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    assert run(*arguments).exit_code == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
    assert vllm.made[0][1].device == "cuda:0"


def test_a_machine_of_more_gpus_than_there_are_is_refused(
    vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    result = run("--device=cuda", "--vllm-args=--tensor-parallel-size=4")
    assert result.exit_code == 1 and not vllm.made
    assert "4 from number 0 on are needed" in result.output


@pytest.mark.parametrize(
    ("arguments", "gpus"),
    [
        (["--device=cuda", "--vllm-args=-tp 4 --block-size 16"], 4),
        (["--device=cuda"], 1),
        (["--vllm-args=-tp 4"], 0),
        (["--device=cuda", "--vllm-args=--tensor-parallel-size many"], 1),
    ],
)
def test_ray_is_asked_for_as_many_gpus(
    arguments: list[str], gpus: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def connect(*_: object) -> None:
        raise ModelError("that far")

    def options(**given: Any) -> None:
        asked.append(given["gpus"])

    monkeypatch.setattr("splitwise.launch.ray_launcher.RayOptions", options)
    monkeypatch.setattr("splitwise.launch.ray_launcher.connect", connect)
    monkeypatch.setattr("splitwise.engine.vllm.versions.check_version", lambda _: "0.32.0")
    command = ["serve", str(null_model().path), "--engine=vllm", "--launcher=ray", *arguments]
    assert "that far" in CliRunner().invoke(app, command).output
    assert asked == [gpus]


@pytest.mark.parametrize("failure", [WorkerError("refused"), ModelError("no")])
def test_a_worker_that_fails_gives_its_engine_back(failure: Exception, vllm: FakeVllm) -> None:
    vllm.failure = failure
    result = run()
    assert result.exit_code == 1
    assert str(failure) in result.output
    assert vllm.closed == 1


def test_a_reason_of_many_lines_is_said_in_the_last_one(vllm: FakeVllm) -> None:
    vllm.failure = ModelError("1 validation error\n  quantization: no such method\n    see there\n")
    said = run().output.strip().splitlines()[-1]
    assert said == "splitwise: 1 validation error quantization: no such method see there"


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_without_vllm_the_remedy_is_said(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("splitwise.engine.vllm.versions.DISTRIBUTIONS", ())
    arguments = [command, "--engine=vllm"]
    arguments += ["--join=127.0.0.1:1"] if command == "worker" else [str(null_model().path)]
    result = CliRunner().invoke(app, arguments, env={"SPLITWISE_CLUSTER_KEY": "key"})
    assert result.exit_code == 1
    assert "vLLM is not installed" in result.output and "docs/vllm.md" in result.output


def test_serve_refuses_words_that_no_shell_reads() -> None:
    arguments = ["serve", str(null_model().path), "--engine=vllm", "--vllm-args=--hf-overrides '{"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 1
    assert "No closing quotation" in result.output


@pytest.mark.parametrize(
    "change",
    [
        {"quantization_config": {"quant_method": "awq"}},
        {"kv_lora_rank": 512},
        {"sliding_window": 16},
        {"architectures": ["LlavaForConditionalGeneration"], "vocab_size": None},
    ],
    ids=lambda change: next(iter(change)),
)
def test_what_a_model_may_be_is_for_its_engine_to_say(
    change: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our own engine's limits are not vLLM's; the gateway serves what the machines can."""
    folder = tmp_path / "model"
    shutil.copytree(null_model().path, folder)
    config = json.loads((folder / "config.json").read_text()) | change
    (folder / "config.json").write_text(json.dumps(config))
    started: list[Gateway] = []

    def gateway(options: ServeOptions, *given: Any) -> None:
        started.append(Gateway(options, *given))
        raise ModelError("that far")

    monkeypatch.setattr("splitwise.engine.vllm.versions.check_version", lambda _: "0.32.0")
    monkeypatch.setattr("splitwise.gateway.process.Gateway", gateway)
    refused = CliRunner().invoke(app, ["serve", str(folder)])
    assert refused.exit_code == 1 and "that far" not in refused.output
    assert not started
    taken = CliRunner().invoke(app, ["serve", str(folder), "--engine=vllm"])
    assert "that far" in taken.output, taken.output
    assert started[0].model_name == "model"


@pytest.mark.parametrize("command", ["serve", "worker"])
def test_a_release_that_is_not_known_to_work_is_refused(command: str, tmp_path: Path) -> None:
    """Found as pip leaves it, by a program of its own."""
    metadata = tmp_path / "vllm-0.31.2.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.2\n")
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "splitwise.cli.main", command, "--engine=vllm"),
            *(["--join=127.0.0.1:1"] if command == "worker" else ["--mixed=1", "--port=0"]),
        ],
        env=os.environ
        | {"SPLITWISE_CLUSTER_KEY": "key" * 8}
        | {"PYTHONPATH": os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.returncode == 1
    last = ended.stderr.strip().splitlines()[-1]
    assert "vllm 0.31.2 is installed" in last and "0.32 up to, not including, 0.34" in last
