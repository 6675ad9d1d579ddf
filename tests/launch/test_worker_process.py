"""What a worker says, however much and whatever, and its end, whoever holds its outputs."""

import asyncio
import io
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from splitwise.launch import launcher
from splitwise.launch.launcher import LocalLauncher, WorkerSpec
from splitwise.launch.lines import LINE_LIMIT_BYTES, Lines
from splitwise.launch.worker_process import WorkerProcess, start_process
from splitwise.scheduling.pool import Pool

LIMIT_S = 30.0
SPEC = WorkerSpec("token-0", Pool.TOKEN, 1, [], [])
HOLD_OUTPUTS = "import subprocess, time; subprocess.Popen(['sleep', '600']{}); "
"""A child that has the worker's outputs and outlives it."""


async def start(code: str) -> WorkerProcess:
    return await start_process([sys.executable, "-uc", code], dict(os.environ))


async def end_of(code: str) -> str:
    async with asyncio.timeout(LIMIT_S):
        return await (await start(code)).until_end()


@asynccontextmanager
async def launched(code: str, patch: pytest.MonkeyPatch) -> AsyncIterator[LocalLauncher]:
    """A launcher whose worker is a script."""
    patch.setattr(launcher, "worker_command", lambda _: [sys.executable, "-uc", code])
    local = LocalLauncher("a key")
    await local.start([SPEC])
    try:
        yield local
    finally:
        async with asyncio.timeout(LIMIT_S):
            await local.stop()


def sleepers() -> set[int]:
    """The processes that ``HOLD_OUTPUTS`` makes, as they are now."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if (folder / "cmdline").read_bytes() == b"sleep\x00600\x00":
                found.add(int(folder.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


@pytest.mark.parametrize("output", ["stdout", "stderr"])
async def test_a_line_of_any_length_is_cut_and_what_follows_is_heard(
    output: str, capfd: pytest.CaptureFixture[str]
) -> None:
    end = await end_of(
        f"import sys; say = sys.{output}.write; say('x' * 2_000_000); say(chr(10) + 'the reason');"
        "sys.exit(3)"
    )
    assert end == "exit code 3: the reason"
    said = capfd.readouterr()
    assert said.out == ""  # which has what the gateway says
    lines = said.err.splitlines()
    assert lines[-1] == "the reason"
    assert lines[-2] == "x" * LINE_LIMIT_BYTES + f" ... (cut at {LINE_LIMIT_BYTES} bytes)"
    assert len(lines) == 2


async def test_output_that_is_no_text_is_passed_on_as_far_as_it_can_be(
    capfd: pytest.CaptureFixture[str],
) -> None:
    end = await end_of(
        "import sys; sys.stdout.buffer.write(bytes(range(256)) * 2000); sys.stdout.flush();"
        "sys.stderr.buffer.write(b'caf\\xc3\\xa9 \\xff no end of line')"
    )
    assert end == "exit code 0: café \ufffd no end of line"
    assert "café" in capfd.readouterr().err


@pytest.mark.parametrize("pause_s", [0, 0.3])
async def test_a_reason_to_end_is_quoted_whatever_libraries_say_after_it(pause_s: float) -> None:
    """In one read of the output, and in the next."""
    code = (
        "import sys, time; print('splitwise: no such thing', file=sys.stderr, flush=True); "
        f"time.sleep({pause_s}); print('nanobind: leaked 3 types!', file=sys.stderr); sys.exit(1)"
    )
    assert await end_of(code) == "exit code 1: splitwise: no such thing"


async def test_the_last_words_are_those_of_standard_error() -> None:
    assert await end_of("print('a'); print(); exit('b')") == "exit code 1: b"
    assert await end_of("print('a'); print(); print()") == "exit code 0: a"
    assert await end_of("") == "exit code 0: no output"
    assert await end_of("import os; os.kill(os.getpid(), 9)") == "signal SIGKILL: no output"
    assert await end_of("import os; os.kill(os.getpid(), 40)") == "signal 40: no output"


async def test_a_worker_that_never_stops_talking_leaves_time_for_others_and_can_be_killed(
    capfd: pytest.CaptureFixture[str],
) -> None:
    process = await start("import os\nwhile True: os.write(2, b'a line\\n' * 10_000)")
    end = asyncio.create_task(process.until_end())
    for _ in range(50):  # turns of the loop: each comes, though output is always there
        await asyncio.sleep(0.01)
    process.kill()
    async with asyncio.timeout(LIMIT_S):
        assert (await end).startswith("signal SIGKILL: ")
    assert set(capfd.readouterr().err.split("\n")[:-2]) == {"a line"}


async def test_a_worker_is_read_from_though_nobody_reads_from_its_parent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    closed = io.StringIO()
    closed.close()
    code = "import sys; sys.stderr.write('x\\n' * 200_000); sys.exit('the reason')"
    monkeypatch.setattr(sys, "stderr", closed)
    assert await end_of(code) == "exit code 1: the reason"


async def test_a_failing_relay_is_heard_of(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(lines: Lines, chunk: bytes) -> list[str]:
        raise RuntimeError("a bug")

    monkeypatch.setattr(Lines, "feed", broken)
    # The worker finds its output closed, instead of waiting for ever to be read from.
    end = await end_of("import os\nfor _ in range(1000): os.write(1, b'x' * 1000)")
    assert end.startswith("exit code 1: ")
    assert "is lost from here on" in caplog.text and "a bug" in caplog.text


@pytest.mark.parametrize("session", ["", ", start_new_session=True"])
async def test_an_end_is_noticed_though_a_child_holds_the_outputs(session: str) -> None:
    before = sleepers()
    end = await end_of(HOLD_OUTPUTS.format(session) + "exit('the reason')")
    assert end == "exit code 1: the reason"
    left = sleepers() - before
    assert len(left) == (1 if session else 0)  # A child of its own group ends with the worker.
    for pid in left:
        os.kill(pid, 9)


@pytest.mark.parametrize("session", ["", ", start_new_session=True"])
async def test_stopping_has_an_end_though_the_worker_stays_and_a_child_holds_the_outputs(
    session: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(launcher, "STOP_LIMIT_S", 0.5)
    before = sleepers()
    code = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    code += HOLD_OUTPUTS.format(session) + "time.sleep(600)"
    async with launched(code, monkeypatch) as local:
        while sleepers() <= before:
            await asyncio.sleep(0.05)
    assert "worker token-0 did not end in time and is killed" in caplog.text
    async with asyncio.timeout(LIMIT_S):
        assert await local.wait_for_exit() == ("token-0", "signal SIGKILL: no output")
    for pid in sleepers() - before:
        assert session
        os.kill(pid, 9)


async def test_what_cannot_be_killed_is_left_behind(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As a process that waits for a device; here the signals do not arrive."""
    monkeypatch.setattr(launcher, "STOP_LIMIT_S", 0.2)
    monkeypatch.setattr(launcher, "KILL_LIMIT_S", 0.2)
    monkeypatch.setattr(WorkerProcess, "terminate", lambda _: None)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(WorkerProcess, "kill", lambda _: None)
        async with launched("import time; time.sleep(600)", monkeypatch) as local:
            pass
        assert "worker token-0 cannot be killed and is left behind" in caplog.text
    local.kill("token-0")
    async with asyncio.timeout(LIMIT_S):
        await local.wait_for_exit()


async def test_an_end_from_before_anybody_asked_is_told_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with launched("exit('first')", monkeypatch) as local, asyncio.timeout(LIMIT_S):
        while local._watches:
            await asyncio.sleep(0.01)
        abandoned = asyncio.create_task(local.wait_for_exit())
        abandoned.cancel()  # as when start-up gives up
        await local.start([SPEC])
        ends = [await local.wait_for_exit() for _ in range(2)]
        assert ends == [("token-0", "exit code 1: first")] * 2
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(local.wait_for_exit(), 0.2)


async def test_a_program_that_is_not_there_leaves_nothing_open() -> None:
    before = os.listdir("/proc/self/fd")
    for _ in range(3):
        with pytest.raises(OSError):
            await start_process(["/no/such/program"], {})
        await asyncio.sleep(0.05)  # for the loop to close what it was told to
    assert len(os.listdir("/proc/self/fd")) <= len(before) + 1  # a watcher of children may be new
