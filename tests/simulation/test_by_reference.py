"""Named tuples that compiled code takes as one pointer: what it reads and writes is the same."""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from splitwise.simulation.by_reference import by_reference
from splitwise.simulation.compiled import compiled, inlined, say_if_it_compiles


class Inner(NamedTuple):
    rows: NDArray[np.int64]
    factor: float


@by_reference
class Outer(NamedTuple):
    inner: Inner
    count: NDArray[np.int64]
    is_on: bool
    nothing: None


@inlined
def add(inner: Any, i: int, by: int) -> None:
    inner.rows[i, 1] += by


@compiled
def run(outer: Any, times: int) -> float:
    if outer.nothing is not None or not outer.is_on:
        return -1.0
    for _ in range(times):
        before = outer.inner.rows[2, 1]
        add(outer.inner, 2, 3)  # through the pointer to the tuple within
        outer.count[0] += outer.inner.rows[2, 1] - before
    return float(outer.count[0] * outer.inner.factor)


def new() -> Outer:
    return Outer(Inner(np.zeros((4, 2), np.int64), 0.5), np.zeros(1, np.int64), True, None)


def test_compiled_and_plain_code_do_the_same() -> None:
    ours, plain = new(), new()
    assert run(ours, 7) == run.py_func(plain, 7) == 10.5  # type: ignore[attr-defined]
    assert ours.inner.rows.tolist() == plain.inner.rows.tolist()
    assert ours.count.tolist() == [21]


def test_each_call_reads_the_tuple_it_is_given() -> None:
    one, other = new(), new()
    run(one, 1)
    run(other._replace(is_on=True), 2)
    assert (one.count[0], other.count[0]) == (3, 6)
    assert run(one._replace(is_on=False), 5) == -1.0 and one.count[0] == 3
    assert run(one._replace(inner=other.inner), 1) == 3.0 and other.inner.rows[2, 1] == 9


def test_a_terminal_is_told_once_why_the_first_run_takes_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("splitwise.simulation.compiled._CACHE_FOLDER", str(tmp_path / "new"))
    say_if_it_compiles()
    assert capsys.readouterr().err == ""  # no terminal
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    say_if_it_compiles()
    assert capsys.readouterr().err.startswith("compiling the simulator")
    (tmp_path / "new" / "advance.nbc").touch()
    say_if_it_compiles()
    assert capsys.readouterr().err == ""
