"""The three pools, and what the cluster scheduler knows of the machines in them."""

from enum import IntEnum
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Pool(IntEnum):
    """Which phase a machine runs (Splitwise, section IV.A)."""

    PROMPT = 0
    TOKEN = 1
    MIXED = 2


class Machines(NamedTuple):
    """Struct of arrays, one entry a machine.

    ``pending_prompt_tokens`` counts prompts sent to the machine whose first token is not out yet.
    ``token_requests`` counts requests in, or promised to, the machine's token phase, and
    ``kv_tokens`` the cache they take there, prompt and output so far.
    """

    pool: NDArray[np.int8]
    ready: NDArray[np.bool_]
    pending_prompt_tokens: NDArray[np.int64]
    token_requests: NDArray[np.int64]
    kv_tokens: NDArray[np.int64]
    kv_capacity_tokens: NDArray[np.int64]


def no_machines() -> Machines:
    """A cluster nobody has joined yet."""
    counts = np.zeros(0, dtype=np.int64)
    return Machines(
        np.zeros(0, dtype=np.int8), np.zeros(0, dtype=np.bool_), counts, counts, counts, counts
    )


def with_machine(machines: Machines, pool: Pool, kv_capacity_tokens: int) -> Machines:
    """The same machines and one more, ready and idle, at the end."""
    return Machines(
        np.append(machines.pool, np.int8(pool)),
        np.append(machines.ready, np.True_),
        np.append(machines.pending_prompt_tokens, 0),
        np.append(machines.token_requests, 0),
        np.append(machines.kv_tokens, 0),
        np.append(machines.kv_capacity_tokens, kv_capacity_tokens),
    )
