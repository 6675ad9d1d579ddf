"""Work of a machine's own, by which it tells a sick engine from a request that it cannot run."""

import logging
import time

from splitwise.engine.base import Engine, Work
from splitwise.engine.sampling import SamplingParams
from splitwise.scheduling.isolation import TRIAL_PAUSES_S

log = logging.getLogger(__name__)


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
