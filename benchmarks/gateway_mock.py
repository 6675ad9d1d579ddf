"""Our gateway and cluster scheduler over mock machines: the counterpart of ``gateway_peer``.

The machines speak the workers' protocol but have no engine, no cache and no transfer: a prompt
machine gives the first token at once, a token machine the others, at once or at every tick. What
a request takes here is the gateway's and the scheduler's own.
"""

import asyncio
import multiprocessing as mp
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import uvloop

from common import milliseconds
from front_client import closed_loop, open_loop, post
from processes import cpu_s
from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.cluster.scheduler_server import SchedulerServer
from splitwise.collector import spare_collector
from splitwise.engine.base import ModelInfo
from splitwise.engine.model_files import read_model_info, read_stop_token_ids
from splitwise.engine.null.engine import null_model
from splitwise.engine.sampling import Sample
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.http.server import listen, serve_http
from splitwise.gateway.openai.app import App
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec
from splitwise.observe.metrics import Metrics
from splitwise.protocol.generation import FinishReason
from splitwise.protocol.messages import (
    Expect,
    MachineStatus,
    Output,
    Outputs,
    PromptsStarted,
    Register,
    RunPrompt,
    Shutdown,
    ToWorker,
    Transferred,
    Welcome,
)
from splitwise.protocol.registration import register
from splitwise.protocol.wire import Wire
from splitwise.scheduling.pool import Pool
from splitwise.transfer import ReceiverAddress, TransferStats
from splitwise.transfer.layout import CacheLayout

KEY = "benchmark"
PATH = "/v1/completions"
BODY = {"prompt": "word " * 16, "max_tokens": 2, "temperature": 0}
STREAM_TOKENS = 128
TICK_S = 0.02
POOLS = ("PROMPT", "TOKEN")
_WORD = Sample(300)
_STATS = TransferStats("tcp", 1, 0, 0.0, 1)


def _serve_gateway(pipe: Any) -> None:
    """The gateway process: reports where workers dial and clients connect."""
    folder = null_model()
    info = read_model_info(folder)
    model = ModelFacts("null", 32768, info.vocab_size, tuple(read_stop_token_ids(folder)))
    codec, limits, metrics = TextCodec.load(folder.path), HttpLimits(), Metrics("null")

    async def main() -> None:
        cluster = ClusterScheduler(ClusterLimits(max_waiting_requests=4096), metrics)
        server = SchedulerServer(cluster, KEY)
        _, worker_port = await server.start("127.0.0.1", 0)
        listener, stop = listen("127.0.0.1", 0), asyncio.Event()
        pipe.send((worker_port, info))
        await cluster.roster.wait_for(2)
        app = App(cluster, codec, model, metrics, limits, lambda: None)
        spare_collector()
        pipe.send(listener.getsockname()[1])
        asyncio.get_running_loop().add_reader(pipe.fileno(), stop.set)
        await serve_http(app, listener, limits, stop)
        await server.close(POOLS)

    uvloop.run(main())
    codec.close()


class MockMachine:
    """A machine's control connection, and its requests in their token phase."""

    def __init__(self, pool: Pool, wire: Wire[ToWorker]) -> None:
        self._pool = pool
        self._wire = wire
        self._running: list[tuple[int, int, int]] = []

    async def run(self, info: ModelInfo) -> None:
        name = self._pool.name
        address = ReceiverAddress(name, "127.0.0.1", 1, "", "here", "cpu", ("tcp",))
        layout = CacheLayout.flat(2, 1 << 22, 16, 128)
        machine = Register(name, self._pool, info, layout, [address])
        assert isinstance(await register(self._wire, KEY, machine), Welcome)
        beat = asyncio.create_task(self._beat())
        try:
            while not isinstance(message := await self._wire.receive(), Shutdown):
                self._take(message)
        finally:
            beat.cancel()
            await self._wire.close()

    def _take(self, message: ToWorker) -> None:
        if isinstance(message, RunPrompt):
            spec = message.spec
            self._wire.send(PromptsStarted([spec.task]))
            self._wire.send(Outputs([Output(spec.task, len(spec.history), _WORD)]))
        elif isinstance(message, Expect):
            spec = message.spec
            self._wire.send(Transferred(spec.task, _STATS))
            at, end = len(spec.history) + 1, spec.max_history_tokens
            if end - at == 1:  # an output of two tokens is all at once, one of more comes in ticks
                last = Output(spec.task, at, _WORD, FinishReason.LENGTH)
                self._wire.send(Outputs([last]))
            else:
                self._running.append((spec.task, at, end))

    async def _beat(self) -> None:
        """A token for every stream at every tick, and a sign of life."""
        while True:
            await asyncio.sleep(TICK_S)
            items = [
                Output(task, at, _WORD, FinishReason.LENGTH if at + 1 == end else None)
                for task, at, end in self._running
            ]
            self._running = [(t, at + 1, end) for t, at, end in self._running if at + 1 < end]
            self._wire.send(Outputs(items) if items else MachineStatus(0, 1, 0, 0))


def _serve_machines(port: int, info: ModelInfo) -> None:
    async def one(pool: Pool) -> None:
        wire: Wire[ToWorker] = await Wire.dial("127.0.0.1", port, ToWorker)
        await MockMachine(pool, wire).run(info)

    async def main() -> None:
        await asyncio.gather(*(one(Pool[name]) for name in POOLS))

    uvloop.run(main())


@contextmanager
def _gateway() -> Iterator[tuple[int, int]]:
    """A gateway with its two mock machines: its HTTP port and process id."""
    context = mp.get_context("spawn")
    pipe, other = context.Pipe()
    gateway = context.Process(target=_serve_gateway, args=(other,), daemon=True)
    gateway.start()
    port, info = pipe.recv()
    machines = context.Process(target=_serve_machines, args=(port, info), daemon=True)
    machines.start()
    try:
        http_port = pipe.recv()
        assert gateway.pid is not None
        yield http_port, gateway.pid
    finally:
        pipe.send("stop")
        for process in (gateway, machines):
            process.join(20)
            process.terminate()


def measure(requests: int, clients: int, seconds: float) -> dict[str, Any]:
    """The figures of ``front_figures`` for our gateway."""
    with _gateway() as (port, pid):
        return front_figures(port, pid, BODY, requests, clients, seconds)


def front_figures(
    port: int, pid: int, body: dict[str, Any], requests: int, clients: int, seconds: float
) -> dict[str, Any]:
    """One client, many clients, half of that rate, and streams; the CPU time is process ``pid``'s.

    The body asks for two tokens.
    """
    request = [post(PATH, body)]
    stream = [post(PATH, body | {"max_tokens": STREAM_TOKENS, "stream": True})]
    uvloop.run(closed_loop(port, request, clients, requests // 4))
    one = uvloop.run(closed_loop(port, request, 1, requests // 4))
    used_s, began_s = -cpu_s(pid), time.perf_counter()
    many = uvloop.run(closed_loop(port, request, clients, requests))
    per_s = requests / (time.perf_counter() - began_s)
    used_s += cpu_s(pid)
    half = uvloop.run(open_loop(port, request[0], per_s / 2, seconds))
    streams = max(2 * clients, requests // 20)
    stream_s = -cpu_s(pid)
    uvloop.run(closed_loop(port, stream, clients, streams))
    stream_s += cpu_s(pid)
    return {
        "one_client": milliseconds([e.took_s for _, e in one]),
        "requests_per_s": per_s,
        "took": milliseconds([e.took_s for _, e in many]),
        "cpu_us_per_request": used_s / requests * 1e6,
        "half_load": milliseconds([e.took_s for e in half]),
        "cpu_us_per_streamed_token": stream_s / (streams * STREAM_TOKENS) * 1e6,
    }
