"""The cluster scheduler alone: many machines, in this process, that only say what they would.

Every request lives its whole life as the scheduler sees it: placed, started, first token from the
prompt machine, cache moved, tokens from the token machine, ended. What is timed by itself is the
decision: ``submit``, from admission to the messages for both machines.
"""

import asyncio
import resource
import statistics
import time
from collections import deque
from collections.abc import Iterator

import msgspec
import uvloop

from common import percentile
from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.request import LiveRequest
from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.cluster.scheduler_server import SchedulerServer
from splitwise.engine.base import ModelInfo
from splitwise.engine.sampling import Sample, SamplingParams
from splitwise.observe.metrics import Metrics
from splitwise.protocol.generation import FinishReason, GenerationRequest
from splitwise.protocol.messages import (
    MachineStatus,
    Output,
    Outputs,
    PromptsStarted,
    Register,
    Transferred,
)
from splitwise.scheduling.pool import Pool
from splitwise.transfer import ReceiverAddress, TransferStats
from splitwise.transfer.layout import CacheLayout
from splitwise.worker.options import WorkerOptions
from splitwise.worker.runner import Command, MachineFacts, MachineRunner, Say
from splitwise.worker.session import Session

PROMPT_TOKENS = 256
OUTPUT_TOKENS = 4
LIVE_A_MACHINE = 4
_MODEL = ModelInfo("null", 2, 1, 1, "int64", 520, 32768)
LEAVE_S = 2.0
"""For a scheduler to notice that all machines are gone."""
_KEY = "a key"
_STATS = TransferStats("tcp", 1, 0, 0.0, 1)


class SilentLink:
    """A machine that takes messages and never answers by itself."""

    def __init__(self, number: int, pool: Pool) -> None:
        name = f"m{number}"
        address = ReceiverAddress(name, "127.0.0.1", 1, "", "here", "cpu", ("tcp",))
        self.register = Register(name, pool, _MODEL, CacheLayout.flat(2, 4096, 16, 128), [address])

    def send(self, message: msgspec.Struct) -> None:
        pass


def _life(cluster: ClusterScheduler, live: LiveRequest) -> Iterator[None]:
    """What both machines say of a request, a message a step."""
    prompt, token, task = live.prompt_machine, live.token_machine, live.task
    cluster.receive(prompt, PromptsStarted([task]))
    yield
    cluster.receive(prompt, Outputs([Output(task, PROMPT_TOKENS, Sample(5))]))
    yield
    cluster.receive(token, Transferred(task, _STATS))
    for number in range(1, OUTPUT_TOKENS):
        yield
        finish = FinishReason.LENGTH if number == OUTPUT_TOKENS - 1 else None
        cluster.receive(token, Outputs([Output(task, PROMPT_TOKENS + number, Sample(5), finish)]))


async def _run(machines: int, requests: int) -> dict[str, float]:
    cluster = ClusterScheduler(ClusterLimits(max_waiting_requests=10**9), Metrics("null"))
    for number in range(machines):
        cluster.join(SilentLink(number, Pool.PROMPT if number % 2 else Pool.TOKEN))
    lives: deque[Iterator[None]] = deque()
    decision_s: list[float] = []
    prompt = list(range(PROMPT_TOKENS))
    began_s = time.perf_counter()
    for number in range(requests):
        request = GenerationRequest(str(number), prompt, OUTPUT_TOKENS, SamplingParams(), [])
        at_s = time.perf_counter()
        live = cluster.submit(request)
        decision_s.append(time.perf_counter() - at_s)
        lives.append(_life(cluster, live))
        while len(lives) > LIVE_A_MACHINE * machines:
            _advance(lives)
    whole_s = time.perf_counter() - began_s
    return {
        "machines": machines,
        "requests": requests,
        "decisions_per_s": 1 / statistics.mean(decision_s),
        "decision_p50_us": percentile(decision_s, 50) * 1e6,
        "decision_p99_us": percentile(decision_s, 99) * 1e6,
        "decision_max_us": max(decision_s) * 1e6,
        "live_requests": len(lives),
        "whole_lives_per_s": (requests - len(lives)) / whole_s,
    }


def _advance(lives: deque[Iterator[None]]) -> None:
    """Let the next request, in turn, have its next message; one that has had its last is gone."""
    life = lives.popleft()
    for _ in life:
        lives.append(life)
        break


def measure_scheduler(machines: int, requests: int) -> dict[str, float]:
    """Requests through a cluster scheduler of ``machines`` machines, half of each kind."""
    return asyncio.run(_run(machines, requests))


class IdleRunner(MachineRunner):
    """A machine that joins and does nothing."""

    def __init__(self, number: int) -> None:
        register = SilentLink(number, Pool.MIXED).register
        self.facts = MachineFacts(register.model, register.layout, register.addresses)

    async def run(self) -> None:
        await asyncio.get_running_loop().create_future()

    def take(self, command: Command) -> None: ...

    def status(self) -> MachineStatus:
        return MachineStatus(0, self.facts.layout.blocks, 0, 0)

    async def close(self) -> None: ...


def _session(number: int, port: int) -> Session:
    async def open_runner(say: Say) -> MachineRunner:
        return IdleRunner(number)

    pool = Pool.PROMPT if number % 2 else Pool.TOKEN
    return Session(open_runner, WorkerOptions(f"m{number}", pool, "127.0.0.1", port, _KEY))


async def _join_all(machines: int) -> dict[str, float]:
    hosts = [ClusterScheduler(ClusterLimits(), Metrics("null")) for _ in range(2)]
    servers = [SchedulerServer(host, _KEY) for host in hosts]
    ports = [(await server.start("127.0.0.1", 0))[1] for server in servers]
    figures: dict[str, float] = {}
    for name, at in (("join", 0), ("rejoin_another", 1), ("rejoin_same", 1)):
        began_s, used_s = time.perf_counter(), -time.process_time()
        sessions = [_session(number, ports[at]) for number in range(machines)]
        running = [asyncio.create_task(session.run()) for session in sessions]
        joined = asyncio.create_task(hosts[at].roster.wait_for(machines))
        await asyncio.wait([joined, *running], return_when=asyncio.FIRST_COMPLETED)
        for ended in filter(asyncio.Task.done, running):
            ended.result()  # says why it could not join
        figures[f"{name}_s"] = time.perf_counter() - began_s
        figures[f"{name}_cpu_s"] = used_s + time.process_time()
        for session in sessions:
            session.stop()
        await asyncio.gather(*running)
        await asyncio.sleep(LEAVE_S)
    for server in servers:
        await server.close(())
    return figures


def measure_joins(machines: int) -> dict[str, float]:
    """Workers' sessions and their scheduler, all on one loop: from the first dial until all have
    joined; to a scheduler that does not know them, and to the one that they left."""
    _, limit = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    return uvloop.run(_join_all(machines))
