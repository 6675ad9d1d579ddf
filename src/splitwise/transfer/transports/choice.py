"""Which transport a link takes, from what both ends can do."""

from splitwise.transfer.address import ReceiverAddress, host_identity
from splitwise.transfer.errors import LinkError

SHARED_MEMORY = "shared_memory"
CUDA_IPC = "cuda_ipc"
TCP = "tcp"

ONE_SIDED = frozenset({SHARED_MEMORY, CUDA_IPC})
"""The sender writes into the receiver's cache by itself. Same host only, over a unix socket."""


def offered(device: str) -> tuple[str, ...]:
    """What a cache on ``device`` can take part in, best first."""
    return (CUDA_IPC,) if device.startswith("cuda") else (SHARED_MEMORY, TCP)


def choose(address: ReceiverAddress, device: str, forced: str | None) -> tuple[str, str]:
    """The transport to ``address`` from a cache on ``device``, and the reason for it.

    Raises:
        LinkError: the two ends have none in common, or not the one that is ``forced``.
    """
    same_host = address.host_identity == host_identity()
    where = "same host" if same_host else "different hosts"
    able = [
        name
        for name in address.transports
        if name in offered(device) and (same_host or name not in ONE_SIDED)
    ]
    what = f"{where}, caches on {device} and {address.device}"
    if forced is not None and forced not in able:
        raise LinkError(f"transport {forced!r} cannot reach {address.machine_id}: {what}")
    if not able:
        raise LinkError(
            f"no transport reaches {address.machine_id}: {what}; it offers {address.transports}"
        )
    return (forced, "named in the configuration") if forced else (able[0], what)
