"""Workers that ended are started again, with growing delays, for as long as the gateway runs."""

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
    """Watches the workers of ``launcher``; ``is_out_of_service`` says who is to stay away."""

    def __init__(
        self,
        launcher: Launcher,
        specs: dict[str, WorkerSpec],
        is_out_of_service: Callable[[str], bool],
    ) -> None:
        self._launcher = launcher
        self._specs = specs
        self._is_out_of_service = is_out_of_service
        self._delays = {machine_id: RestartDelay() for machine_id in specs}

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as restarts:
            while True:
                machine_id, how = await self._launcher.wait_for_exit()
                restarts.create_task(self._start_again(machine_id, f"ended ({how})"))

    async def _start_again(self, machine_id: str, what: str) -> None:
        """Until it works, for the host may be out of processes or memory, too; or until it is not
        wanted any more."""
        while not self._is_out_of_service(machine_id):
            delay_s = self._delays[machine_id].next_s(time.monotonic())
            log.error("worker %s %s; it is started again in %g s", machine_id, what, delay_s)
            await asyncio.sleep(delay_s)
            if self._is_out_of_service(machine_id):
                break
            try:
                return await self._launcher.start([self._specs[machine_id]])
            except (OSError, subprocess.SubprocessError) as error:
                what = f"could not be started ({error})"
            except Exception as error:  # a bug in one start must not end the watch over all others
                log.exception("starting worker %s failed", machine_id)
                what = f"could not be started ({type(error).__name__}: {error})"
        log.info("worker %s was drained and %s", machine_id, what)


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
