"""A simulation's requests and machines as tables in files: .parquet, .csv or .jsonl.

A value that does not exist is null, or an empty cell in CSV. Times are seconds of virtual time.
"""

import csv
from collections.abc import Callable, Iterator
from importlib import import_module
from itertools import chain
from pathlib import Path
from typing import Any, Final

import msgspec
import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.pool import Pool
from splitwise.simulation.result import Reason, Result, Status

Columns = dict[str, list[Any]]
"""Column name to values, all of one length; None where there is none."""

_REQUEST_FIELDS: Final = (
    *("arrival_s", "prompt_tokens", "output_tokens", "prompt_start_s", "first_token_s"),
    *("transfer_start_s", "transfer_end_s", "decode_start_s", "finish_s"),
    *("queue_s", "ttft_s", "tbt_s", "max_tbt_s", "e2e_s"),
    *("prompt_machine", "token_machine", "preemptions"),
)
_MACHINE_FIELDS: Final = (
    *("busy_s", "prompt_busy_s", "decode_busy_s", "mixed_busy_s", "energy_joules"),
    *("prompt_tokens_done", "tokens_out", "role_changes", "peak_kv_tokens", "kv_capacity_tokens"),
)


class TableFileError(ValueError):
    """The file cannot be written in the format its name asks for."""


def write_requests(result: Result, path: Path) -> None:
    """Write one row a request, in order of arrival.

    Raises TableFileError for a suffix that is no format, or when pyarrow is missing.
    """
    write_table(request_columns(result), path)


def write_machines(result: Result, path: Path) -> None:
    """Write one row a machine; raises as ``write_requests`` does."""
    write_table(machine_columns(result), path)


def request_columns(result: Result) -> Columns:
    """What is known of every request."""
    statuses = [status.name.lower() for status in Status]
    reasons = [None if reason is Reason.NONE else reason.name.lower() for reason in Reason]
    return {
        "request": list(range(len(result.arrival_s))),
        "status": [statuses[status] for status in result.status],
        "reason": [reasons[reason] for reason in result.reason],
        **{name: _values(getattr(result, name)) for name in _REQUEST_FIELDS},
    }


def machine_columns(result: Result) -> Columns:
    """What is known of every machine."""
    return {
        "machine": list(range(len(result.machine_kind))),
        "kind": list(result.machine_kind),
        "home_pool": [Pool(pool).name.lower() for pool in result.home_pool],
        **{name: _values(getattr(result, name)) for name in _MACHINE_FIELDS},
    }


def _values(column: NDArray[Any]) -> list[Any]:
    values: list[Any] = column.tolist()
    if column.dtype.kind == "f":
        for i in np.flatnonzero(np.isnan(column)):
            values[i] = None
    return values


def write_table(columns: Columns, path: Path) -> None:
    """Write the columns in the format that the suffix of ``path`` names.

    Raises TableFileError for any other suffix, or when pyarrow is missing.
    """
    writer = _WRITERS.get(path.suffix.lower())
    if writer is None:
        raise TableFileError(
            f"{path}: the suffix {path.suffix!r} is no table format; use {', '.join(_WRITERS)}"
        )
    writer(columns, path)


def _write_csv(columns: Columns, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows(chain([list(columns)], _rows(columns)))


def _write_jsonl(columns: Columns, path: Path) -> None:
    encoder = msgspec.json.Encoder()
    with path.open("wb") as file:
        for row in _rows(columns):
            file.write(encoder.encode(dict(zip(columns, row, strict=True))) + b"\n")


def _rows(columns: Columns) -> Iterator[tuple[Any, ...]]:
    return zip(*columns.values(), strict=True)


def _write_parquet(columns: Columns, path: Path) -> None:
    try:
        arrow = import_module("pyarrow")
        parquet = import_module("pyarrow.parquet")
    except ImportError as missing:
        raise TableFileError(
            f"{path}: .parquet needs pyarrow; pip install 'splitwise-llm[report]', or use .csv"
        ) from missing
    parquet.write_table(arrow.table(columns), path)


_WRITERS: Final[dict[str, Callable[[Columns, Path], None]]] = {
    ".parquet": _write_parquet,
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
}
