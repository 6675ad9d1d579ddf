"""Machines that report and do nothing, and requests that they forget."""

import time

from scripted_cluster import STOP, ScriptedCluster, request

from splitwise.cluster.request import RequestState
from splitwise.cluster.scheduler import ClusterLimits
from splitwise.protocol.messages import MachineStatus
from splitwise.scheduling.pool import Pool

LIMIT_S = ClusterLimits().max_stall_s


def report(f: ScriptedCluster, machine: int, steps: int) -> None:
    f.cluster.receive(machine, MachineStatus(0, 64, 0, 0, steps=steps))


def let_pass(f: ScriptedCluster) -> None:
    """All that has happened so far did so as long ago as the limit."""
    f.cluster._progress._moved_s = dict.fromkeys(f.cluster._progress._moved_s, -LIMIT_S)
    for live in f.cluster._attempts:
        live.moved_s = -LIMIT_S


async def test_a_machine_that_takes_prompts_and_starts_none_has_come_to_a_halt() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    live = f.cluster.submit(request())
    report(f, 0, steps=7)
    assert f.cluster.halted(time.monotonic() + LIMIT_S - 1) == set()
    assert f.cluster.halted(time.monotonic() + LIMIT_S + 1) == {0}
    let_pass(f)
    report(f, 0, steps=7)
    assert f.cluster.halted(time.monotonic()) == {0}  # whatever it reports
    f.cluster.lose(0)
    assert live.prompt_machine == 1
    assert f.cluster.halted(time.monotonic()) == set()


async def test_a_long_prompt_is_no_halt_and_an_idle_machine_owes_nothing() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request())
    f.started(0, live.task)
    for steps in range(10):
        let_pass(f)
        report(f, 0, steps)  # a layer at a time
        report(f, 1, 0)
        assert f.cluster.halted(time.monotonic()) == set()
    f.output(0, live.task, 10, 20)
    let_pass(f)
    assert f.cluster.halted(time.monotonic()) == set()  # transfers have limits of their own
    f.transferred(1, live.task)
    let_pass(f)
    assert f.cluster.halted(time.monotonic()) == {1}
    f.output(1, live.task, 11, STOP, finish=True)
    f.assert_idle()


async def test_a_request_that_its_machine_forgets_is_taken_up_elsewhere() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    live = f.cluster.submit(request())
    let_pass(f)
    report(f, 0, steps=1)  # it computes for others
    assert f.cluster.halted(time.monotonic()) == set()
    assert live.state is RequestState.PROMPT and live.prompt_machine == 1
    f.output(1, live.task, 10, STOP, finish=True)
    f.assert_idle()
