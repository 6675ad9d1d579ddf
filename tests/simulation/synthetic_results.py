"""Results made by hand or at random, consistent in themselves, without any simulator."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitwise.scheduling.pool import Pool
from splitwise.simulation.result import Reason, Result, RoleChanges, Segments, Status

KINDS = ("h100", "h100", "a100", "<a100 & more>")
POOLS = (Pool.PROMPT, Pool.PROMPT, Pool.TOKEN, Pool.MIXED)
NAN = float("nan")


@dataclass(frozen=True)
class Alone:
    """Takes 1 ms a prompt token, and 10 ms plus 1 µs a token of context to decode."""

    def prompt_time_s(self, tokens: NDArray[np.int64], /) -> NDArray[np.float64]:
        return tokens * 1e-3

    def decode_time_s(self, batch: int, context_tokens: int, /) -> float:
        return 0.01 + 1e-6 * batch * context_tokens


@dataclass(frozen=True)
class Moments:
    """Seconds, one a request; NaN where it never came so far."""

    prompt_start_s: NDArray[np.float64]
    first_token_s: NDArray[np.float64]
    decode_start_s: NDArray[np.float64]
    finish_s: NDArray[np.float64]


def result_of(
    arrival_s: NDArray[np.float64],
    prompt_tokens: NDArray[np.int64],
    output_tokens: NDArray[np.int64],
    at: Moments,
    rng: np.random.Generator,
) -> Result:
    """A result with these requests: prompts on machines 0 and 1, decodes on machine 2."""
    count = len(arrival_s)
    is_split = output_tokens > 1
    prompt_machine = (np.arange(count) % 2).astype(np.int64)
    token_machine = np.where(is_split, 2, prompt_machine).astype(np.int64)
    half_s = (at.prompt_start_s + at.first_token_s) / 2
    end_s = float(np.nanmax(at.finish_s))
    busy_s = rng.uniform(0.2, 0.9, (3, 4)) * end_s / 3
    occupancy_s = np.zeros((4, 514))
    occupancy_s[:, 1] = busy_s.sum(axis=0) / 4
    occupancy_s[:, 40] = busy_s.sum(axis=0) * 3 / 4
    samples = 20
    machines = np.arange(4, dtype=np.int64)
    return Result(
        arrival_s=arrival_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        status=np.full(count, Status.FINISHED, dtype=np.int8),
        reason=np.full(count, Reason.NONE, dtype=np.int8),
        first_token_s=at.first_token_s,
        finish_s=at.finish_s,
        prompt_start_s=at.prompt_start_s,
        transfer_start_s=np.where(is_split, half_s, np.nan),
        transfer_end_s=np.where(is_split, at.decode_start_s, np.nan),
        decode_start_s=at.decode_start_s,
        max_tbt_s=np.where(is_split, at.decode_start_s - at.first_token_s + 0.01, np.nan),
        prompt_machine=prompt_machine,
        token_machine=token_machine,
        preemptions=np.zeros(count, dtype=np.int64),
        attempts=np.ones(count, dtype=np.int64),
        machine_kind=KINDS,
        home_pool=np.array(POOLS, dtype=np.int8),
        busy_s=busy_s.sum(axis=0),
        prompt_busy_s=busy_s[0],
        decode_busy_s=busy_s[1],
        mixed_busy_s=busy_s[2],
        down_s=np.zeros(4),
        energy_joules=np.array([100.0, 200.0, 300.0, 400.0]) * end_s,
        prompt_tokens_done=1000 * machines,
        tokens_out=10 * machines,
        role_changes=machines,
        peak_kv_tokens=100 * machines,
        kv_capacity_tokens=np.full(4, 1000, dtype=np.int64),
        occupancy_s=occupancy_s,
        sample_s=np.linspace(0, end_s, samples),
        waiting_prompts=rng.integers(0, 9, samples),
        running_decodes=rng.integers(0, 99, samples),
        pool_sizes=np.tile(np.array([2, 1, 1], dtype=np.int64), (samples, 1)),
        kv_tokens=rng.integers(0, 999, samples),
        segments=segments_of(prompt_machine, token_machine, at),
        changes=RoleChanges(np.zeros(0), np.zeros(0, np.int64), np.zeros(0, np.int8)),
        end_s=end_s,
    )


def segments_of(
    prompt_machine: NDArray[np.int64], token_machine: NDArray[np.int64], at: Moments
) -> Segments:
    """A prompt and a decode segment for every request that had them."""
    prompted = np.flatnonzero(~np.isnan(at.first_token_s))
    decoded = np.flatnonzero(~np.isnan(at.decode_start_s))
    kind = np.repeat(np.array([0, 1], dtype=np.int8), [len(prompted), len(decoded)])
    return Segments(
        machine=np.concatenate([prompt_machine[prompted], token_machine[decoded]]),
        start_s=np.concatenate([at.prompt_start_s[prompted], at.decode_start_s[decoded]]),
        end_s=np.concatenate([at.first_token_s[prompted], at.finish_s[decoded]]),
        kind=kind,
        prompts=(kind == 0).astype(np.int64),
        decodes=(kind == 1).astype(np.int64),
        iterations=np.ones(len(kind), dtype=np.int64),
    )


def random_result(count: int = 200, seed: int = 1) -> Result:
    """Requests at random; every tenth has one token, and the last was rejected."""
    rng = np.random.default_rng(seed)
    arrival_s = np.cumsum(rng.exponential(0.1, count))
    prompt_tokens = rng.integers(1, 2000, count)
    output_tokens = rng.integers(2, 300, count)
    output_tokens[::10] = 1
    prompt_start_s = arrival_s + rng.exponential(0.05, count)
    first_token_s = prompt_start_s + prompt_tokens * 1e-3
    decode_start_s = np.where(output_tokens > 1, first_token_s + 0.005, np.nan)
    decoded_s = decode_start_s + (output_tokens - 1) * 0.012
    finish_s = np.where(output_tokens > 1, decoded_s, first_token_s)
    for times_s in (prompt_start_s, first_token_s, decode_start_s, finish_s):
        times_s[-1] = np.nan
    at = Moments(prompt_start_s, first_token_s, decode_start_s, finish_s)
    result = result_of(arrival_s, prompt_tokens, output_tokens, at, rng)
    result.status[-1] = Status.REJECTED
    result.reason[-1] = Reason.TOO_LARGE
    return result


def four_requests() -> Result:
    """Prompts of 100 tokens that wait 0, 100, 200 and 300 ms; the last asks for one token.

    A first token takes 100 ms; ten more take ``0.0101``, 0.0202, 0.0303 s each: 1, 2, 3 times
    what they take alone.
    """
    arrival_s = np.arange(4.0)
    prompt_start_s = arrival_s + np.array([0.0, 0.1, 0.2, 0.3])
    first_token_s = prompt_start_s + 0.1
    output_tokens = np.array([11, 11, 11, 1])
    finish_s = first_token_s + np.array([0.101, 0.202, 0.303, 0.0])
    decode_start_s = np.where(output_tokens > 1, first_token_s, NAN)
    at = Moments(prompt_start_s, first_token_s, decode_start_s, finish_s)
    return result_of(arrival_s, np.full(4, 100), output_tokens, at, np.random.default_rng(1))
