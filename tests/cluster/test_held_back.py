"""What machines say of themselves; blocks that they keep for transfers of tasks that have ended are
not free."""

import pytest
from scripted_cluster import STOP, ScriptedCluster, request

from splitwise.cluster.request import RequestState
from splitwise.protocol.messages import MachineStatus
from splitwise.scheduling.pool import Pool


def say(f: ScriptedCluster, machine: int, **blocks: int) -> None:
    leaving = {int(task.removeprefix("t")): count for task, count in blocks.items()}
    f.cluster.receive(machine, MachineStatus(sum(leaving.values()), 64, 0, 0, leaving))


def kv_tokens(f: ScriptedCluster) -> list[int]:
    loads: list[int] = f.cluster.roster.cluster.kv_tokens.tolist()
    return loads


async def test_what_a_stuck_transfer_keeps_is_not_placed_upon_until_it_is_free() -> None:
    f = ScriptedCluster(Pool.MIXED)
    live = f.cluster.submit(request(prompt=500))
    task = live.task
    live.cancel()
    say(f, 0, **{f"t{task}": 32})
    assert kv_tokens(f) == [512]
    waits = f.cluster.submit(request(prompt=600))
    assert waits.state is RequestState.WAITING  # half of the cache is still taken
    say(f, 0, **{f"t{task}": 32})
    assert kv_tokens(f) == [512]  # the same blocks, told again
    say(f, 0)
    assert waits.state is RequestState.PROMPT
    waits.cancel()
    f.assert_idle()


async def test_blocks_that_a_request_is_charged_for_are_not_counted_twice() -> None:
    f = ScriptedCluster(Pool.PROMPT, Pool.TOKEN)
    live = f.cluster.submit(request(prompt=31))
    f.output(0, live.task, 31, 20)  # it is being sent
    before = kv_tokens(f)
    say(f, 0, **{f"t{live.task}": 2})
    assert kv_tokens(f) == before == [32, 48]
    f.transferred(1, live.task)
    assert kv_tokens(f) == [0, 48]
    say(f, 0, **{f"t{live.task}": 2})  # the sender has not heard so yet
    assert kv_tokens(f) == [32, 48]
    say(f, 0)
    f.output(1, live.task, 32, STOP, finish=True)
    f.assert_idle()


async def test_a_machine_that_keeps_blocks_is_not_told_to_end_and_forgets_them_when_lost() -> None:
    f = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    say(f, 0, t77=3)
    f.cluster.pools.drain("m0")
    assert not f.links[0].is_told_to_end
    say(f, 0)
    assert f.links[0].is_told_to_end
    say(f, 1, t78=3)
    f.cluster.lose(1)
    f.cluster.join(f.links[1])
    f.assert_idle()


async def test_what_an_engine_has_counted_is_reported() -> None:
    f = ScriptedCluster(Pool.MIXED)
    status = MachineStatus(
        0, 64, 0, 0, prefix_queries_tokens=2**40, prefix_hits_tokens=7, preemptions=3
    )
    f.cluster.receive(0, status)
    assert f.metrics.totals == {"m0": (2**40, 7, 3)}


@pytest.mark.parametrize(
    "status", [MachineStatus(65, 64, 0, 0), MachineStatus(10, 64, 0, 0, {1: 40, 2: 40})]
)
async def test_a_status_that_cannot_be_is_refused(status: MachineStatus) -> None:
    f = ScriptedCluster(Pool.MIXED)
    with pytest.raises(ValueError, match="more blocks in use than there are"):
        f.cluster.receive(0, status)
    f.assert_idle()
