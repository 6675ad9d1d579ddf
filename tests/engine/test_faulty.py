"""An engine that is made to fail from outside."""

import threading
from pathlib import Path

import pytest

from splitwise.engine.base import Work
from splitwise.engine.faulty import FAULTS_VARIABLE, FaultyEngine, InjectedFault, with_faults
from splitwise.engine.null.engine import NullEngine, null_model
from splitwise.engine.sampling import SamplingParams


def work(start: int) -> list[Work]:
    history = [4] * (start + 1)
    return [Work([4], start, [0], SamplingParams(), history, 1)]


def test_it_fails_as_told_for_as_long_as_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = NullEngine(null_model(), 1 << 20)
    assert with_faults(plain, "m") is plain
    monkeypatch.setenv(FAULTS_VARIABLE, str(tmp_path))
    engine = with_faults(plain, "m")
    assert isinstance(engine, FaultyEngine)
    switch = tmp_path / "m"
    well = engine.step(work(0))
    switch.write_text("step\n")
    for start in (0, 1):
        with pytest.raises(InjectedFault, match="says step"):
            engine.step(work(start))
    switch.write_text("prompt")
    with pytest.raises(InjectedFault):
        engine.step(work(0))
    engine.step(work(1))
    switch.write_text("hang")
    thread = threading.Thread(target=engine.step, args=(work(0),))
    thread.start()
    thread.join(0.1)
    assert thread.is_alive()
    switch.unlink()
    thread.join(10)
    assert not thread.is_alive() and engine.step(work(0)) == well
    engine.close()
