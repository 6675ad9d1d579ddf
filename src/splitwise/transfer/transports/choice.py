"""Which transport a link takes, from what both ends can do."""

from collections.abc import Sequence
from dataclasses import dataclass

from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.errors import LinkError

SHARED_MEMORY = "shared_memory"
CUDA_IPC = "cuda_ipc"
NIXL = "nixl"
TCP = "tcp"

SAME_HOST = frozenset({SHARED_MEMORY, CUDA_IPC})
"""The receiver hands its memory to a process beside it, over a unix socket."""
ONE_SIDED = SAME_HOST | {NIXL}
"""The sender writes into the receiver's cache by itself."""


@dataclass(frozen=True)
class OwnEnd:
    """What this machine can do, as a ``ReceiverAddress`` says it of the other."""

    device: str
    host_identity: str
    transports: tuple[str, ...]
    rdma: bool


def offered(device: str, nixl: bool) -> tuple[str, ...]:
    """What a cache on ``device`` can take part in, best first; ``nixl`` where it is installed."""
    between_hosts = (NIXL,) if nixl else ()
    within_host = CUDA_IPC if device.startswith("cuda") else SHARED_MEMORY
    return (within_host, *between_hosts, TCP)


def choose(address: ReceiverAddress, own: OwnEnd, forced: str | None) -> tuple[list[str], str]:
    """The transports from ``own`` to ``address``, best first, and the reason for the choice.

    NIXL is slower than plain streams where there is no RDMA, so it is taken for that alone, or
    when it is ``forced``.

    Raises:
        LinkError: the two ends have none in common, or not the one that is ``forced``.
    """
    same_host = address.host_identity == own.host_identity
    where = "same host" if same_host else "different hosts"
    what = f"{where}, caches on {own.device} and {address.device}"
    common = [
        name
        for name in address.transports
        if name in own.transports and _reaches(name, address, own, same_host)
    ]
    if forced is not None:
        if forced not in common:
            raise LinkError(f"transport {forced!r} cannot reach {address.machine_id}: {what}")
        return [forced], "named in the configuration"
    hindrance = _no_nixl(address, own)
    able = [name for name in common if name != NIXL or not hindrance]
    if not same_host:
        what += f"; not nixl: {hindrance}" if hindrance else "; RDMA at both"
    if not able:
        raise LinkError(
            f"no transport reaches {address.machine_id}: {what}; it offers {address.transports}"
        )
    return able, what


def can_reach(source: Sequence[ReceiverAddress], target: Sequence[ReceiverAddress]) -> bool:
    """Whether a machine can send caches to another, by the addresses of their ranks: of what is
    known before anybody dials."""
    return all(_finds_a_way(sender, receiver) for sender in source for receiver in target)


def _finds_a_way(sender: ReceiverAddress, receiver: ReceiverAddress) -> bool:
    own = OwnEnd(sender.device, sender.host_identity, sender.transports, sender.rdma)
    try:
        choose(receiver, own, sender.sends or None)
    except LinkError:
        return False
    return True


def _reaches(name: str, address: ReceiverAddress, own: OwnEnd, same_host: bool) -> bool:
    if name in SAME_HOST:
        return same_host
    # A chunk of a device's cache may be laid out otherwise than one in host memory.
    return name != NIXL or _kind(address.device) == _kind(own.device)


def _no_nixl(address: ReceiverAddress, own: OwnEnd) -> str:
    """Why it is not to be taken; empty where it is."""
    for here, transports, rdma in (
        ("here", own.transports, own.rdma),
        (f"at {address.machine_id}", address.transports, address.rdma),
    ):
        if NIXL not in transports:
            return f"it is not installed {here}"
        if not rdma:
            return f"no RDMA device {here}"
    return ""


def _kind(device: str) -> str:
    return device.partition(":")[0]
