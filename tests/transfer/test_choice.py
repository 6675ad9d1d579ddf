"""Which transport a link takes."""

from itertools import product
from pathlib import Path

import msgspec
import pytest

from splitwise.transfer import ReceiverAddress
from splitwise.transfer.address import host_identity
from splitwise.transfer.errors import LinkError
from splitwise.transfer.transports.choice import OwnEnd, choose, offered
from splitwise.transfer.transports.own_end import has_rdma, own_end


def receiver(
    host: str = "here", device: str = "cpu", nixl: bool = False, rdma: bool = False
) -> ReceiverAddress:
    transports = offered(device, nixl)
    return ReceiverAddress("token", "127.0.0.1", 1, "name", host, device, transports, rdma)


def sender(device: str = "cpu", nixl: bool = False, rdma: bool = False) -> OwnEnd:
    return OwnEnd(device, "here", offered(device, nixl), rdma)


SHARED_ALONE = msgspec.structs.replace(receiver("there"), transports=("shared_memory",))
TCP_ALONE = msgspec.structs.replace(receiver(), transports=("tcp",))


@pytest.mark.parametrize(
    ("address", "own", "forced", "expected"),
    [
        (receiver(), sender(), None, "shared_memory"),
        (receiver(), sender(), "tcp", "tcp"),
        (receiver("there"), sender(), None, "tcp"),
        (TCP_ALONE, sender(), None, "tcp"),
        (receiver(device="cuda:0"), sender("cuda:1"), None, "cuda_ipc"),
        # Of a device and of host memory, in one host or two: by way of host memory.
        (receiver(), sender("cuda:0"), None, "tcp"),
        (receiver(device="cuda:0"), sender(), None, "tcp"),
        (receiver("there", "cuda:0"), sender("cuda:0"), None, "tcp"),
        (receiver(nixl=True, rdma=True), sender("cuda:0", True, True), None, "tcp"),
        (receiver(nixl=True), sender(nixl=True), "nixl", "nixl"),
        (receiver("there", nixl=True), sender(nixl=True), "nixl", "nixl"),
        (receiver("there", nixl=True, rdma=True), sender(nixl=True, rdma=True), "tcp", "tcp"),
    ],
)
def test_the_best_that_both_can_do(
    address: ReceiverAddress, own: OwnEnd, forced: str | None, expected: str
) -> None:
    [name, *_], reason = choose(address, own, forced)
    assert name == expected
    assert reason


ENDS = list(product((False, True), repeat=2))
"""All of (NIXL installed, RDMA there)."""


@pytest.mark.parametrize("theirs", ENDS)
@pytest.mark.parametrize("ours", ENDS)
def test_nixl_is_taken_where_both_have_it_and_rdma(
    ours: tuple[bool, bool], theirs: tuple[bool, bool]
) -> None:
    both = all(ours) and all(theirs)
    [name, *_], reason = choose(receiver("there", "cpu", *theirs), sender("cpu", *ours), None)
    assert name == ("nixl" if both else "tcp")
    assert ("not nixl" in reason) == (not both)
    # Within a host it never is: there the memory itself can be handed over.
    [name, *_], reason = choose(receiver("here", "cpu", *theirs), sender("cpu", *ours), None)
    assert (name, reason) == ("shared_memory", "same host, caches on cpu and cpu")
    address, own = receiver("there", "cuda:0", *theirs), sender("cuda:0", *ours)
    names, reason = choose(address, own, None)
    assert names == (["nixl", "tcp"] if both else ["tcp"])
    assert reason.startswith("different hosts, caches on cuda:0 and cuda:0")


@pytest.mark.parametrize(
    ("ours", "theirs", "hindrance"),
    [
        ((False, True), (True, True), "it is not installed here"),
        ((True, True), (False, False), "it is not installed at token"),
        ((True, False), (True, True), "no RDMA device here"),
        ((True, True), (True, False), "no RDMA device at token"),
    ],
)
def test_why_it_is_not_nixl(
    ours: tuple[bool, bool], theirs: tuple[bool, bool], hindrance: str
) -> None:
    _, reason = choose(receiver("there", "cpu", *theirs), sender("cpu", *ours), None)
    assert reason == f"different hosts, caches on cpu and cpu; not nixl: {hindrance}"


@pytest.mark.parametrize(
    ("address", "own", "forced", "message"),
    [
        (receiver("there"), sender(), "shared_memory", "different hosts"),
        (receiver(nixl=True, rdma=True), sender("cuda:0", True, True), "nixl", "cuda:0 and cpu"),
        (receiver("there", "cuda:0"), sender("cuda:0"), "cuda_ipc", "different hosts"),
        (SHARED_ALONE, sender(), None, "it offers"),
        (receiver("there"), sender(nixl=True, rdma=True), "nixl", "'nixl' cannot reach token"),
    ],
)
def test_none_in_common_says_why(
    address: ReceiverAddress, own: OwnEnd, forced: str | None, message: str
) -> None:
    with pytest.raises(LinkError, match=message):
        choose(address, own, forced)


def test_an_address_travels_as_plain_data() -> None:
    address = receiver(nixl=True, rdma=True)
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(address), type=ReceiverAddress) == address


def test_this_end_is_on_this_host() -> None:
    own = own_end("cpu")
    assert own.host_identity == host_identity()
    assert {"shared_memory", "tcp"} <= set(own.transports)


@pytest.mark.parametrize(
    ("state", "device", "expected"),
    [
        ("4: ACTIVE", "uverbs0", True),
        ("1: DOWN", "uverbs0", False),
        ("4: ACTIVE", None, False),  # a container that was not given the host's device
        (None, None, False),
    ],
)
def test_rdma_needs_a_port_that_is_up_and_a_device_to_use_it(
    tmp_path: Path, state: str | None, device: str | None, expected: bool
) -> None:
    if state is not None:
        port = tmp_path / "sys/class/infiniband/mlx5_0/ports/1"
        port.mkdir(parents=True)
        (port / "state").write_text(f"{state}\n")
    if device is not None:
        (tmp_path / "dev/infiniband").mkdir(parents=True)
        (tmp_path / "dev/infiniband" / device).touch()
    assert has_rdma(tmp_path) is expected
