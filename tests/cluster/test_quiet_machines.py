"""Machines of which nothing is heard: their requests go on elsewhere, and they may come back."""

import asyncio

import pytest
from scripted_cluster import STOP, Link, ScriptedCluster, request
from test_scheduler_server import Dialler, dialler  # noqa: F401 (a fixture)

from splitwise.cluster import scheduler_server
from splitwise.protocol.messages import Cancel, MachineStatus, RunPrompt
from splitwise.protocol.wire import WireError
from splitwise.scheduling.pool import Pool

STATUS = MachineStatus(0, 1, 0, 0)


def test_requests_leave_a_quiet_machine_which_is_used_again_when_it_is_heard() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN, Pool.TOKEN)
    live = f.begun()
    first_task = live.task
    f.cluster.suspect(1)
    assert f.links[1].last() == Cancel(first_task)  # It hears of it when it can.
    run = f.links[0].last()
    assert isinstance(run, RunPrompt) and run.spec.history == [*range(10), 20, 21]
    assert run.target == f.links[2].register.addresses
    other = f.cluster.submit(request())
    assert other.token_machine == 2
    f.output(1, first_task, 12, 66)  # It goes on where it was held up.
    f.cluster.heard_again(1)
    assert f.cluster.submit(request()).token_machine == 1
    f.output(0, live.task, 12, 22)
    f.output(2, live.task, 13, STOP, finish=True)
    assert live.history[10:] == [20, 21, 22, STOP]


def test_what_a_quiet_machine_is_done_with_goes_on() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request())
    f.output(0, live.task, 10, 20)
    f.transferred(1, live.task)
    task = live.task
    f.cluster.suspect(0)
    assert live.task == task


def test_where_nobody_is_heard_requests_wait_until_somebody_is() -> None:
    f = ScriptedCluster(Pool.MIXED)
    f.cluster.suspect(0)
    assert f.cluster.unavailable_reason() == "no machine answers"
    live = f.cluster.submit(request())
    assert live.prompt_machine == -1
    f.cluster.heard_again(0)
    assert live.prompt_machine == 0
    assert f.cluster.unavailable_reason() is None


def test_a_quiet_machine_that_is_lost_and_joins_again_is_used() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    live = f.cluster.submit(request())
    f.cluster.suspect(live.prompt_machine)
    assert live.failures == 0  # a starved host says nothing of its requests
    f.cluster.lose(0)
    assert live.failures == 0 and live.prompt_machine == 1
    f.cluster.join(Link("m0", Pool.MIXED))
    assert not f.cluster.pools.show()[0].quiet
    assert f.cluster.submit(request()).prompt_machine == 0


def test_an_operators_drain_outlasts_quiet() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    f.cluster.submit(request())
    f.cluster.pools.drain("m0")
    f.cluster.suspect(0)
    f.cluster.heard_again(0)
    assert f.cluster.submit(request()).prompt_machine == 1
    view = f.cluster.pools.show()[0]
    assert view.draining and not view.quiet


async def test_silence_on_the_wire_is_noticed_and_so_is_its_end(
    dialler: Dialler,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(scheduler_server, "LOOK_PERIOD_S", 0.02)
    killed: list[str] = []
    dialler.server._on_silent = killed.append
    await dialler.server.close(())
    dialler.address = await dialler.server.start("127.0.0.1", 0)
    for name in ("a", "b"):
        await dialler.join(name)
    a, b = dialler.wires

    def quiet() -> list[str]:
        return [view.machine_id for view in dialler.cluster.pools.show() if view.quiet]

    async def until(wanted: list[str], *speaking: object) -> None:
        async with asyncio.timeout(20):
            while quiet() != wanted:
                for wire in speaking:
                    wire.send(STATUS)  # type: ignore[attr-defined]
                await asyncio.sleep(0.01)

    await until(["a"], b)
    await until([], a, b)
    assert killed == []
    async with asyncio.timeout(20):
        while not killed:
            b.send(STATUS)
            await asyncio.sleep(0.01)
    assert killed == ["a"]
    with pytest.raises((EOFError, OSError, WireError)):
        await asyncio.wait_for(a.receive(), 10)
    await until([], b)
    assert [view.up for view in dialler.cluster.pools.show()] == [False, True]
