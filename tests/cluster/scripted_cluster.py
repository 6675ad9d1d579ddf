"""The cluster scheduler over machines that only record what they are told."""

from collections.abc import Sequence

import msgspec

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.request import LiveRequest
from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.engine.base import ModelInfo
from splitwise.engine.sampling import Sample, SamplingParams
from splitwise.protocol.generation import FinishReason, GenerationRequest
from splitwise.protocol.messages import (
    Output,
    Outputs,
    PromptsStarted,
    Register,
    Shutdown,
    Transferred,
    Welcome,
)
from splitwise.scheduling.batching import UNBOUNDED_DECODES
from splitwise.scheduling.policies.policy import DEFAULT, Policy
from splitwise.scheduling.pool import Pool
from splitwise.transfer import ReceiverAddress, TransferStats
from splitwise.transfer.layout import CacheLayout

MODEL = ModelInfo("tiny", 2, 1, 8, "float32", 100, 512)
STOP = 99


class Counters:
    """Metrics that only count."""

    def __init__(self) -> None:
        self.preemptions = 0
        self.refusals = list[bool]()
        self.priorities: list[int] = []
        self.pools = dict[str, str | None]()
        self.kept_out = set[str]()
        self.role_changes = list[tuple[str, str]]()
        self.totals = dict[str, tuple[int, int, int]]()

    def waiting(self, priorities: Sequence[int]) -> None:
        self.priorities = list(priorities)

    def refused(self, displaced: bool) -> None:
        self.refusals.append(displaced)

    def machine_gone(self, name: str) -> None: ...

    def queued(self, queue_s: float) -> None: ...

    def machine(self, name: str, usage: float, running: int, waiting: int) -> None: ...

    def machine_totals(
        self, name: str, prefix_queries_tokens: int, prefix_hits_tokens: int, preemptions: int
    ) -> None:
        self.totals[name] = (prefix_queries_tokens, prefix_hits_tokens, preemptions)

    def transfer(self, bytes_: int, early_bytes: int, visible_s: float, transport: str) -> None: ...

    def transfer_failed(self) -> None: ...

    def pool(self, name: str, pool: str | None) -> None:
        self.pools[name] = pool

    def role_changed(self, name: str, pool: str) -> None:
        self.role_changes.append((name, pool))
        self.pools[name] = pool

    def quarantined(self, name: str, is_kept_out: bool) -> None:
        (self.kept_out.add if is_kept_out else self.kept_out.remove)(name)

    def preempted(self) -> None:
        self.preemptions += 1


class Link:
    """A machine that records what it is told."""

    def __init__(
        self,
        machine_id: str,
        pool: Pool,
        blocks: int = 64,
        max_decodes: int = UNBOUNDED_DECODES,
    ) -> None:
        address = ReceiverAddress(machine_id, "127.0.0.1", 1, "", "here", "cpu", ("tcp",))
        layout = CacheLayout.flat(2, blocks, 16, 1024)
        self.register = Register(machine_id, pool, MODEL, layout, [address], max_decodes)
        self.told: list[msgspec.Struct] = []

    def send(self, message: msgspec.Struct) -> None:
        self.told.append(message)

    @property
    def is_told_to_end(self) -> bool:
        """Whether it was since it joined."""
        kinds = [type(message) for message in self.told]
        since = len(kinds) - kinds[::-1].index(Welcome)
        return Shutdown in kinds[since:]

    def last(self) -> msgspec.Struct:
        return self.told[-1]


class ScriptedCluster:
    """A cluster scheduler whose machines say what a test has them say."""

    def __init__(
        self,
        *pools: Pool,
        limits: ClusterLimits | None = None,
        blocks: int = 64,
        policy: Policy = DEFAULT,
        max_decodes: int = UNBOUNDED_DECODES,
    ) -> None:
        self.metrics = Counters()
        self.cluster = ClusterScheduler(limits or ClusterLimits(), self.metrics, policy=policy)
        self.links = [Link(f"m{i}", pool, blocks, max_decodes) for i, pool in enumerate(pools)]
        self.indices = [self.cluster.join(link) for link in self.links]

    def started(self, machine: int, task: int) -> None:
        self.cluster.receive(machine, PromptsStarted([task]))

    def transferred(self, machine: int, task: int) -> None:
        self.cluster.receive(machine, Transferred(task, TransferStats("tcp", 1, 0, 0.0, 1)))

    def output(
        self, machine: int, task: int, position: int, token: int, finish: bool = False
    ) -> None:
        reason = FinishReason.STOP if finish else None
        self.cluster.receive(machine, Outputs([Output(task, position, Sample(token), reason)]))

    def begun(self) -> LiveRequest:
        """A request of which machine 0 has said the first token, and machine 1 the second."""
        live = self.cluster.submit(request())
        self.output(0, live.task, 10, 20)
        self.output(1, live.task, 11, 21)
        return live

    def pools(self) -> list[int]:
        pools: list[int] = self.cluster.roster.cluster.pool.tolist()
        return pools

    def assert_idle(self) -> None:
        """Nothing is left of any request, and every machine is at home."""
        machines = self.cluster.roster.cluster
        for loads in (
            *(machines.pending_tokens, machines.waiting),
            *(machines.kv_tokens, machines.decodes),
        ):
            assert not any(loads)
        assert machines.pool.tolist() == machines.home.tolist()
        assert not self.cluster._attempts
        assert not self.cluster._backlog.line
        assert self.cluster._backlog.first_tokens_due == 0


def request(
    prompt: int = 10, max_tokens: int = 5, client: str = "", priority: int = 0
) -> GenerationRequest:
    tokens = list(range(prompt))
    return GenerationRequest("r", tokens, max_tokens, SamplingParams(), [STOP], client, priority)
