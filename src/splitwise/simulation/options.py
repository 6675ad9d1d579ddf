"""What a simulation is asked: a load, a cluster, how it is run, and which machines go down."""

from dataclasses import dataclass
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

from splitwise.hardware.iteration_times import IterationTimes
from splitwise.scheduling.batching import BATCH_REQUESTS, MAX_PREEMPTIONS, PROMPT_BATCH_TOKENS
from splitwise.scheduling.placement import PROMPT_QUEUE_THRESHOLD_TOKENS
from splitwise.scheduling.policies.policy import DEFAULT, Policy
from splitwise.scheduling.pool import Pool
from splitwise.simulation.state import MAX_SLOTS

CACHES: Final = ("promised", "grown")
BLOCK_TOKENS: Final = 16
"""The block of most engines."""


class Load(Protocol):
    """What the simulator asks of a workload: ``workload.Requests``, sorted by arrival."""

    @property
    def arrival_s(self) -> NDArray[np.float64]: ...
    @property
    def prompt_tokens(self) -> NDArray[np.int64]: ...
    @property
    def output_tokens(self) -> NDArray[np.int64]: ...


@dataclass(frozen=True)
class MachineGroup:
    """``count`` equal machines with one home pool; ``name`` is what reports call them."""

    name: str
    times: IterationTimes
    pool: Pool
    count: int


@dataclass(frozen=True)
class Options:
    """How the cluster is run.

    A decode that ``max_preemptions`` iterations in a row went without goes before prompts; 0
    switches this ageing off. ``overlap`` sends layer by layer while prompts of
    at least ``overlap_from_tokens`` are computed (Splitwise, section IV.C). ``retry_s`` is how
    often a full token machine is asked again for room; 0: a prompt starts with all room reserved.
    ``timeline_segments`` bounds the segments kept for the timeline.

    ``cache`` is what is known of a request's cache as it is placed. ``"promised"``: all of it, as
    if the length of the output were known. ``"grown"``: the prompt and a token, in whole blocks of
    ``block_tokens``, as a server's cluster scheduler knows it. Requests then wait in one line for
    machines with room, for cache and in a batch. Where a token machine's blocks run out as outputs
    grow, it preempts the youngest request, which returns to the head of the line with its tokens so
    far in its prompt.

    ``rank_by_size`` sends tokens to the machine with the most room; without it, to the one that
    holds least. Among machines of one size it is the same.

    ``policy`` makes the decisions; ``load_policy`` reads one from a file.
    """

    queue_threshold_tokens: int = PROMPT_QUEUE_THRESHOLD_TOKENS
    batch_tokens: int = PROMPT_BATCH_TOKENS
    batch_requests: int = BATCH_REQUESTS
    max_preemptions: int = MAX_PREEMPTIONS
    change_roles: bool = True
    chunk_prompts: bool = False
    overlap: bool = True
    overlap_from_tokens: int = 512
    share_links: bool = True
    retry_s: float = 0.0
    timeline_segments: int = 0
    cache: str = "promised"
    block_tokens: int = BLOCK_TOKENS
    rank_by_size: bool = True
    policy: Policy = DEFAULT

    def __post_init__(self) -> None:
        for name in ("queue_threshold_tokens", "batch_tokens", "batch_requests", "block_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.batch_requests > MAX_SLOTS:
            raise ValueError(f"batch_requests is {self.batch_requests}; at most {MAX_SLOTS}")
        for name in ("max_preemptions", "retry_s", "timeline_segments"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        if self.cache not in CACHES:
            raise ValueError(f"cache is {self.cache!r}; it must be one of {', '.join(CACHES)}")
        if self.cache == "grown" and self.retry_s > 0:
            raise ValueError(
                f"retry_s is {self.retry_s:g}, but a cache that is grown is reserved before it is "
                "sent; leave retry_s at 0, or cache at 'promised'"
            )


@dataclass(frozen=True)
class Outage:
    """A machine, by its place in the cluster's groups, is down from ``down_s`` to ``up_s``."""

    machine: int
    down_s: float
    up_s: float = np.inf

    def __post_init__(self) -> None:
        if not 0 <= self.down_s < self.up_s:
            raise ValueError(
                f"outage: from {self.down_s:g} to {self.up_s:g} s; it must begin at 0 or later "
                "and end after that"
            )


PUBLISHED_2024: Final = Options(
    overlap=False, share_links=False, retry_s=1.0, max_preemptions=0, rank_by_size=False
)
"""The rules of the authors' public simulator, to be used with the profile of the same name.

Its guard against starvation is switched off by every fresh arrival, so that some of its requests
are preempted 80 times; hence no ageing here. Its links are 200 GiB/s for any pair.
"""


RULES: Final = {"default": Options(), "published-2024": PUBLISHED_2024}


def rules_named(name: str) -> Options:
    """The options that go by a name; ValueError if none do."""
    if name not in RULES:
        raise ValueError(f"rules is {name!r}; it must be one of {', '.join(RULES)}")
    return RULES[name]
