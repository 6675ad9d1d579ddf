"""Everything the event loop reads and writes: records a machine and a request, slots, events.

Arrays of records, whose numbers are all of 64 bits: a function is compiled anew for every type
that it is called with. A machine's decodes lie in its row of ``slots``: the first ``active`` of
``started`` slots take part in the running iteration, the others were preempted by prompts and keep
their cache.
"""

from enum import IntEnum
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.cluster_state import ClusterState
from splitwise.scheduling.ranking import Ranking
from splitwise.simulation.by_reference import by_reference

NONE: Final = -1
MAX_SLOTS: Final = 512
OCCUPANCY_BINS: Final = MAX_SLOTS + 2

IDLE: Final = -1
PROMPT: Final = 0
DECODE: Final = 1
MIXED: Final = 2


class Phase(IntEnum):
    """Where a request is, and so whose memory it holds.

    ``AWAY``: not arrived, or no machine was up. ``QUEUED``: nothing. ``PROMPT`` and ``SENDING``:
    its prompt on the prompt machine, and what is reserved for it on the token machine. ``READY``
    and ``DECODE``: all its cache on the token machine. ``DONE``: nothing.

    Where the cache grows, a request that is ``AWAY`` and has arrived stands in the cluster's line,
    and one that is ``ARRIVED`` has its cache on a token machine that has not looked yet.
    """

    AWAY = 0
    QUEUED = 1
    PROMPT = 2
    SENDING = 3
    ARRIVED = 4
    READY = 5
    DECODE = 6
    DONE = 7


MACHINE = np.dtype(
    [
        ("kind", np.int64),
        ("running", np.int64),  # IDLE, PROMPT, DECODE or MIXED
        ("queue_head", np.int64),  # prompts, first come, first served
        ("queue_tail", np.int64),
        ("batch_head", np.int64),  # prompts of the running iteration
        ("batch_prompts", np.int64),
        ("batch_tokens", np.int64),
        ("chunk_tokens", np.int64),  # of the queue's head, when prompts are chunked
        ("prompt_skips", np.int64),  # iterations in a row without any, though some wait
        ("ready_head", np.int64),  # decodes that have no slot yet
        ("ready_tail", np.int64),
        ("expected_head", np.int64),  # requests that wait for blocks, where the cache grows
        ("expected_tail", np.int64),
        ("blocked_head", np.int64),  # machines whose next prompt waits for room here
        ("blocked_tail", np.int64),
        ("blocked_next", np.int64),  # in the list of the machine this one waits for
        ("blocked_on", np.int64),
        ("started", np.int64),
        ("active", np.int64),
        ("iteration", np.int64),  # decode iterations ended so far
        ("next_finish", np.int64),
        ("start_s", np.float64),
        ("iterations", np.int64),  # of the running segment
        ("first_s", np.float64),  # time of the segment's first iteration
        ("growth_s", np.float64),  # what each further iteration adds to that
        ("is_cut", np.bool_),
        ("has_freed", np.bool_),  # since it was last looked who of the expected gets blocks
        ("starting", np.int64),  # prompts that began, of which the cluster has not been told
        ("context_tokens", np.int64),  # cache of the active slots
        ("memory_tokens", np.int64),  # cache really in use
        ("peak_memory_tokens", np.int64),
        ("busy_s", np.float64),
        ("prompt_busy_s", np.float64),
        ("decode_busy_s", np.float64),
        ("mixed_busy_s", np.float64),
        ("energy_joules", np.float64),
        ("prompt_tokens_done", np.int64),
        ("tokens_out", np.int64),
        ("egress_free_s", np.float64),
        ("ingress_free_s", np.float64),
        ("down_since_s", np.float64),
        ("down_s", np.float64),
    ],
    align=True,
)

REQUEST = np.dtype(
    [
        ("arrival_s", np.float64),
        ("prompt_tokens", np.int64),  # of this attempt: with the tokens of earlier ones
        ("output_tokens", np.int64),  # still to come
        ("done_tokens", np.int64),  # of the prompt, when it is chunked
        ("held_tokens", np.int64),  # of cache, on its token machine
        ("prompt_held_tokens", np.int64),  # of cache, on its prompt machine, if it is another
        ("is_expected", np.int64),  # whether it waits for blocks on its token machine
        ("expected_next", np.int64),  # of those that wait for blocks there
        ("next", np.int64),  # in whichever queue holds the request
        ("prompt_machine", np.int64),
        ("token_machine", np.int64),
        ("preemptions", np.int64),
        ("attempts", np.int64),
        ("order", np.float64),  # the policy's word on one that waits and never began
        ("passed_tokens", np.int64),  # of those that were placed before it while it had no room
        ("is_parked", np.bool_),  # whether it waits apart for a machine that could hold it
        ("phase", np.int8),
        ("status", np.int8),
        ("reason", np.int8),
        ("queued_s", np.float64),  # when it came to its prompt machine
        ("prompt_start_s", np.float64),
        ("attempt_start_s", np.float64),  # of the prompt, in this attempt
        ("first_token_s", np.float64),
        ("last_token_s", np.float64),  # before the present token phase
        ("transfer_start_s", np.float64),
        ("transfer_end_s", np.float64),
        ("decode_start_s", np.float64),
        ("finish_s", np.float64),
        ("max_tbt_s", np.float64),
    ],
    align=True,
)


SLOT = np.dtype(
    [
        ("request", np.int64),
        ("skips", np.int64),  # iterations in a row that went without this decode
        ("finish", np.int64),  # number of the machine iteration that makes its last token
        ("last_s", np.float64),  # when its latest token came out
        ("gap_s", np.float64),  # the longest time between two of its tokens
    ],
    align=True,
)

KIND = np.dtype(
    [
        ("idle_watts", np.float64),
        ("mixed_factor", np.float64),
        ("kv_bytes_per_token", np.float64),
        ("layers", np.int64),
        ("link_bytes_per_s", np.float64),
        ("link_latency_s", np.float64),
    ]
)
BY_TOKENS = np.dtype([("prompt_s", np.float64), ("watts", np.float64)])
BY_DECODES = np.dtype([("decode_s", np.float64), ("context_s", np.float64), ("watts", np.float64)])
TRANSFER = np.dtype([("time_s", np.float64), ("request", np.int64)])
PROGRESS = np.dtype(
    [
        ("outages", np.int64),  # begins and ends that have happened
        ("waiting", np.int64),  # requests that have no machine
        ("in_line", np.int64),  # of them, where the cache grows
        ("starting", np.int64),  # prompts that began, of which the cluster has not been told
        ("turn", np.int64),  # up to which machine those that end something now had their turn
    ]
)
RUNNING = np.dtype(
    [
        ("request", np.int64),
        ("rank", np.int64),  # who goes first if there is too little
        ("needed_tokens", np.int64),  # of cache, for its next token
        ("held_tokens", np.int64),
    ]
)
OUTAGE = np.dtype([("time_s", np.float64), ("machine", np.int64), ("goes_up", np.int32)])
SEGMENT = np.dtype(
    [
        ("machine", np.int64),
        ("kind", np.int8),
        ("start_s", np.float64),
        ("end_s", np.float64),
        ("prompts", np.int64),
        ("decodes", np.int64),
        ("iterations", np.int64),
    ],
    align=True,
)
ROLE_CHANGE = np.dtype(
    [("time_s", np.float64), ("machine", np.int64), ("pool", np.int8)], align=True
)
SAMPLE = np.dtype(
    [
        ("time_s", np.float64),
        ("waiting_prompts", np.int64),
        ("running_decodes", np.int64),
        ("kv_tokens", np.int64),
    ]
)


class Kinds(NamedTuple):
    """What the machine kinds can do; row k is kind k.

    ``by_tokens`` is looked up by the tokens of an iteration with prompts, ``by_decodes`` by the
    decodes of an iteration; ``context_s`` is added for each token of context.
    """

    fixed: NDArray[np.void]
    by_tokens: NDArray[np.void]
    by_decodes: NDArray[np.void]


class Rules(NamedTuple):
    """The numbers of ``simulate.Options`` that compiled code reads.

    Caches are counted in blocks of ``block_tokens``, 1 where they are promised; no machine's is
    larger than ``largest_tokens``. A request that is
    ready for its token phase counts as ``ready_waits`` in a machine's queue. ``policy_composes``:
    the policy has a say in which prompts go into a batch, and is asked.

    ``cache_grows`` is True or None. None has a type of its own, so that code compiled for it leaves
    out all that serves growing caches: the usual simulation does not pay for it.
    """

    queue_threshold_tokens: int
    batch_tokens: int
    batch_requests: int
    max_preemptions: int
    change_roles: bool
    chunk_prompts: bool
    policy_composes: bool
    overlap: bool
    share_links: bool
    overlap_from_tokens: int
    cache_grows: bool | None
    block_tokens: int
    largest_tokens: int
    ready_waits: int
    retry_s: float
    sample_every_s: float


class Transfers(NamedTuple):
    """A binary heap of what happens on links: ``size[0]`` entries, the earliest at index 0."""

    size: NDArray[np.int64]
    heap: NDArray[np.void]


WRITTEN = np.dtype([("segments", np.int64), ("samples", np.int64), ("role_changes", np.int64)])


class Log(NamedTuple):
    """What the timeline shows; ``written`` [1] counts what is written so far. ``pool`` is where
    each machine stood when that was last looked at."""

    written: NDArray[np.void]
    segments: NDArray[np.void]
    samples: NDArray[np.void]
    pool_sizes: NDArray[np.int64]
    role_changes: NDArray[np.void]
    pool: NDArray[np.int8]


class Scratch(NamedTuple):
    """What is written and read within one step: the queue's first prompts, decodes in another
    order, and, where the cache grows, those that run on a machine and those that stand ``aside``
    while others are tried (``line``)."""

    lengths: NDArray[np.int64]
    order: NDArray[np.int64]
    slots: NDArray[np.void]
    running: NDArray[np.void]
    aside: NDArray[np.int64]


@by_reference
class State(NamedTuple):
    """One simulation. ``progress`` [1]; ``outages`` are machines that go down or up, in order of
    time; ``policy`` is ``policy_calls.Calls``; ``line`` is the cluster's, a heap of requests."""

    cluster: ClusterState
    policy: Any
    kinds: Kinds
    rules: Rules
    machines: NDArray[np.void]
    requests: NDArray[np.void]
    slots: NDArray[np.void]
    scratch: Scratch
    occupancy_s: NDArray[np.float64]
    ends: Ranking  # of one row: when each machine's segment is over
    transfers: Transfers
    line: NDArray[np.int64]
    progress: NDArray[np.void]
    outages: NDArray[np.void]
    log: Log
