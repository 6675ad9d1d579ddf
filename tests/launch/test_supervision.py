"""Who is started again, and when."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from splitwise.launch.launcher import Launcher, WorkerSpec
from splitwise.launch.supervision import (
    LONGEST_RESTART_DELAY_S,
    RESTART_DELAY_S,
    STABLE_S,
    RestartDelay,
    Supervisor,
)
from splitwise.scheduling.pool import Pool

SPECS = {name: WorkerSpec(name, Pool.MIXED, 1, [], []) for name in "abc"}


class Host(Launcher):
    """Workers that end when they are told to; it may refuse to start any."""

    def __init__(self, refusals: list[Exception]) -> None:
        super().__init__()
        self.started: list[str] = []
        self.refusals = refusals
        self._ends: dict[str, asyncio.Future[str]] = {}

    async def start(self, specs: list[WorkerSpec]) -> None:
        for spec in specs:
            if self.refusals:
                raise self.refusals.pop(0)
            self.started.append(spec.machine_id)
            self._ends[spec.machine_id] = asyncio.get_running_loop().create_future()
            self._watch(spec.machine_id, self._life(spec.machine_id))

    async def _life(self, machine_id: str) -> str:
        return await self._ends[machine_id]

    def kill(self, machine_id: str) -> None:
        self._ends[machine_id].set_result("killed")

    def fail(self, machine_id: str) -> None:
        self._ends[machine_id].set_exception(RuntimeError("a bug"))

    async def stop(self) -> None:
        raise AssertionError("nobody stops a launcher here")


@asynccontextmanager
async def supervised(
    is_drained: Callable[[str], bool] = lambda _: False,
    is_connected: Callable[[str], bool] = lambda _: True,
    join_limit_s: float = 60.0,
) -> AsyncIterator[tuple[Host, asyncio.Task[None]]]:
    """A host that runs all of ``SPECS``, and the supervision over it."""
    host = Host([])
    await host.start(list(SPECS.values()))
    supervisor = Supervisor(host, SPECS, is_drained, is_connected, join_limit_s)
    supervision = asyncio.create_task(supervisor.run())
    await asyncio.sleep(0.05)  # It waits for an end by now.
    try:
        yield host, supervision
        assert not supervision.done()
    finally:
        supervision.cancel()


async def until_said(words: str, caplog: pytest.LogCaptureFixture) -> None:
    async with asyncio.timeout(20):
        while words not in caplog.text:
            await asyncio.sleep(0.01)


async def until(wanted: list[str], host: Host) -> None:
    async with asyncio.timeout(20):
        while host.started != wanted:
            await asyncio.sleep(0.01)


async def test_who_ended_is_started_again_also_on_a_host_without_room_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with supervised(is_drained=lambda name: name == "b") as (host, _):
        host.refusals = [BlockingIOError(11, "no more processes"), RuntimeError("no more threads")]
        host.kill("a")
        host.kill("b")
        await until([*"abc", "a"], host)
        host.kill("c")
        await until([*"abc", "a", "c"], host)
    assert "worker b was drained" in caplog.text
    assert "worker a could not be started ([Errno 11] no more processes)" in caplog.text
    assert "worker a could not be started (RuntimeError: no more threads)" in caplog.text


async def test_a_second_end_of_one_worker_is_noticed_while_nobody_else_ends() -> None:
    async with supervised() as (host, _):
        host.kill("a")
        await until([*"abc", "a"], host)
        host.kill("a")
        await until([*"abc", "a", "a"], host)


async def test_an_end_is_noticed_while_another_worker_waits_to_be_started_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with supervised() as (host, _):
        host.kill("a")
        await until([*"abc", "a"], host)
        host.kill("a")
        await until_said("worker a ended (killed); it is started again in 1 s", caplog)
        host.kill("b")
        await until([*"abc", "a", "b"], host)
        host.kill("b")
        host.kill("c")
        await until([*"abc", "a", "b", "c", "a", "b"], host)


async def test_ends_at_one_moment_and_before_anybody_watched_are_all_noticed() -> None:
    host = Host([])
    await host.start(list(SPECS.values()))
    for name in SPECS:
        host.kill(name)
    await asyncio.sleep(0.05)
    supervisor = Supervisor(host, SPECS, lambda _: False, lambda _: True, 60.0)
    supervision = asyncio.create_task(supervisor.run())
    await until([*"abc", *"abc"], host)
    supervision.cancel()


async def test_a_failing_watch_is_heard_of_and_ends_no_other(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with supervised() as (host, _):
        host.fail("a")
        await until([*"abc", "a"], host)
        host.kill("b")
        await until([*"abc", "a", "b"], host)
    assert "the watch of worker a failed" in caplog.text
    assert "worker a ended (its watch failed: a bug)" in caplog.text


async def test_who_is_drained_while_waiting_to_be_started_again_is_not(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    drained: set[str] = set()
    async with supervised(drained.__contains__) as (host, _):
        host.kill("a")
        await until([*"abc", "a"], host)
        host.kill("a")
        await until_said("it is started again in 1 s", caplog)
        drained.add("a")
        await until_said("worker a was drained", caplog)
        assert host.started == [*"abc", "a"]


async def test_who_is_started_again_and_never_joins_is_killed_and_started_again() -> None:
    connected = {"b", "c"}
    async with supervised(is_connected=connected.__contains__, join_limit_s=0.2) as (host, _):
        host.kill("a")
        await until([*"abc", "a", "a"], host)  # a worker that hangs as it starts
        connected.add("a")
        host.kill("b")
        await until([*"abc", "a", "a", "b"], host)
        await asyncio.sleep(0.5)
        assert host.started == [*"abc", "a", "a", "b"]


def test_the_delay_doubles_to_a_limit_and_is_forgotten_by_a_stable_worker() -> None:
    delay = RestartDelay()
    now_s, delays = 0.0, []
    for _ in range(10):
        delays.append(delay.next_s(now_s))
        now_s += delays[-1] + 1
    assert delays[:4] == [0, RESTART_DELAY_S, 2 * RESTART_DELAY_S, 4 * RESTART_DELAY_S]
    assert delays[-1] == LONGEST_RESTART_DELAY_S
    assert delay.next_s(now_s + 2 * STABLE_S) == 0
