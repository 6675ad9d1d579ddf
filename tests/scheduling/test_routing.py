"""Routing against hand-worked cases and a slow, obvious restatement of the rules."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from splitwise.scheduling.pools import Machines, Pool, no_machines, with_machine
from splitwise.scheduling.routing import NOBODY, can_serve, pick_machines

CAPACITY = 1000


def cluster(*pools: Pool) -> Machines:
    machines = no_machines()
    for pool in pools:
        machines = with_machine(machines, pool, CAPACITY)
    return machines


def test_prompt_goes_to_the_shortest_queue_and_tokens_to_the_emptiest_cache() -> None:
    machines = cluster(Pool.PROMPT, Pool.PROMPT, Pool.TOKEN, Pool.TOKEN)
    machines.pending_prompt_tokens[:] = [30, 20, 0, 0]
    machines.kv_tokens[:] = [0, 0, 50, 60]
    assert pick_machines(machines, 10, one_token=False) == (1, 2)


def test_a_request_of_one_token_needs_no_token_machine() -> None:
    assert pick_machines(cluster(Pool.TOKEN, Pool.PROMPT), 10, one_token=True) == (1, 1)


def test_a_full_queue_overflows_into_the_mixed_pool() -> None:
    machines = cluster(Pool.PROMPT, Pool.TOKEN, Pool.MIXED)
    machines.pending_prompt_tokens[0] = 95
    assert pick_machines(machines, 5, False, threshold_tokens=100) == (0, 1)
    assert pick_machines(machines, 6, False, threshold_tokens=100) == (2, 2)


def test_an_idle_prompt_machine_takes_a_prompt_beyond_the_threshold() -> None:
    machines = cluster(Pool.PROMPT, Pool.TOKEN, Pool.MIXED)
    assert pick_machines(machines, 500, False, threshold_tokens=100) == (0, 1)


def test_full_token_machines_make_requests_wait() -> None:
    machines = cluster(Pool.PROMPT, Pool.TOKEN)
    machines.kv_tokens[1] = CAPACITY - 10
    assert pick_machines(machines, 9, one_token=False) == (0, 1)
    assert pick_machines(machines, 10, one_token=False) == (NOBODY, NOBODY)


def test_a_lost_machine_is_not_picked() -> None:
    machines = cluster(Pool.PROMPT, Pool.TOKEN)
    machines.ready[1] = False
    assert pick_machines(machines, 1, one_token=False) == (NOBODY, NOBODY)
    assert not can_serve(machines)


def test_who_can_serve() -> None:
    assert not can_serve(cluster())
    assert not can_serve(cluster(Pool.PROMPT))
    assert not can_serve(cluster(Pool.TOKEN))
    assert can_serve(cluster(Pool.MIXED))
    assert can_serve(cluster(Pool.PROMPT, Pool.TOKEN))


def obvious_pick(
    machines: Machines, tokens: int, one_token: bool, threshold: int
) -> tuple[int, int]:
    everyone = [i for i in range(len(machines.pool)) if machines.ready[i]]
    room = [i for i in everyone if machines.kv_tokens[i] + tokens < machines.kv_capacity_tokens[i]]
    mixed = sorted(
        (machines.pending_prompt_tokens[i] + machines.token_requests[i], i)
        for i in room
        if machines.pool[i] == Pool.MIXED
    )
    prompts = sorted(
        (machines.pending_prompt_tokens[i], i) for i in everyone if machines.pool[i] == Pool.PROMPT
    )
    token = sorted((machines.kv_tokens[i], i) for i in room if machines.pool[i] == Pool.TOKEN)
    over = bool(prompts) and prompts[0][0] > 0 and prompts[0][0] + tokens > threshold
    if mixed and (not prompts or over):
        return mixed[0][1], mixed[0][1]
    if not prompts:
        return NOBODY, NOBODY
    prompt = prompts[0][1]
    if one_token:
        return prompt, prompt
    if token:
        return prompt, token[0][1]
    if mixed:
        return prompt, mixed[0][1]
    return NOBODY, NOBODY


@given(
    states=st.lists(
        st.tuples(
            st.sampled_from(list(Pool)),
            st.booleans(),
            st.integers(0, 200),
            st.integers(0, 20),
            st.integers(0, 120),
        ),
        max_size=8,
    ),
    tokens=st.integers(1, 150),
    one_token=st.booleans(),
    threshold=st.integers(0, 200),
)
def test_pick_is_what_the_rules_say(
    states: list[tuple[Pool, bool, int, int, int]], tokens: int, one_token: bool, threshold: int
) -> None:
    columns = [np.array([state[k] for state in states], dtype=np.int64) for k in range(5)]
    machines = Machines(
        columns[0].astype(np.int8),
        columns[1].astype(np.bool_),
        columns[2],
        columns[3],
        columns[4],
        np.full(len(states), 120),
    )
    picked = pick_machines(machines, tokens, one_token, threshold)
    assert picked == obvious_pick(machines, tokens, one_token, threshold)
