"""Read recorded requests.

    file -> its first line names the format -> one row a request -> Requests, by arrival

    TIMESTAMP, ContextTokens, GeneratedTokens      CSV    Azure LLM inference traces, 2023 and 2024
    arrival_timestamp, prompt_size, token_size     CSV    public simulator of the Splitwise paper
    arrival_s, prompt_tokens, output_tokens        both   our own
    timestamp (ms), input_length, output_length    JSONL  Mooncake traces
    start_times, input_lens, output_lens           JSONL  detailed results of ``vllm bench serve``

Other columns and keys are passed over. Dates and clock readings are shifted so that the first
request arrives at 0; times that already count from the start of the recording are kept.
"""

import csv
import json
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np

from splitwise.workload.errors import WorkloadError
from splitwise.workload.requests import Requests

_Row = tuple[float, int, int]


@dataclass(frozen=True)
class _Format:
    """``fields`` name arrival, prompt tokens, output tokens; ``seconds`` reads an arrival."""

    fields: tuple[str, str, str]
    seconds: Callable[[Any], float]
    shifted: bool = False
    listed: bool = False  # One line holds lists: many requests.


def _number(value: Any) -> float:
    if isinstance(value, bool) or not math.isfinite(number := float(value)):
        raise ValueError
    return number


def _milliseconds(value: Any) -> float:
    return _number(value) / 1000


def _date(value: Any) -> float:
    # Whoever writes no zone means one and the same throughout.
    moment = datetime.fromisoformat(value)
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def _tokens(value: Any) -> int:
    if isinstance(value, bool | float) or (tokens := int(value)) < 1:
        raise ValueError
    return tokens


_PLAIN: Final = _Format(("arrival_s", "prompt_tokens", "output_tokens"), _number)
_CSV: Final = (
    _Format(("TIMESTAMP", "ContextTokens", "GeneratedTokens"), _date, shifted=True),
    _Format(("arrival_timestamp", "prompt_size", "token_size"), _number),
    _PLAIN,
)
_JSONL: Final = (
    _Format(("timestamp", "input_length", "output_length"), _milliseconds),
    _Format(("start_times", "input_lens", "output_lens"), _number, shifted=True, listed=True),
    _PLAIN,
)


def read_requests(path: Path | str) -> Requests:
    """Read the requests of a trace, sorted by arrival.

    Raises:
        WorkloadError: no such file, no request in it, a form not known, or a bad value; names
            file, line, field and value.
    """
    path = Path(path)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = _rows(path, file)
    except (OSError, UnicodeDecodeError) as error:
        raise WorkloadError(f"{path}: cannot be read: {error}") from error
    if not rows:
        raise WorkloadError(f"{path}: no requests; check that the whole file was copied")
    arrival_s, prompt_tokens, output_tokens = zip(*rows, strict=True)
    arrival = np.array(arrival_s, np.float64)
    order = np.argsort(arrival, kind="stable")
    try:
        return Requests(
            arrival[order],
            np.array(prompt_tokens, np.int64)[order],
            np.array(output_tokens, np.int64)[order],
        )
    except (WorkloadError, OverflowError) as error:
        raise WorkloadError(f"{path}: {error}") from error


def _rows(path: Path, lines: Iterable[str]) -> list[_Row]:
    """One row a request, in the file's order, with arrivals already shifted."""
    stream = iter(lines)
    first = next(stream, "")
    if first.lstrip().startswith("{"):
        form, rows = _read_json(path, chain([first], stream))
    else:
        form, rows = _read_csv(path, chain([first], stream))
    if form.shifted and rows:
        start_s = min(row[0] for row in rows)
        rows = [(arrival_s - start_s, prompt, output) for arrival_s, prompt, output in rows]
    return rows


def _read_csv(path: Path, lines: Iterable[str]) -> tuple[_Format, list[_Row]]:
    reader = csv.reader(lines)
    header = [name.strip() for name in next(reader, [])]
    form = _format(path, header, _CSV)
    arrival, prompt, output = (header.index(field) for field in form.fields)
    rows = []
    for cells in reader:
        if not cells:
            continue
        try:
            row = form.seconds(cells[arrival]), _tokens(cells[prompt]), _tokens(cells[output])
        except (ValueError, IndexError):
            padded = cells + [""] * (len(header) - len(cells))
            found = padded[arrival], padded[prompt], padded[output]
            _complain(f"{path}:{reader.line_num}", form, found)
        rows.append(row)
    return form, rows


def _read_json(path: Path, lines: Iterable[str]) -> tuple[_Format, list[_Row]]:
    form: _Format | None = None
    rows = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        record = _record(f"{path}:{number}", line)
        form = form or _format(path, list(record), _JSONL)
        for place, found in _requests_of(f"{path}:{number}", record, form):
            try:
                row = form.seconds(found[0]), _tokens(found[1]), _tokens(found[2])
            except (ValueError, TypeError):
                _complain(place, form, found)
            rows.append(row)
    return form or _PLAIN, rows


def _record(place: str, line: str) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except ValueError as error:
        raise WorkloadError(
            f"{place}: not a JSON object: {error}; put one object on each line"
        ) from error
    if not isinstance(record, dict):
        raise WorkloadError(f"{place}: {line.strip()[:60]!r} is not a JSON object; use one a line")
    return record


def _requests_of(
    place: str, record: dict[str, Any], form: _Format
) -> Iterator[tuple[str, tuple[Any, Any, Any]]]:
    """Where each request of the line stands, and its three values; None for a missing one."""
    arrival, prompt, output = form.fields
    columns = record.get(arrival), record.get(prompt), record.get(output)
    if not form.listed:
        yield place, columns
        return
    lists = []
    for field, values in zip(form.fields, columns, strict=True):
        if not isinstance(values, list):
            raise WorkloadError(
                f"{place}: {field} {str(values)[:60]!r}: expected a list with one entry a "
                "request; run vllm bench serve with --save-detailed"
            )
        lists.append(values)
    lengths = [len(values) for values in lists]
    if len(set(lengths)) != 1:
        raise WorkloadError(
            f"{place}: {', '.join(form.fields)} have {lengths} entries; give one for every request"
        )
    for index, found in enumerate(zip(*lists, strict=True)):
        yield f"{place}, request {index}", found


def _format(path: Path, names: list[str], formats: tuple[_Format, ...]) -> _Format:
    for form in formats:
        if set(form.fields) <= set(names):
            return form
    if not any(names):
        raise WorkloadError(f"{path}: empty; check that the whole file was copied")
    known = " or ".join(", ".join(form.fields) for form in formats)
    shown = ", ".join(names)[:120]
    raise WorkloadError(f"{path}:1: no known format in {shown!r}; name the fields {known}")


def _complain(place: str, form: _Format, found: tuple[Any, Any, Any]) -> NoReturn:
    """Raise for the first of the three values that cannot be read."""
    readers: tuple[Callable[[Any], float], ...] = (form.seconds, _tokens, _tokens)
    remedies = ("give a time", *["give a whole number of 1 or more, or leave the request out"] * 2)
    for field, value, read, remedy in zip(form.fields, found, readers, remedies, strict=True):
        try:
            read(value)
        except (ValueError, TypeError):
            raise WorkloadError(f"{place}: {field} {value!r}: {remedy}") from None
    raise AssertionError(f"{place}: {found} can be read after all")
