"""Machines that cannot speak to each other are not given one request."""

import msgspec
import pytest
from scripted_cluster import Link, ScriptedCluster, request

from splitwise.cluster.reach import Reach
from splitwise.protocol.messages import Expect, RunPrompt
from splitwise.scheduling.pool import Pool
from splitwise.transfer import ReceiverAddress
from splitwise.transfer.transports.choice import can_reach, offered


def address(
    host: str = "a", device: str = "cpu", nixl: bool = False, rdma: bool = False, sends: str = ""
) -> ReceiverAddress:
    transports = offered(device, nixl)
    return ReceiverAddress("m", "127.0.0.1", 1, "name", host, device, transports, rdma, sends=sends)


GPU = address(device="cuda:0")
OTHER_GPU = address("b", device="cuda:3")
ENDS = [address(), address("b"), GPU, OTHER_GPU, address("b", "cuda:0", nixl=True, rdma=True)]


@pytest.mark.parametrize("source", ENDS)
@pytest.mark.parametrize("target", ENDS)
def test_every_pair_has_a_way_unless_one_is_forced(
    source: ReceiverAddress, target: ReceiverAddress
) -> None:
    assert can_reach([source], [target])


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (address(sends="shared_memory"), address(), True),
        (address(sends="shared_memory"), address("b"), False),
        (address(sends="shared_memory"), GPU, False),
        (address("a", "cuda:1", sends="cuda_ipc"), GPU, True),
        (address("a", "cuda:1", sends="cuda_ipc"), OTHER_GPU, False),
        (address(sends="nixl", nixl=True), address("b"), False),
        (address(sends="nixl", nixl=True), address("b", nixl=True), True),
        (address(sends="tcp"), OTHER_GPU, True),
        (address(), address("b", sends="shared_memory"), True),
    ],
)
def test_a_forced_transport_reaches_where_it_can(
    source: ReceiverAddress, target: ReceiverAddress, expected: bool
) -> None:
    assert can_reach([source], [target]) is expected


def test_every_rank_must_reach_every_rank() -> None:
    forced = address("a", "cuda:1", sends="cuda_ipc")
    assert can_reach([forced, forced], [GPU, GPU])
    assert not can_reach([forced, forced], [GPU, OTHER_GPU])


def cluster_of(*machines: tuple[Pool, ReceiverAddress]) -> ScriptedCluster:
    cluster = ScriptedCluster()
    for number, (pool, there) in enumerate(machines):
        link = Link(f"m{number}", pool)
        link.register = msgspec.structs.replace(link.register, addresses=[there])
        cluster.links.append(link)
        cluster.indices.append(cluster.cluster.join(link))
    return cluster


def placed(cluster: ScriptedCluster) -> tuple[int, int]:
    """The prompt and the token machine of one more request."""
    before = [len(link.told) for link in cluster.links]
    cluster.cluster.submit(request())
    new = [link.told[count:] for link, count in zip(cluster.links, before, strict=True)]
    [prompt] = [i for i, told in enumerate(new) if any(isinstance(m, RunPrompt) for m in told)]
    tokens = [i for i, told in enumerate(new) if any(isinstance(m, Expect) for m in told)]
    return prompt, tokens[0] if tokens else prompt


IPC = "cuda_ipc"


async def test_pairs_stay_within_reach_however_the_load_lies() -> None:
    """Two hosts whose machines are told to use CUDA IPC."""
    hosts = ["a", "b", "b", "a"]
    pools = [Pool.PROMPT, Pool.TOKEN, Pool.PROMPT, Pool.TOKEN]
    cluster = cluster_of(
        *((p, address(h, "cuda:0", sends=IPC)) for p, h in zip(pools, hosts, strict=True))
    )
    seen = [placed(cluster) for _ in range(8)]
    assert all(hosts[prompt] == hosts[token] for prompt, token in seen)
    assert {prompt for prompt, _ in seen} == {0, 2}, "both hosts work"


async def test_without_a_pair_within_reach_one_machine_computes_both_phases() -> None:
    cluster = cluster_of(
        (Pool.PROMPT, address("a", "cuda:0", sends=IPC)),
        (Pool.TOKEN, address("b", "cuda:0", sends=IPC)),
    )
    for _ in range(4):
        prompt, token = placed(cluster)
        assert prompt == token


async def test_a_machine_that_joins_brings_its_way_and_takes_it_along() -> None:
    cluster = cluster_of(
        (Pool.PROMPT, address("a", "cuda:0", sends=IPC)),
        (Pool.TOKEN, address("b", "cuda:0", sends=IPC)),
    )
    near = Link("near", Pool.TOKEN)
    near.register = msgspec.structs.replace(
        near.register, addresses=[address("a", "cuda:1", sends=IPC)]
    )
    cluster.links.append(near)
    index = cluster.cluster.join(near)
    assert placed(cluster) == (0, index)
    cluster.cluster.lose(index)
    prompt, token = placed(cluster)
    assert prompt == token


def test_machines_that_take_what_fits_are_never_looked_through() -> None:
    reach = Reach()
    for number in range(1000):
        reach.add(number, [address(f"host {number}", "cuda:0")])
    assert reach.groups() == []
    reach.add(1000, [address("host 7", "cuda:1", sends=IPC)])
    groups = reach.groups()
    assert any({7, 1000} <= set(group) for group in groups)
    assert not any({8, 1000} <= set(group) for group in groups)
    reach.remove(1000)
    assert reach.groups() == []
