"""What the cluster scheduler and the workers say to each other.

A *task* is one attempt at a request: the cluster scheduler numbers them, and a request that is
taken up again elsewhere is a new task, so that a late word about the old one harms nobody.
"""

from typing import Annotated

import msgspec

from splitwise.engine.base import ModelInfo
from splitwise.engine.sampling import Sample, SamplingParams
from splitwise.protocol.generation import FinishReason
from splitwise.protocol.handshake.proofs import ID_BYTES
from splitwise.scheduling.batching import UNBOUNDED_DECODES
from splitwise.scheduling.pool import Pool
from splitwise.transfer import ReceiverAddress, TransferStats
from splitwise.transfer.layout import CacheLayout

Count = Annotated[int, msgspec.Meta(ge=0, le=2**31 - 1)]
Total = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""Counted since the machine's process began."""
MOST_RANKS = 256
Ranks = Annotated[int, msgspec.Meta(ge=1, le=MOST_RANKS)]
Addresses = Annotated[list[ReceiverAddress], msgspec.Meta(min_length=1, max_length=MOST_RANKS)]
"""Of a machine's receivers, one a rank."""


# What a worker claims in the handshake, and the cluster's answer.


class Register(msgspec.Struct):
    """A worker introduces its machine, by the id that it proves."""

    machine_id: Annotated[str, msgspec.Meta(min_length=1, max_length=ID_BYTES)]
    pool: Pool
    model: ModelInfo
    layout: CacheLayout
    addresses: Addresses
    max_decodes: Annotated[int, msgspec.Meta(ge=1, le=UNBOUNDED_DECODES)] = UNBOUNDED_DECODES
    """Requests that can be in their token phase and all get a token an iteration."""


class Welcome(msgspec.Struct, tag=True):
    """The machine is part of the cluster."""


class Refused(msgspec.Struct, tag=True):
    """The machine is not taken, and why."""

    reason: str


# Cluster scheduler to worker.


class TaskSpec(msgspec.Struct):
    """What both machines must know of a task.

    ``history`` is the prompt and, for a request taken up again, its output so far; it is what the
    prompt phase runs. ``max_history_tokens`` ends the request by length. ``number`` counts requests
    over all their tasks: where memory is short, the highest priority gives way, in it the youngest.
    """

    task: int
    history: list[int]
    prompt_tokens: int
    max_history_tokens: int
    sampling: SamplingParams
    stop_token_ids: list[int]
    priority: int = 0
    number: int = 0
    alone: bool = False
    """Its prompt runs in an iteration of its own: others failed with it, or because of it."""


class RunPrompt(msgspec.Struct, tag=True):
    """Compute a prompt; then push it to ``target``, an address a rank, or stay for the token phase
    (None)."""

    spec: TaskSpec
    target: Addresses | None = None


class Expect(msgspec.Struct, tag=True):
    """Reserve blocks: machine ``source_id`` of so many ranks will push this task's cache."""

    spec: TaskSpec
    source_id: str
    source_ranks: Ranks = 1


class Cancel(msgspec.Struct, tag=True):
    """Drop a task and free what it holds. Unknown tasks are ignored."""

    task: int


class Shutdown(msgspec.Struct, tag=True):
    """End the worker."""


# Worker to cluster scheduler.


class Output(msgspec.Struct, array_like=True):
    """A task's new token; ``position`` is its place in the history, which orders tokens that
    come from two machines."""

    task: int
    position: int
    sample: Sample
    finish: FinishReason | None = None


class Outputs(msgspec.Struct, tag=True):
    """All tokens of one iteration."""

    items: list[Output]


class PromptsStarted(msgspec.Struct, tag=True):
    """These tasks' prompts are in the iteration that begins now."""

    tasks: list[int]


class TaskFailed(msgspec.Struct, tag=True):
    """This machine gave the task up and has freed, or is freeing, what it held."""

    task: int
    reason: str
    in_transfer: bool
    """Whether its cache did not arrive; else the engine failed."""
    in_company: bool = False
    """Whether others were in the iteration that failed, so that it may have been them."""


class Preempted(msgspec.Struct, tag=True):
    """The token machine ran out of memory and dropped the task."""

    task: int


class Transferred(msgspec.Struct, tag=True):
    """A task's cache arrived at the sender of this message: its prompt machine is rid of it."""

    task: int
    stats: TransferStats


class MachineStatus(msgspec.Struct, tag=True):
    """Sent every ``silence.BEAT_PERIOD_S``, which also shows that the machine lives."""

    used_blocks: Count
    total_blocks: Annotated[int, msgspec.Meta(ge=1, le=2**31 - 1)]
    running_requests: Count
    waiting_requests: Count
    leaving_blocks: Annotated[dict[int, Count], msgspec.Meta(max_length=65536)] = {}
    """Blocks of each task that has ended here but for its transfer, and had at the last status."""
    steps: Count = 0
    """Layers and iterations computed so far, modulo 2**31: a machine at which this stands still has
    come to a halt, however long its iterations are."""
    prefix_queries_tokens: Total = 0
    """Prompt tokens that the engine looked up in its prefix cache."""
    prefix_hits_tokens: Total = 0
    """Those of them whose keys and values were there."""
    preemptions: Total = 0
    """Requests that the engine put off by itself, and ran again from their beginning."""


class Leave(msgspec.Struct, tag=True):
    """The machine wants to end: place nothing new on it, and send ``Shutdown`` when it is idle."""


ToWorker = Welcome | Refused | RunPrompt | Expect | Cancel | Shutdown
ToScheduler = (
    PromptsStarted | Outputs | TaskFailed | Preempted | Transferred | MachineStatus | Leave
)
