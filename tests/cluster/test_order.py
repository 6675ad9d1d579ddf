"""A policy's order of the waiting line: in the server, and the same in the simulator."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scripted_cluster import STOP, ScriptedCluster, request
from toy_cluster import load, mixed

from splitwise.cluster.request import LiveRequest, RequestState
from splitwise.protocol.messages import Preempted, RunPrompt
from splitwise.scheduling.decision import WaitingRequest
from splitwise.scheduling.draws import draw
from splitwise.scheduling.policies.policy import DEFAULT, Hooks, Policy, load_policy
from splitwise.scheduling.pool import Pool
from splitwise.simulation.result import Status
from splitwise.simulation.simulate import Options, simulate

KV_TOKENS = 1024
"""Of the one machine, for prompts of more than half of that: one after the other."""


def ordered(order: Callable[..., Any]) -> Policy:
    return Policy("mine.py", "mine", Hooks(order=order), frozenset({"order"}))


def tasks_of(f: ScriptedCluster) -> list[RunPrompt]:
    return [message for message in f.links[0].told if isinstance(message, RunPrompt)]


def served_by_server(policy: Policy, prompts: list[int]) -> list[int]:
    """The requests, from 0, in the order in which their prompts were sent to the machine."""
    f = ScriptedCluster(Pool.MIXED, policy=policy)
    lives = [f.cluster.submit(request(prompt)) for prompt in prompts]
    served = []
    while running := [live for live in lives if live.state is RequestState.PROMPT]:
        [one] = running
        served.append(lives.index(one))
        f.output(0, one.task, one.prompt_tokens, STOP, finish=True)
    f.assert_idle()
    return served


def served_by_simulator(policy: Policy, prompts: list[int]) -> list[int]:
    requests = load(*((1e-6 * i, prompt, 2) for i, prompt in enumerate(prompts)))
    groups = mixed(kv_capacity_tokens=KV_TOKENS)
    result = simulate(requests, groups, Options(cache="grown", policy=policy))
    assert (result.status == Status.FINISHED).all()
    return np.argsort(result.prompt_start_s, kind="stable").tolist()


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("return request.prompt_tokens", lambda number, prompt: prompt),
        ("return -request.prompt_tokens / 7", lambda number, prompt: -prompt),
        ("return -request.number", lambda number, prompt: -number),
        ("return draw(3, request.number, 0) / 2", lambda number, prompt: draw(3, number, 0)),
        ("return request.number % 2 == 0", lambda number, prompt: number % 2 == 0),
        ("return float('-inf') if request.number > 9 else 2**40", lambda number, _: number <= 9),
        ("return {True: 1}[True]", lambda number, prompt: 0),
    ],
)
def test_who_waits_goes_in_the_policy_s_order_here_and_in_the_simulator(
    tmp_path: Path, text: str, key: Callable[[int, int], float]
) -> None:
    """The first finds the machine idle; the others wait, and of equals the older goes first."""
    file = tmp_path / "mine.py"
    file.write_text(
        "from splitwise.scheduling.draws import draw\n" + f"def order(request):\n    {text}"
    )
    policy = load_policy(str(file))
    prompts: list[int] = np.random.default_rng(5).integers(520, 530, 24).tolist()
    waited = sorted(range(1, 24), key=lambda i: (key(i + 1, prompts[i]), i))
    assert served_by_server(policy, prompts) == [0, *waited]
    assert served_by_simulator(policy, prompts) == [0, *waited]


def test_without_an_order_who_came_first_goes_first_here_and_in_the_simulator() -> None:
    prompts = [530, 520, 525, 521, 1000, 520]
    assert served_by_server(DEFAULT, prompts) == list(range(6))
    assert served_by_simulator(DEFAULT, prompts) == list(range(6))


async def test_order_goes_within_a_priority_and_instead_of_shares() -> None:
    asked: list[WaitingRequest] = []

    def order(request: WaitingRequest) -> int:
        asked.append(request)
        return request.prompt_tokens

    f = ScriptedCluster(Pool.MIXED, policy=ordered(order))
    big = f.cluster.submit(request(prompt=1010, max_tokens=20))
    for prompt, client, priority in ((30, "a", 0), (20, "a", 0), (21, "a", 0), (25, "b", 0)):
        f.cluster.submit(request(prompt, client=client, priority=priority))
    f.cluster.submit(request(40, priority=-1))
    f.cluster.submit(request(10, priority=5))
    big.cancel()
    assert [one.spec.prompt_tokens for one in tasks_of(f)[1:]] == [40, 20, 21, 25, 30, 10]
    assert asked == [  # once each, though all were tried whenever one came
        WaitingRequest(2, 0, 30),
        WaitingRequest(3, 0, 20),
        WaitingRequest(4, 0, 21),
        WaitingRequest(5, 0, 25),
        WaitingRequest(6, -1, 40),
        WaitingRequest(7, 5, 10),
    ]


async def test_what_lost_its_machine_goes_before_whatever_a_policy_puts_first() -> None:
    f = ScriptedCluster(Pool.MIXED, policy=ordered(lambda request: request.prompt_tokens))
    old = f.cluster.submit(request(prompt=600, max_tokens=400))
    f.output(0, old.task, 600, 7)
    holder = f.cluster.submit(request(prompt=300, max_tokens=400))
    short = f.cluster.submit(request(prompt=200))
    f.cluster.receive(0, Preempted(old.task))
    assert (old.state, short.state) == (RequestState.PROMPT, RequestState.WAITING)
    for live in (holder, old, short):
        live.cancel()
    f.assert_idle()


@pytest.mark.parametrize("seed", range(20))
async def test_whatever_order_a_policy_says_no_request_is_lost(seed: int) -> None:
    """Another answer each time that it is asked, while machines are lost and clients leave."""
    draws = np.random.default_rng(seed)
    f = ScriptedCluster(
        Pool.MIXED, Pool.MIXED, policy=ordered(lambda _: draws.choice([0, -2, 0.5, np.inf]))
    )
    lives: list[LiveRequest] = []
    for _ in range(60):
        prompt, priority = int(draws.integers(5, 900)), int(draws.integers(-1, 2))
        lives.append(f.cluster.submit(request(prompt, client="abc"[prompt % 3], priority=priority)))
        if draws.random() < 0.1:
            lives[draws.integers(len(lives))].cancel()
        if draws.random() < 0.1:
            f.cluster.lose(f.indices[1])
            f.cluster.join(f.links[1])
    while running := [live for live in lives if live.state is RequestState.PROMPT]:
        for one in running:
            f.output(one.prompt_machine, one.task, len(one.history), STOP, finish=True)
    assert {live.state for live in lives} == {RequestState.ENDED}
    f.assert_idle()


def raising(request: WaitingRequest) -> float:
    raise KeyError("no")


@pytest.mark.parametrize(
    ("order", "why"),
    [
        (raising, "raised KeyError: 'no'"),
        (lambda request: None, "raised TypeError: it said None; it must say a number, the least"),
        (lambda request: "1", "raised TypeError: it said '1'; it must say a number, the least"),
        (lambda request: float("nan"), "raised TypeError: it said nan; it must say a number"),
        (lambda request: 10**400, "raised OverflowError: "),
    ],
)
async def test_an_order_that_is_none_leaves_age(
    order: Callable[..., Any], why: str, caplog: pytest.LogCaptureFixture
) -> None:
    prompts = [530, 529, 528]
    assert served_by_server(ordered(order), prompts) == [0, 1, 2]
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.message.startswith(f"policy mine.py: order of request 2 {why}")
    assert record.message.endswith("; the default decides")
