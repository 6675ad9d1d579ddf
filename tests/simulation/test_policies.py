"""Policies in the simulator: the same compiled or not; what cannot be is refused."""

import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from toy_cluster import load, mixed, split, times

from splitwise.scheduling.batching import MAX_PROMPT_SKIPS
from splitwise.scheduling.policies.policy import PolicyError, load_policy
from splitwise.scheduling.pool import Pool
from splitwise.simulation import policy_compiling
from splitwise.simulation.result import Result, Status
from splitwise.simulation.simulate import CACHES, MachineGroup, Options, Outage, simulate

PLAIN = """
from splitwise.scheduling.policies import two_choices
ASKED = {}

def place(cluster, request, rules):
    ASKED[request.number, request.attempt] = ASKED.get((request.number, request.attempt), 0) + 1
    return two_choices.place(cluster, request, rules)
"""
RANDOM = """
from splitwise.scheduling.decision import Placement
from splitwise.scheduling.draws import draw
from splitwise.scheduling.cluster_state import takes_requests, is_idle

def place(cluster, request, rules):
    busy = False
    for machine in range(len(cluster.up)):
        busy = busy or (cluster.up[machine] and not is_idle(cluster, machine))
    if busy and rules.may_wait and draw(5, request.number, int(cluster.pending_tokens[0])) == 0:
        return Placement(-1, -1, False)
    return Placement(
        one_of(cluster, request, request.prompt_tokens + 1, 0),
        one_of(cluster, request, request.kv_tokens, 1),
        rules.change_roles and draw(2, request.number, request.attempt, 2) == 0,
    )

def order(request):
    return draw(5, request.number, request.prompt_tokens) / 2 - 1

def victim(request):
    return draw(7, request.number, request.held_tokens) - 3

def one_of(cluster, request, kv_tokens, which):
    count = len(cluster.up)
    for i in range(1000):
        machine = draw(count, request.number, request.attempt, 10 * i + which)
        if takes_requests(cluster, machine) and kv_tokens <= cluster.kv_capacity_tokens[machine]:
            return machine
    return -1
"""
ALL_MIXED = "from splitwise.scheduling.policies.all_mixed import place"
CHOICE = """
from splitwise.scheduling.decision import Placement
from helping import CHOSEN

def place(cluster, request, rules):
    return Placement(CHOSEN, CHOSEN, False)
"""


def written(path: Path, text: str) -> str:
    path.write_text(text)
    return str(path)


def busy_load(count: int = 300, seed: int = 0):  # type: ignore[no-untyped-def]
    draws = np.random.default_rng(seed)
    arrival = np.sort(draws.uniform(0, 30, count))
    prompts, outputs = draws.integers(1, 600, count), draws.integers(1, 40, count)
    return load(*zip(arrival, prompts, outputs, strict=True))


def same(one: Result, other: Result) -> bool:
    return all(
        np.array_equal(getattr(one, name), getattr(other, name), equal_nan=name.endswith("_s"))
        for name in ("prompt_machine", "token_machine", "first_token_s", "finish_s", "attempts")
    )


@pytest.mark.parametrize("cache", CACHES)
def test_a_policy_that_numba_does_not_compile_decides_the_same(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, cache: str
) -> None:
    groups, requests = split(4, 3, kv_capacity_tokens=4000), busy_load()
    options = Options(cache=cache)
    compiled = simulate(requests, groups, replace(options, policy=load_policy("two-choices")))
    assert not caplog.records
    policy_compiling.compiled_place.cache_clear()  # a process is warned once of a policy
    plain = load_policy(written(tmp_path / "mine.py", PLAIN))
    assert same(compiled, simulate(requests, groups, replace(options, policy=plain)))
    asked = plain.hooks.place.__globals__["ASKED"]
    assert {number for number, _ in asked} == set(range(1, len(requests.arrival_s) + 1))
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert "policy mine.py: place runs as plain Python, which is slow" in record.message
    assert not same(compiled, simulate(requests, groups, options))


def test_policies_of_one_process_do_not_meet(tmp_path: Path) -> None:
    """Nor do those that a file held before and after a change of what it imports."""
    requests, groups = busy_load(20), mixed(3)
    written(tmp_path / "helping.py", "CHOSEN = 1")
    mine = written(tmp_path / "mine.py", CHOICE)
    policies = [load_policy(mine)]
    written(tmp_path / "helping.py", "CHOSEN = 2")
    policies += [load_policy(mine), load_policy("default"), load_policy("all-mixed")]
    placed = [
        [simulate(requests, groups, Options(policy=one)).prompt_machine.tolist() for one in order]
        for order in (policies, policies[::-1])
    ]
    assert placed[0] == placed[1][::-1]
    assert [set(machines) for machines in placed[0]] == [{1}, {2}, {0, 1, 2}, {0, 1, 2}]


def test_what_other_processes_compiled_does_not_meet(tmp_path: Path) -> None:
    """Each may have called its machine code by the same name."""
    written(tmp_path / "helping.py", "CHOSEN = 2")
    mine = written(tmp_path / "mine.py", CHOICE)
    code = (
        "import sys; from splitwise.simulation.policy_calls import calls_of;"
        "from splitwise.scheduling.cluster_state import new_cluster; import numpy as np;"
        "from splitwise.scheduling.policies.policy import load_policy;"
        "machines = new_cluster(np.zeros(1, np.int8), np.ones(1));"
        "calls_of(load_policy(sys.argv[1]), machines, np.zeros(1, np.int64))"
    )
    names = ["two-choices", mine, "all-mixed"]
    for name in names:
        subprocess.run([sys.executable, "-c", code, name], check=True, timeout=120)
    requests, groups = busy_load(30), mixed(3)
    policy_compiling.compiled_place.cache_clear()
    placed = [
        simulate(requests, groups, Options(policy=load_policy(name))).prompt_machine.tolist()
        for name in names * 2
    ]
    assert placed[:3] == placed[3:]
    assert placed[1] == [2] * 30
    assert placed[0] != placed[2]


def test_what_was_compiled_is_found_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """By another process, too: nothing that this one holds is asked."""
    written(tmp_path / "helping.py", "def chosen(request):\n    return request.number % 3")
    text = CHOICE.replace("CHOSEN, CHOSEN", "chosen(request), chosen(request)")
    policy = load_policy(written(tmp_path / "mine.py", text.replace("CHOSEN", "chosen")))
    requests, groups = busy_load(20), mixed(3)
    home = Path(policy_compiling.compiled.__globals__["_CACHE_FOLDER"]) / policy.digest
    results, kept = [], []
    for _ in range(2):
        policy_compiling.compiled_place.cache_clear()
        results.append(simulate(requests, groups, Options(policy=policy)))
        kept.append(set(home.rglob("*.nbc")))
    assert same(*results)
    assert results[0].prompt_machine.tolist() == [(i + 1) % 3 for i in range(20)]
    assert not caplog.records
    assert kept[0]
    assert kept[0] == kept[1]


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("change_roles", [True, False])
def test_whatever_a_policy_decides_no_request_is_lost(
    tmp_path: Path, cache: str, change_roles: bool
) -> None:
    random = load_policy(written(tmp_path / "random.py", RANDOM))
    small = times(kv_capacity_tokens=1000)
    large = times(kv_capacity_tokens=8000)
    groups = [
        MachineGroup("small", small, Pool.PROMPT, 2),
        MachineGroup("large", large, Pool.TOKEN, 2),
        MachineGroup("large", large, Pool.MIXED, 1),
    ]
    options = Options(cache=cache, policy=random, change_roles=change_roles)
    for seed in range(30):
        requests = busy_load(seed=seed)
        outages = [Outage(0, 5, 9), Outage(3, 7, 20), Outage(4, 12, 13)] if seed % 2 else []
        result = simulate(requests, groups, options, outages)
        assert (result.status == Status.FINISHED).all()
        assert result.tokens_out.sum() >= requests.output_tokens.sum()


def test_who_was_preempted_goes_before_whom_a_policy_puts_first(tmp_path: Path) -> None:
    """A cache of 256 tokens, two requests that outgrow it, and one that came last and would fit."""
    newest = load_policy(
        written(tmp_path / "mine.py", "def order(request):\n    return -request.number")
    )
    rows = load((0.0, 100, 40), (0.0, 100, 40), (0.5, 100, 2))
    options = Options(cache="grown", policy=newest)
    result = simulate(rows, mixed(kv_capacity_tokens=256), options)
    preempted = int(np.argmax(result.attempts))
    assert result.attempts.tolist() in ([1, 2, 1], [2, 1, 1])
    assert result.finish_s[1 - preempted] < result.prompt_start_s[2]
    assert result.decode_start_s[preempted] <= result.decode_start_s[2]


OLDEST = "def victim(request):\n    return -request.number"
OLDEST_PLAIN = """
SEEN = {}
def victim(request):
    assert request.held_tokens < request.needed_tokens + 1 and request.priority == 0
    SEEN[str(request.number)] = request
    return -request.number
"""
LARGEST = "def victim(request):\n    return request.held_tokens"


def test_who_gives_its_cache_up(tmp_path: Path) -> None:
    """A cache of 640 tokens, and three requests that grow to 900 together."""
    requests = load((0, 200, 100), (0.001, 100, 200), (0.002, 100, 200))
    attempts = {}
    for name, text in (
        ("oldest", OLDEST),
        ("plain", OLDEST_PLAIN),
        ("largest", LARGEST),
        ("usual", ALL_MIXED),
    ):
        policy = load_policy(written(tmp_path / f"{name}.py", text))
        options = Options(cache="grown", policy=policy)
        result = simulate(requests, mixed(kv_capacity_tokens=640), options)
        assert (result.status == Status.FINISHED).all()
        attempts[name] = result.attempts.tolist()
    default = simulate(requests, mixed(kv_capacity_tokens=640), Options(cache="grown"))
    assert attempts["usual"] == default.attempts.tolist() == [1, 1, 2]
    assert attempts["oldest"] == attempts["plain"]
    assert attempts["oldest"][0] > 1 and attempts["oldest"][2] == 1
    assert attempts["largest"][0] > 1


def test_a_victim_that_is_none_ends_the_simulation(tmp_path: Path) -> None:
    requests = load((0, 200, 100), (0.001, 100, 200), (0.002, 100, 200))
    for text, why in (
        ("return 1 // 0", "victim of request 1 raised ZeroDivisionError"),
        ("return None", "victim of request 1 raised TypeError: it said None; it must say a whole"),
    ):
        policy = load_policy(written(tmp_path / "mine.py", f"def victim(request):\n    {text}"))
        with pytest.raises(PolicyError, match=f"policy mine.py: {why}"):
            simulate(requests, mixed(kv_capacity_tokens=640), Options(cache="grown", policy=policy))


COMPOSE = """
def compose(batch, prompt_tokens):
    tokens = prompt_tokens[0]
    for i in range(1, len(prompt_tokens)):
        tokens += prompt_tokens[i]
        if tokens > 300:
            return i
    return len(prompt_tokens) if batch.skips > 1 else 0
"""
NOTE = "    SEEN[str(batch)] = not prompt_tokens.flags.writeable\n"
COMPOSE_PLAIN = "SEEN = {}" + COMPOSE.replace("    tokens = prompt", NOTE + "    tokens = prompt")


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("chunk_prompts", [False, True])
def test_a_compose_that_numba_does_not_compile_decides_the_same(
    tmp_path: Path, cache: str, chunk_prompts: bool, caplog: pytest.LogCaptureFixture
) -> None:
    policy_compiling.compiled_compose.cache_clear()  # a process is warned once of a policy
    groups, requests = [*mixed(2), *split()], busy_load()
    options = Options(cache=cache, chunk_prompts=chunk_prompts)
    compiled, plain = (
        load_policy(written(tmp_path / name, text))
        for name, text in (("mine.py", COMPOSE), ("plain.py", COMPOSE_PLAIN))
    )
    results = [
        simulate(requests, groups, replace(options, policy=one)) for one in (compiled, plain)
    ]
    assert same(*results)
    seen = plain.hooks.compose.__globals__["SEEN"]
    assert len(seen) > 100 and all(seen.values())
    assert not same(results[0], simulate(requests, groups, options))
    [record] = caplog.records
    assert "policy plain.py: compose runs as plain Python" in record.message


@pytest.mark.parametrize("cache", CACHES)
def test_prompts_that_a_policy_never_lets_in_are_served_all_the_same(
    tmp_path: Path, cache: str
) -> None:
    """On machines that are full, go down and stand in any pool; where room is taken late, too."""
    text = "def compose(batch, prompt_tokens):\n    return 0"
    policy = load_policy(written(tmp_path / "mine.py", text))
    small, large = times(kv_capacity_tokens=1000), times(kv_capacity_tokens=8000)
    groups = [
        MachineGroup("small", small, Pool.PROMPT, 2),
        MachineGroup("large", large, Pool.TOKEN, 2),
        MachineGroup("large", large, Pool.MIXED, 1),
    ]
    options = [Options(cache=cache, chunk_prompts=cuts, policy=policy) for cuts in (False, True)]
    if cache == "promised":
        options.append(Options(retry_s=1.0, policy=policy))
    for seed, rules in enumerate(options * 3):
        requests = busy_load(seed=seed)
        outages = [Outage(0, 5, 9), Outage(3, 7, 20), Outage(4, 12, 13)]
        result = simulate(requests, groups, rules, outages)
        assert (result.status == Status.FINISHED).all()


def test_a_prompt_is_kept_out_for_so_long_and_no_longer(tmp_path: Path) -> None:
    """Beside one that decodes in 0.1 s a token."""
    text = "def compose(batch, prompt_tokens):\n    return 0"
    policy = load_policy(written(tmp_path / "mine.py", text))
    requests = load((0, 100, 300), (0.15, 100, 300))
    result = simulate(requests, mixed(), Options(policy=policy))
    assert result.prompt_start_s[1] == pytest.approx(0.2 + 0.1 * MAX_PROMPT_SKIPS)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("len(prompt_tokens) + 1", "raised ValueError: it said 2; it must say how many of prompt_"),
        ("-1", "raised ValueError: it said -1; .* a whole number from 0 to 1"),
        ("{1: 7}[1]", "raised ValueError: it said 7; .* a whole number from 0 to 1"),
        ("0.5", "raised TypeError: it said 0.5; it must say how many of prompt_tokens go in"),
        ("None", "raised TypeError: it said None; it must say how many of prompt_tokens"),
        ("1 // batch.skips", "raised ZeroDivisionError"),
        ("prompt_tokens[1]", "raised IndexError"),
        ("prompt_tokens.fill(0)", "raised ValueError"),
    ],
)
def test_a_compose_that_says_no_count_ends_the_simulation(
    tmp_path: Path, said: str, why: str
) -> None:
    text = f"def compose(batch, prompt_tokens):\n    return {said}"
    policy = load_policy(written(tmp_path / "mine.py", text))
    with pytest.raises(PolicyError, match=f"policy mine.py: compose of request 1 {why}"):
        simulate(load((1, 50, 20)), mixed(), Options(policy=policy))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("1 // (request.number - 1)", "raised ZeroDivisionError"),
        ("None", "raised TypeError: it said None; it must say a number"),
        ("'1'", "raised TypeError: it said '1'; it must say a number"),
        ("float('nan')", "raised TypeError: it said nan; it must say a number"),
        ("{1: float('nan')}[1]", "raised TypeError: it said nan; it must say a number"),
    ],
)
def test_an_order_that_is_none_ends_the_simulation(tmp_path: Path, said: str, why: str) -> None:
    policy = load_policy(written(tmp_path / "mine.py", f"def order(request):\n    return {said}"))
    with pytest.raises(PolicyError, match=f"policy mine.py: order of request 1 {why}"):
        simulate(load((1, 50, 20)), mixed(), Options(cache="grown", policy=policy))


@pytest.mark.parametrize(
    ("said", "why"),
    [
        ("Placement(2, 9, False)", "request 1 said 2, 9: machines are numbered from 0"),
        ("Placement(-7, 2, False)", "request 1 said -7, 2: machines are numbered"),
        ("Placement(0, -1, False)", "request 1 said 0, -1: machines are numbered"),
        ("Placement(request.number, 2, False)", "request 3 said 3, 2: a machine that is down"),
        ("Placement(0, 1, False)", "request 2 said 0, 1: a machine whose cache can never hold it"),
        ("Placement(2, 0, True)", "said 2, 0: a machine of the other pool, where roles do not"),
        ("Placement(-1, -1, False)", "said -1, -1: it has to wait for nothing"),
        ("None", "said None; it must say Placement"),
        ("(0.5, 2, False)", "said .0.5, 2, False.; it must say Placement"),
        ("(0 // (request.number - 2), 2, False)", "request 2 raised ZeroDivisionError"),
        ("(cluster.waiting[len(cluster.up)], 2, False)", "request 1 raised IndexError"),
        ("(of_nobody(cluster), 2, False)", "request 1 raised IndexError"),
        ("cluster.kv_tokens.fill(0)", "request 1 raised"),
    ],
)
def test_what_cannot_be_ends_the_simulation(tmp_path: Path, said: str, why: str) -> None:
    groups = [
        MachineGroup("prompt", times(), Pool.PROMPT, 1),
        MachineGroup("token", times(kv_capacity_tokens=120), Pool.TOKEN, 1),
        MachineGroup("token", times(), Pool.TOKEN, 2),
    ]
    text = "from splitwise.scheduling.decision import Placement\n"
    text += "def of_nobody(cluster):\n    return cluster.waiting[1000]\n"
    text += f"def place(cluster, request, rules):\n    return {said}\n"
    policy = load_policy(written(tmp_path / "mine.py", text))
    options = Options(policy=policy, change_roles=False)
    requests = load((1, 50, 20), (1, 150, 20), (1, 50, 20))
    with pytest.raises(PolicyError, match=f"policy mine.py: place of .*{why}"):
        simulate(requests, groups, options, [Outage(3, 0.5)])
