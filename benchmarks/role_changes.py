"""What the simulator makes of a trace, and how a server's role changes compare with that.

It goes by the server's rules for a cache that grows, with the times that a server was measured to
take. Two events a millisecond apart may come the other way round in a server, whose times vary by
as much, and all that follows is then another story. So the simulator runs the trace ``VARIANTS``
times more, each time with other lags of arrivals and speeds of machines, no further off than a
server's are. A server that goes by the same rules has one of these stories; how many there are, and
how many changes all of them begin with, says how much the trace hangs on milliseconds.
"""

from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any, Final

import numpy as np

from common import percentile
from splitwise.engine.null.engine import BLOCK_TOKENS
from splitwise.hardware.iteration_times import MAX_DECODES, IterationTimes
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import MachineGroup, Options, simulate
from splitwise.workload import Requests

CACHE_TOKENS: Final = 22_096
"""Ten requests of the token-heavy phase, whether their outputs are counted beforehand or not."""
TOKEN_BYTES: Final = 16
QUEUE_THRESHOLD: Final = 8192
VARIANTS: Final = 500
MAX_LAG_S: Final = 5e-3
"""From a client's clock to the decision, on a host that others use too."""
MAX_OFF: Final = 1e-3
"""How far a machine's mean times are from those measured, as a share."""


@dataclass
class RoleChange:
    """A machine, by its place in the cluster, moved into a pool at a second of the trace."""

    time_s: float
    machine: int
    pool: str


@dataclass(frozen=True)
class Measured:
    """What a machine takes, its own overhead included."""

    prompt_tokens: list[int]
    prompt_s: list[float]
    iteration_s: float

    def off_by(self, prompt: float, iteration: float) -> "Measured":
        """The same with times longer by these shares."""
        prompt_s = [one_s * (1 + prompt) for one_s in self.prompt_s]
        return Measured(self.prompt_tokens, prompt_s, self.iteration_s * (1 + iteration))


def iteration_times(measured: Measured) -> IterationTimes:
    """As the simulator takes them."""
    decode_s = np.full(MAX_DECODES + 1, measured.iteration_s)
    decode_s[0] = 0
    return IterationTimes(
        prompt_tokens=np.array([0.0, *measured.prompt_tokens]),
        prompt_s=np.array([0.0, *measured.prompt_s]),
        decode_s=decode_s,
        decode_s_per_context_token=np.zeros(MAX_DECODES + 1),
        mixed_factor=1.0,
        kv_capacity_tokens=CACHE_TOKENS,
        kv_bytes_per_token=TOKEN_BYTES,
        layers=2,
        power_tokens=np.array([1.0]),
        prompt_watts=np.array([0.0]),
        decode_watts=0.0,
        idle_watts=0.0,
        provisioned_watts=0.0,
        dollars_per_hour=0.0,
        gpus=1,
        link_bytes_per_s=1e9,
        link_latency_s=1e-3,
    )


def simulated_changes(
    trace: Requests, homes: list[Pool], machines: list[Measured]
) -> list[RoleChange]:
    """What the simulator does with the same machines in the same order."""
    groups = [
        MachineGroup(str(number), iteration_times(measured), home, 1)
        for number, (home, measured) in enumerate(zip(homes, machines, strict=True))
    ]
    options = Options(
        queue_threshold_tokens=QUEUE_THRESHOLD, cache="grown", block_tokens=BLOCK_TOKENS
    )
    changes = simulate(trace, groups, options).changes
    rows = zip(changes.time_s.tolist(), changes.machine.tolist(), changes.pool, strict=True)
    return [RoleChange(at_s, machine, Pool(pool).label) for at_s, machine, pool in rows]


Story = tuple[tuple[int, str], ...]


def story(changes: list[RoleChange]) -> Story:
    """The changes without their times."""
    return tuple((one.machine, one.pool) for one in changes)


def variants(trace: Requests, homes: list[Pool], measured: Measured) -> Counter[Story]:
    """What else may happen within the accuracy of a server's times, and how often it does."""
    draw = np.random.default_rng(0)
    found: Counter[Story] = Counter()
    for _ in range(VARIANTS):
        late = trace.arrival_s + draw.uniform(0, MAX_LAG_S, len(trace))
        order = np.argsort(late)
        shifted = Requests(late[order], trace.prompt_tokens[order], trace.output_tokens[order])
        machines = [measured.off_by(*draw.uniform(-MAX_OFF, MAX_OFF, 2)) for _ in homes]
        found[story(simulated_changes(shifted, homes, machines))] += 1
    return found


def among_variants(served: list[RoleChange], found: Counter[Story]) -> dict[str, Any]:
    """Whether the server's story is one that the simulator tells, too."""
    stories = list(found)
    columns = zip(*stories, strict=False)
    shortest = min(map(len, stories))
    sure = next((i for i, column in enumerate(columns) if len(set(column)) > 1), shortest)
    return {
        "variants": VARIANTS,
        "stories": len(stories),
        "same_as_served": found[story(served)],
        "sure_prefix": sure,
    }


def compare(served: list[RoleChange], simulated: list[RoleChange]) -> dict[str, Any]:
    """How far two lists of role changes are the same, in order, and how far apart in time."""
    ours, theirs = story(served), story(simulated)
    pairs = list(zip(ours, theirs, strict=False))
    prefix = next((i for i, (a, b) in enumerate(pairs) if a != b), len(pairs))
    blocks = SequenceMatcher(None, ours, theirs, autojunk=False).get_matching_blocks()
    apart_s = [
        abs(served[block.a + i].time_s - simulated[block.b + i].time_s)
        for block in blocks
        for i in range(block.size)
    ]
    return {
        "served": len(ours),
        "simulated": len(theirs),
        "is_same_order": ours == theirs,
        "common_prefix": prefix,
        "in_common": len(apart_s),
        "apart_ms": {f"p{p}": percentile(apart_s, p) * 1e3 for p in (50, 100)} if apart_s else {},
        "served_changes": [(round(one.time_s, 3), one.machine, one.pool) for one in served],
        "simulated_changes": [(round(one.time_s, 3), one.machine, one.pool) for one in simulated],
    }
