"""Who is started again, and when."""

import asyncio
import logging

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

    def __init__(self, refusals: list[OSError]) -> None:
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

    async def stop(self) -> None:
        raise AssertionError("nobody stops a launcher here")


async def until(wanted: list[str], host: Host) -> None:
    async with asyncio.timeout(20):
        while host.started != wanted:
            await asyncio.sleep(0.01)


async def test_who_ended_is_started_again_also_on_a_host_without_room_for_a_while(
    caplog: pytest.LogCaptureFixture,
) -> None:
    host = Host([])
    await host.start(list(SPECS.values()))
    host.refusals = [BlockingIOError(11, "no more processes")]
    supervision = asyncio.create_task(Supervisor(host, SPECS, lambda name: name == "b").run())
    caplog.set_level(logging.INFO)
    host.kill("a")
    host.kill("b")
    await until([*"abc", "a"], host)
    host.kill("c")
    await until([*"abc", "a", "c"], host)
    assert "worker b was drained" in caplog.text
    assert "worker a could not be started ([Errno 11] no more processes)" in caplog.text
    assert not supervision.done()
    supervision.cancel()


def test_the_delay_doubles_to_a_limit_and_is_forgotten_by_a_stable_worker() -> None:
    delay = RestartDelay()
    now_s, delays = 0.0, []
    for _ in range(10):
        delays.append(delay.next_s(now_s))
        now_s += delays[-1] + 1
    assert delays[:4] == [0, RESTART_DELAY_S, 2 * RESTART_DELAY_S, 4 * RESTART_DELAY_S]
    assert delays[-1] == LONGEST_RESTART_DELAY_S
    assert delay.next_s(now_s + 2 * STABLE_S) == 0
