"""Workers that ended are started again, with growing delays, for as long as the gateway runs.

1. A worker's end is told by the launcher, whatever else is under way.
2. It waits (``RestartDelay``), is started, for as often as that fails, and is to join the cluster.
3. One that neither joins nor ends in time is killed, which is an end: 1.
"""

import asyncio
import logging
import math
import subprocess
import time
from collections.abc import Callable
from typing import Final

from splitwise.launch.launcher import Launcher, WorkerSpec

log = logging.getLogger(__name__)

RESTART_DELAY_S: Final = 1.0
LONGEST_RESTART_DELAY_S: Final = 20.0
"""Less than requests wait for a machine when there is none."""
STABLE_S: Final = 10.0
"""A worker that has run for so long is started again without delay: it ends too rarely for that to
keep a host busy, and one that does harm in that time is kept out by its cluster (quarantine)."""


class Supervisor:
    """Watches the workers of ``launcher``; ``is_out_of_service`` says who is to stay away,
    ``is_connected`` who has joined the cluster, for which each has ``join_limit_s``."""

    def __init__(
        self,
        launcher: Launcher,
        specs: dict[str, WorkerSpec],
        is_out_of_service: Callable[[str], bool],
        is_connected: Callable[[str], bool],
        join_limit_s: float,
    ) -> None:
        self._launcher = launcher
        self._specs = specs
        self._is_out_of_service = is_out_of_service
        self._is_connected = is_connected
        self._join_limit_s = join_limit_s
        self._starts = dict.fromkeys(specs, 0)
        self._delays = {machine_id: RestartDelay() for machine_id in specs}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as restarts:
            while True:
                machine_id, how = await self._launcher.wait_for_exit()
                restarts.create_task(self._revive(machine_id, f"ended ({how})"))

    async def _revive(self, machine_id: str, what: str) -> None:
        if not await self._start_again(machine_id, what):
            return
        self._starts[machine_id] += 1
        start = self._starts[machine_id]
        await asyncio.sleep(self._join_limit_s)
        if self._starts[machine_id] == start and not self._is_connected(machine_id):
            log.error(
                "worker %s has not joined in %g s and is killed", machine_id, self._join_limit_s
            )
            self._launcher.kill(machine_id)

    async def _start_again(self, machine_id: str, what: str) -> bool:
        """Until it works, for the host may be out of processes or memory, too; False where it is
        not wanted any more."""
        while not self._is_out_of_service(machine_id):
            delay_s = self._delays[machine_id].next_s(time.monotonic())
            log.error("worker %s %s; it is started again in %g s", machine_id, what, delay_s)
            await asyncio.sleep(delay_s)
            if self._is_out_of_service(machine_id):
                break
            try:
                await self._launcher.start([self._specs[machine_id]])
                return True
            except (OSError, subprocess.SubprocessError) as error:
                what = f"could not be started ({error})"
            except Exception as error:  # a bug in one start must not end the watch over all others
                log.exception("starting worker %s failed", machine_id)
                what = f"could not be started ({type(error).__name__}: {error})"
        log.info("worker %s was drained and %s", machine_id, what)
        return False


class RestartDelay:
    """How long a worker that ended has to wait: the longer, the more often it ends in a row."""

    def __init__(self) -> None:
        self._delay_s = 0.0
        self._ended_s = -math.inf

    def next_s(self, now_s: float) -> float:
        """Its delay, now that it has ended."""
        if now_s - self._ended_s > STABLE_S + self._delay_s:
            self._delay_s = 0.0
        delay_s = self._delay_s
        self._ended_s = now_s
        self._delay_s = min(max(2 * delay_s, RESTART_DELAY_S), LONGEST_RESTART_DELAY_S)
        return delay_s
