"""Write requests: as our own CSV or as JSON lines of the same names, which ``reading`` knows."""

import json
from collections.abc import Iterator
from pathlib import Path

from splitwise.workload.errors import WorkloadError
from splitwise.workload.requests import Requests


def write_requests(requests: Requests, path: Path | str) -> None:
    """Write ``requests`` to a ``.csv`` or ``.jsonl`` file; reading it gives the same again.

    Raises:
        WorkloadError: another ending, or a file that cannot be written.
    """
    path = Path(path)
    if path.suffix not in (".csv", ".jsonl"):
        raise WorkloadError(f"{path}: unknown ending {path.suffix!r}; choose .csv or .jsonl")
    lines = _csv(requests) if path.suffix == ".csv" else _jsonl(requests)
    try:
        with path.open("w", encoding="utf-8") as file:
            file.writelines(f"{line}\n" for line in lines)
    except OSError as error:
        raise WorkloadError(f"{path}: cannot be written: {error}") from error


def _csv(requests: Requests) -> Iterator[str]:
    yield "arrival_s,prompt_tokens,output_tokens"
    for arrival_s, prompt, output in _rows(requests):
        yield f"{arrival_s!r},{prompt},{output}"


def _jsonl(requests: Requests) -> Iterator[str]:
    for arrival_s, prompt, output in _rows(requests):
        yield json.dumps({"arrival_s": arrival_s, "prompt_tokens": prompt, "output_tokens": output})


def _rows(requests: Requests) -> Iterator[tuple[float, int, int]]:
    return zip(
        requests.arrival_s.tolist(),
        requests.prompt_tokens.tolist(),
        requests.output_tokens.tolist(),
        strict=True,
    )
