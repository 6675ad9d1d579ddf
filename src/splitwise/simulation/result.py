"""What a simulation answers: arrays a request, a machine, a sample and a timeline segment."""

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Status(IntEnum):
    """How a request ended."""

    FINISHED = 0
    REJECTED = 1
    RUNNING = 2


class Reason(IntEnum):
    """Why a request was rejected."""

    NONE = 0
    TOO_LARGE = 1
    """Its cache fits no machine of the cluster."""
    NO_MACHINE = 2
    """No machine was up any more that could hold it."""


@dataclass(frozen=True)
class Segments:
    """What machines ran, one entry a stretch of equal iterations; all arrays of one length.

    ``kind`` is 0 prompt, 1 decode, 2 mixed.
    """

    machine: NDArray[np.int64]
    start_s: NDArray[np.float64]
    end_s: NDArray[np.float64]
    kind: NDArray[np.int8]
    prompts: NDArray[np.int64]
    decodes: NDArray[np.int64]
    iterations: NDArray[np.int64]


@dataclass(frozen=True)
class RoleChanges:
    """Which machine moved into which pool, in order; the first 100,000. Arrays of one length."""

    time_s: NDArray[np.float64]
    machine: NDArray[np.int64]
    pool: NDArray[np.int8]


@dataclass(frozen=True)
class Result:
    """One simulation, times in seconds of virtual time; nan where a thing did not happen.

    Requests are in order of arrival. ``occupancy_s`` (machines, 514) holds the seconds spent in
    iterations with that many active tokens, the last bin all larger ones. ``pool_sizes``
    (samples, 3) counts machines by ``scheduling.pools.Pool``. A request that a machine's failure,
    or a lack of blocks, made start anew has ``attempts`` > 1; its transfer, decode start and
    machines are those of the last attempt.
    """

    arrival_s: NDArray[np.float64]
    prompt_tokens: NDArray[np.int64]
    output_tokens: NDArray[np.int64]
    status: NDArray[np.int8]
    reason: NDArray[np.int8]
    first_token_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]
    prompt_start_s: NDArray[np.float64]
    transfer_start_s: NDArray[np.float64]
    transfer_end_s: NDArray[np.float64]
    decode_start_s: NDArray[np.float64]
    max_tbt_s: NDArray[np.float64]
    prompt_machine: NDArray[np.int64]
    token_machine: NDArray[np.int64]
    preemptions: NDArray[np.int64]
    attempts: NDArray[np.int64]
    machine_kind: tuple[str, ...]
    home_pool: NDArray[np.int8]
    busy_s: NDArray[np.float64]
    prompt_busy_s: NDArray[np.float64]
    decode_busy_s: NDArray[np.float64]
    mixed_busy_s: NDArray[np.float64]
    down_s: NDArray[np.float64]
    energy_joules: NDArray[np.float64]
    prompt_tokens_done: NDArray[np.int64]
    tokens_out: NDArray[np.int64]
    role_changes: NDArray[np.int64]
    peak_kv_tokens: NDArray[np.int64]
    kv_capacity_tokens: NDArray[np.int64]
    occupancy_s: NDArray[np.float64]
    sample_s: NDArray[np.float64]
    waiting_prompts: NDArray[np.int64]
    running_decodes: NDArray[np.int64]
    pool_sizes: NDArray[np.int64]
    kv_tokens: NDArray[np.int64]
    segments: Segments
    changes: RoleChanges
    end_s: float

    @property
    def ttft_s(self) -> NDArray[np.float64]:
        """Arrival to first token; the transfer is not part of it."""
        return self.first_token_s - self.arrival_s

    @property
    def e2e_s(self) -> NDArray[np.float64]:
        """Arrival to last token."""
        return self.finish_s - self.arrival_s

    @property
    def tbt_s(self) -> NDArray[np.float64]:
        """Mean time between tokens; nan for requests of one token."""
        gaps = np.where(self.output_tokens > 1, self.output_tokens - 1.0, np.nan)
        return (self.finish_s - self.first_token_s) / gaps

    @property
    def queue_s(self) -> NDArray[np.float64]:
        """Arrival to the start of the prompt."""
        return self.prompt_start_s - self.arrival_s
