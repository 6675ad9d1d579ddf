"""How a worker is to run its machine, and what it says when it cannot."""

import msgspec

from splitwise.protocol.handshake.tls import TlsFiles
from splitwise.scheduling.policies.policy import DEFAULT, Policy
from splitwise.scheduling.pool import Pool
from splitwise.transfer import Deadlines
from splitwise.worker.machine import MachineLimits


class WorkerError(Exception):
    """The worker cannot run; the message says why and what to do."""


class SchedulerLost(WorkerError):
    """The worker was part of the cluster, and its scheduler is gone."""


class EngineHangs(WorkerError):
    """What the engine computes does not come to an end; only the process can."""


class WorkerOptions(msgspec.Struct, frozen=True):
    """How a worker is to run its machine."""

    machine_id: str
    pool: Pool
    join_host: str
    join_port: int
    cluster_key: str
    host: str = "127.0.0.1"
    """Where this machine takes caches in."""
    transfer_port: int = 0
    """The port for that; 0 picks a free one."""
    announce: tuple[str, int] | None = None
    """The address under which others dial that, where it is another."""
    rejoin_s: float = 0.0
    """How long to dial again when the cluster scheduler is lost."""
    max_stall_s: float = 300.0
    """How long an engine may do no layer and no iteration when the session is over."""
    transport: str | None = None
    """Force this transport; None chooses by what both ends can do."""
    checksum: bool = False
    deadlines: Deadlines = Deadlines()
    """Of transfers."""
    cores: list[int] = []
    """Where the engine's thread stays, so that workers on one host do not fight over cores; empty
    lets it roam. Transfers and control messages take whichever core is idle."""
    tls: TlsFiles | None = None
    """For TLS with the cluster scheduler and the other machines; None: in the clear."""
    limits: MachineLimits = MachineLimits()
    policy: Policy = DEFAULT
