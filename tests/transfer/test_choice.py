"""Which transport a link takes."""

import msgspec
import pytest

from splitwise.transfer import ReceiverAddress
from splitwise.transfer.address import host_identity
from splitwise.transfer.errors import LinkError
from splitwise.transfer.transports.choice import choose

HERE = ReceiverAddress(
    "token", "127.0.0.1", 1, "name", host_identity(), "cpu", ("shared_memory", "tcp")
)
ELSEWHERE = msgspec.structs.replace(HERE, host_identity="another")
DEVICE = msgspec.structs.replace(HERE, device="cuda:0", transports=("cuda_ipc",))


@pytest.mark.parametrize(
    ("address", "device", "forced", "expected"),
    [
        (HERE, "cpu", None, "shared_memory"),
        (HERE, "cpu", "tcp", "tcp"),
        (ELSEWHERE, "cpu", None, "tcp"),
        (msgspec.structs.replace(HERE, transports=("tcp",)), "cpu", None, "tcp"),
        (DEVICE, "cuda:1", None, "cuda_ipc"),
    ],
)
def test_the_best_that_both_can_do(
    address: ReceiverAddress, device: str, forced: str | None, expected: str
) -> None:
    name, reason = choose(address, device, forced)
    assert name == expected
    assert reason


@pytest.mark.parametrize(
    ("address", "device", "forced", "message"),
    [
        (ELSEWHERE, "cpu", "shared_memory", "different hosts"),
        (HERE, "cuda:0", None, "caches on cuda:0 and cpu"),
        (msgspec.structs.replace(DEVICE, host_identity="x"), "cuda:0", None, "different hosts"),
    ],
)
def test_none_in_common_says_why(
    address: ReceiverAddress, device: str, forced: str | None, message: str
) -> None:
    with pytest.raises(LinkError, match=message):
        choose(address, device, forced)


def test_an_address_travels_as_plain_data() -> None:
    assert msgspec.msgpack.decode(msgspec.msgpack.encode(HERE), type=ReceiverAddress) == HERE
