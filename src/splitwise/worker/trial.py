"""After an iteration that failed: work of the machine's own, by which it tells a sick engine from a
request that it cannot run, and what is tried by itself (the steps: ``scheduling.isolation``).

1. ``try_engine`` right after the failure. If the engine is sick nothing else is tried.
2. ``Trials.after`` says who failed for good, and keeps the others.
3. Those come one group an iteration (``Trials.next``), before any prompt.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

from splitwise.engine.base import Engine, Work
from splitwise.engine.sampling import SamplingParams
from splitwise.scheduling.isolation import TRIAL_PAUSES_S, halves
from splitwise.worker.task import Task

log = logging.getLogger(__name__)


class Trials:
    """Decodes of iterations that failed, each group to be run again by itself."""

    def __init__(self) -> None:
        self._groups: deque[Sequence[Task]] = deque()

    def after(self, prompts: Sequence[Task], decodes: Sequence[Task]) -> Sequence[Task]:
        """An iteration of a sound engine failed; returns those who are not tried again."""
        if prompts:
            self._groups.append(decodes)
            return prompts
        if len(decodes) == 1:
            return decodes
        self._groups.extendleft(halves(decodes))
        return []

    def next(self, is_here: Callable[[Task], bool]) -> Sequence[Task]:
        """The decodes that are to be tried next, those of them who still run; none if there are no
        such."""
        while self._groups:
            group = [task for task in self._groups.popleft() if is_here(task)]
            if group:
                return group
        return []


class EngineFailed(Exception):
    """The engine fails whatever it is given; the process is to end, so that it is made anew."""


def try_engine(engine: Engine, block: int, failure: str) -> None:
    """Run an iteration of a single token, in ``block``, after one that ended in ``failure``.

    Raises:
        EngineFailed: it fails as well, time after time.
    """
    work = Work([0], 0, [block], SamplingParams(temperature=0), [0], 1)
    for pause_s in TRIAL_PAUSES_S:
        time.sleep(pause_s)
        try:
            engine.step([work])
        except Exception:
            log.exception("the engine failed a trial of one token")
        else:
            return
    raise EngineFailed(
        f"the engine failed ({failure}), and then {len(TRIAL_PAUSES_S)} trials of one token; "
        "this worker ends: start it again, and if that does not help look at its device"
    )
