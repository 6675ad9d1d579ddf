"""Load generators of other projects: how each is told the same load, and what it reports.

Versions: guidellm 0.8, aiperf 0.13, vllm 0.33. None of them may look for models or tokenizers on a
hub, so each gets the tokenizer's folder.
"""

import asyncio
import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from client_figures import Figures, Load

LIMIT_S = 900.0
_OFFLINE = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}


@dataclass(frozen=True)
class Program:
    """``command`` gives the arguments for a load and an empty folder; ``read`` its report there."""

    command: Callable[[Load, Path], list[str]]
    read: Callable[[Path], Figures]
    environment: Mapping[str, str] = field(default_factory=lambda: _OFFLINE)


async def run_program(name: str, executable: Path, load: Load) -> Figures:
    """Run the client called ``name`` to its end.

    Raises:
        RuntimeError: it failed, or took longer than ``LIMIT_S``; with its last words.
    """
    program = PROGRAMS[name]
    with tempfile.TemporaryDirectory(prefix=f"{name}-") as folder:
        process = await asyncio.create_subprocess_exec(
            executable,
            *program.command(load, Path(folder)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=os.environ | program.environment,
        )
        try:
            said, _ = await asyncio.wait_for(process.communicate(), LIMIT_S)
        except TimeoutError as error:
            process.kill()
            await process.wait()
            raise RuntimeError(f"{name} did not end within {LIMIT_S:g} s") from error
        if process.returncode:
            last = said.decode(errors="replace")[-3000:]
            raise RuntimeError(f"{name} ended with {process.returncode}:\n{last}")
        return program.read(Path(folder))


def _guidellm(load: Load, folder: Path) -> list[str]:
    path = "/v1/chat/completions" if load.chat else "/v1/completions"
    return [
        *("run", "--disable-console"),
        *("--backend", f"kind=openai_http,target={load.url},request_format={path}"),
        *("--profile", f"kind=concurrent,streams={load.concurrency}"),
        *("--constraint", f"kind=max_requests,count={load.requests}"),
        *("--tokenizer", f"kind=hf_auto,model={load.tokenizer}"),
        "--data",
        f"kind=synthetic_text,prompt_tokens={load.prompt_tokens},output_tokens={load.output_tokens}",
        *("--output", f"kind=json,path={folder / 'report.json'}"),
    ]


def _read_guidellm(folder: Path) -> Figures:
    (benchmark,) = _read(folder / "report.json")["benchmarks"]
    metrics = benchmark["metrics"]

    def of(name: str) -> float:
        return float(metrics[name]["successful"]["mean"])

    return Figures(
        # Its other figures leave out what ends on its window's edge: the last request, at times.
        benchmark["scheduler_metrics"]["requests_made"]["successful"],
        of("output_token_count"),
        of("time_to_first_token_ms") / 1e3,
        of("inter_token_latency_ms") / 1e3,
        of("request_latency"),
        of("output_tokens_per_second"),
        of("requests_per_second"),
    )


def _aiperf(load: Load, folder: Path) -> list[str]:
    return [
        *("profile", "--streaming", "--ui-type", "none"),
        *("--model", load.model, "--url", load.url, "--tokenizer", str(load.tokenizer)),
        *("--endpoint-type", "chat" if load.chat else "completions"),
        *("--synthetic-input-tokens-mean", str(load.prompt_tokens)),
        *("--synthetic-input-tokens-stddev", "0"),
        *("--output-tokens-mean", str(load.output_tokens), "--output-tokens-stddev", "0"),
        *("--extra-inputs", "ignore_eos:true"),
        *("--extra-inputs", f"min_tokens:{load.output_tokens}"),
        *("--concurrency", str(load.concurrency), "--request-count", str(load.requests)),
        *("--use-server-token-count", "--workers-max", "1"),
        *("--no-gpu-telemetry", "--no-server-metrics"),
        *("--output-artifact-dir", str(folder)),
    ]


def _read_aiperf(folder: Path) -> Figures:
    report = _read(folder / "profile_export_aiperf.json")

    def mean(name: str) -> float:
        return float(report[name]["avg"])

    return Figures(
        int(mean("request_count")),
        mean("output_sequence_length"),
        mean("time_to_first_token") / 1e3,
        mean("inter_token_latency") / 1e3,
        mean("request_latency") / 1e3,
        mean("output_token_throughput"),
        mean("request_throughput"),
    )


def _vllm(load: Load, folder: Path) -> list[str]:
    backend, path = "openai", "/v1/completions"
    if load.chat:
        backend, path = "openai-chat", "/v1/chat/completions"
    return [
        *("bench", "serve", "--backend", backend, "--endpoint", path),
        *("--base-url", load.url, "--model", load.model, "--tokenizer", str(load.tokenizer)),
        *("--dataset-name", "random", "--ignore-eos"),
        *("--random-input-len", str(load.prompt_tokens)),
        *("--random-output-len", str(load.output_tokens)),
        *("--max-concurrency", str(load.concurrency), "--num-prompts", str(load.requests)),
        *("--ready-check-timeout-sec", "0", "--percentile-metrics", "ttft,tpot,itl,e2el"),
        *("--save-result", "--result-dir", str(folder), "--result-filename", "report.json"),
    ]


def _read_vllm(folder: Path) -> Figures:
    report = _read(folder / "report.json")
    return Figures(
        report["completed"],
        report["total_output_tokens"] / report["completed"],
        report["mean_ttft_ms"] / 1e3,
        # Its "ITL" is between events, whatever number of tokens they carry.
        report["mean_tpot_ms"] / 1e3,
        report["mean_e2el_ms"] / 1e3,
        report["output_throughput"],
        report["request_throughput"],
    )


def _read(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


PROGRAMS = {
    "guidellm": Program(_guidellm, _read_guidellm),
    # Offline, it takes a folder for the name of a cached model; online, it only reads the folder.
    "aiperf": Program(_aiperf, _read_aiperf, {}),
    "vllm": Program(_vllm, _read_vllm),
}
