"""What this machine can do: the transports its cache allows, the packages and devices it has."""

import functools
import importlib.util
from pathlib import Path

from splitwise.transfer.address import host_identity
from splitwise.transfer.transports.choice import NIXL, OwnEnd, offered


@functools.cache
def own_end(device: str) -> OwnEnd:
    """Of a machine whose cache lies on ``device``. Looked up once: it does not change."""
    return OwnEnd(device, host_identity(), offered(device, nixl_installed()), has_rdma())


def nixl_installed() -> bool:
    """Whether the extra ``nixl`` is there. It is imported with the first link that takes it."""
    return importlib.util.find_spec("nixl") is not None


def has_rdma(root: Path = Path("/")) -> bool:
    """Whether there is an InfiniBand or RoCE port that is up, and this process may use it.

    A container sees its host's ports in /sys, too, but has their devices only where given them.
    """
    if not any((root / "dev/infiniband").glob("uverbs*")):
        return False
    states = (root / "sys/class/infiniband").glob("*/ports/*/state")
    return any("ACTIVE" in state.read_text() for state in states)


def nixl_hint(transport: str) -> str:
    """What to add to a refusal of ``transport``."""
    if transport != NIXL or nixl_installed():
        return ""
    return "; nixl is an extra: pip install 'splitwise-llm[nixl]'"
