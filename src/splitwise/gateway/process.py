"""The gateway process: HTTP in front, the cluster scheduler behind it, workers started and watched.

1. Listen for workers, start them, and wait until all have registered, those too that others start
   on other hosts.
2. Serve HTTP.
3. A worker that ends is started again, unless an operator drained it; its requests have gone on
   elsewhere meanwhile.
4. SIGINT or SIGTERM: new requests are refused, those that run may end within ``drain_s`` (a second
   signal cuts it short), then the workers started here are ended (others' may wait for the next
   gateway) and everything is freed.
"""

import asyncio
import logging
import secrets
import signal
import socket
import ssl
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Final

import msgspec

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.cluster.scheduler_server import SchedulerServer
from splitwise.collector import spare_collector
from splitwise.engine.generation_config import OWN, GenerationDefaults, read_generation_defaults
from splitwise.engine.model_files import ModelFolder, read_stop_token_ids
from splitwise.gateway.admin import Admin
from splitwise.gateway.api_keys import ApiKeyError, ApiKeys
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.http.server import listen, serve_http
from splitwise.gateway.openai.app import App
from splitwise.gateway.openai.gate import Gate
from splitwise.gateway.openai.validation import ModelFacts
from splitwise.gateway.text.codec import TextCodec
from splitwise.launch.launcher import (
    Launcher,
    LaunchError,
    LocalLauncher,
    WorkerSpec,
    assign_cores,
)
from splitwise.launch.supervision import Supervisor
from splitwise.observe.metrics import Metrics
from splitwise.protocol.handshake.tls import ClusterTls, TlsError, TlsFiles
from splitwise.scheduling.policies.policy import DEFAULT, Policy
from splitwise.scheduling.pool import Pool

log = logging.getLogger(__name__)

GUESSED_BELOW_CHARACTERS: Final = 16
"""A cluster key that is shorter."""
PATIENCE_S: Final = 30.0
"""How often the gateway says for whom it still waits."""
THREAD_SWITCH_S: Final = 0.001
"""A thread that makes text yields the interpreter this often (Python's default is five times
longer), so that the event loop hardly waits for it."""
LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
WILDCARDS: Final = ("", "0.0.0.0", "::")


class Access(msgspec.Struct, frozen=True):
    """Who may use the HTTP API, and whether it is HTTPS."""

    keys: ApiKeys = ApiKeys()
    min_priority: int | None = None
    """The most urgent that a request may ask for (``Gate``)."""
    open_metrics: bool = False
    """Whether ``/metrics`` is answered without a key, too."""
    tls: ssl.SSLContext | None = None
    reload: Callable[[], None] | None = None
    """Read the files of both again; None where there are none.

    Raises:
        ApiKeyError, TlsError: they cannot be used; what was in force stays."""


class ServeOptions(msgspec.Struct, frozen=True):
    """What ``splitwise serve`` was asked for."""

    host: str = "127.0.0.1"
    port: int = 8000
    prompt: int = 1
    token: int = 1
    mixed: int = 0
    external_workers: int = 0
    """Workers that others start and that are waited for."""
    scheduler_host: str = "127.0.0.1"
    """Where workers dial in."""
    scheduler_port: int = 0
    cluster_key: str = ""
    """What workers prove; empty: made up, for workers of this host alone."""
    cluster_tls: TlsFiles | None = None
    """For TLS with the workers; None: in the clear."""
    threads: int = 1
    served_model_name: str | None = None
    chat_template: Path | None = None
    """A file to take in place of the model's own template."""
    generation_config: str = OWN
    """Whose sampling settings are the default: the model's own, none, or a folder's."""
    worker_arguments: list[str] = []
    start_limit_s: float = 600.0
    """From a worker's start to the cluster."""
    cluster: ClusterLimits = ClusterLimits()
    http: HttpLimits = HttpLimits()
    access: Access = Access()
    admin_key: str = ""
    """What operators prove; empty: there is no admin endpoint."""
    policy: Policy = DEFAULT

    def worker_specs(self, join: str) -> list[WorkerSpec]:
        """The workers to start; ``join`` is the address they dial."""
        pools = [Pool.PROMPT] * self.prompt + [Pool.TOKEN] * self.token + [Pool.MIXED] * self.mixed
        cores = assign_cores(len(pools), self.threads)
        return [
            WorkerSpec(
                machine_id=f"{pool.name.lower()}-{pools[:i].count(pool)}",
                pool=pool,
                threads=self.threads,
                cores=cores[i],
                arguments=[f"--join={join}", f"--rank={i}", *self.worker_arguments],
            )
            for i, pool in enumerate(pools)
        ]


class Gateway:
    """Everything the gateway process runs, from the workers' start to their end."""

    def __init__(
        self,
        options: ServeOptions,
        folder: ModelFolder,
        new_launcher: Callable[[str], Launcher] = LocalLauncher,
    ) -> None:
        """``new_launcher`` gets the cluster key and starts the workers.

        Raises:
            ModelError: the model's files or settings make no sense. Whether it can be served is
                the engine's to say.
            FileNotFoundError, ChatTemplateError: it has no tokenizer, or no usable template.
            LaunchError: the options make no cluster.
            TlsError: a file of ``cluster_tls`` cannot be used.
        """
        self._options = options
        key = _cluster_key(options)
        self.model_name = options.served_model_name or folder.name
        self._defaults = read_generation_defaults(folder.path, options.generation_config)
        self._text = TextCodec.load(folder.path, options.chat_template)
        ends = read_stop_token_ids(folder, options.generation_config)
        self._stop_token_ids = sorted({*ends, *self._text.end_of_turn_ids()})
        self._metrics = Metrics(self.model_name)
        self.cluster = ClusterScheduler(options.cluster, self._metrics, folder.name, options.policy)
        self._launcher = new_launcher(key)
        self._tls = None if options.cluster_tls is None else ClusterTls(options.cluster_tls)
        self._server = SchedulerServer(
            self.cluster, key, on_silent=self._launcher.kill, tls=self._tls
        )
        self._specs: dict[str, WorkerSpec] = {}

    async def run(self, announce: Callable[[str], None]) -> None:
        """Serve until SIGINT or SIGTERM; ``announce`` gets the base URL once all is ready.

        Raises:
            LaunchError: a worker could not be started, or did not come.
            OSError: the HTTP address cannot be bound.
        """
        stop, hurry = _stop_on_signals()
        async with AsyncExitStack() as closing:
            closing.callback(self._text.close)
            listener = listen(self._options.host, self._options.port)
            closing.callback(listener.close)
            join_host, join_port = await self._server.start(
                self._options.scheduler_host, self._options.scheduler_port
            )
            log.info("workers join at %s:%d", join_host, join_port)
            closing.push_async_callback(self._launcher.stop)
            closing.push_async_callback(lambda: self._server.close(self._specs))
            specs = self._options.worker_specs(f"{join_host}:{join_port}")
            self._specs = {spec.machine_id: spec for spec in specs}
            if not await self._start_workers(specs, stop):
                return
            await self._serve_http(announce, listener, stop, hurry)

    async def _start_workers(self, specs: list[WorkerSpec], stop: asyncio.Event) -> bool:
        """Start all workers and wait until they have joined; False if told to stop meanwhile."""
        await self._launcher.start(specs)
        external = self._options.external_workers
        if external:
            log.info("waiting for %d workers that others start", external)
        joined = asyncio.create_task(self.cluster.roster.wait_for(len(specs) + external))
        exited = asyncio.create_task(self._launcher.wait_for_exit())
        stopped = asyncio.create_task(stop.wait())
        report = asyncio.create_task(self._say_who_is_missing(specs))
        ends: list[asyncio.Task[Any]] = [joined, exited, stopped]
        limit_s = self._options.start_limit_s
        try:
            await asyncio.wait(ends, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if stopped.done():
                return False
            if exited.done():
                machine_id, how = exited.result()
                raise LaunchError(f"worker {machine_id} could not start ({how})")
            if not joined.done():
                raise LaunchError(
                    f"{self._missing(specs)} did not join within {limit_s:g} s; look into the log "
                    "above, or give more time by --start-limit-s"
                )
            return True
        finally:
            await _end_tasks([*ends, report])

    async def _say_who_is_missing(self, specs: list[WorkerSpec]) -> None:
        while True:
            await asyncio.sleep(PATIENCE_S)
            log.info("still waiting for %s", self._missing(specs))

    def _missing(self, specs: list[WorkerSpec]) -> str:
        is_connected = self.cluster.pools.is_connected
        names = [spec.machine_id for spec in specs if not is_connected(spec.machine_id)]
        return ", ".join(names) or "workers that others start"

    async def _serve_http(
        self,
        announce: Callable[[str], None],
        listener: socket.socket,
        stop: asyncio.Event,
        hurry: asyncio.Event,
    ) -> None:
        model = ModelFacts(
            name=self.model_name,
            max_context_tokens=self.cluster.roster.max_context_tokens(),
            vocab_size=self.cluster.roster.vocab_size,
            stop_token_ids=tuple(self._stop_token_ids),
            defaults=self._defaults,
        )
        if self._defaults != GenerationDefaults():
            log.info("sampling settings of requests that do not say: %s", self._defaults)
        limits, access = self._options.http, self._options.access
        app = App(
            self.cluster,
            self._text,
            model,
            self._metrics,
            limits,
            self.cluster.unavailable_reason,
            Gate(access.keys, access.open_metrics, stop, access.min_priority),
        )
        again = [read for read in (access.reload, self._tls and self._tls.load) if read]
        if again:
            # Without files to read again SIGHUP ends the process, as a closed terminal means it to.
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, _reload, again)
        pools = self.cluster.pools
        supervisor = Supervisor(
            self._launcher,
            self._specs,
            pools.is_out_of_service,
            pools.is_connected,
            self._options.start_limit_s,
        )
        supervision = asyncio.create_task(supervisor.run())
        supervision.add_done_callback(_tell_end)
        spare_collector()
        sys.setswitchinterval(THREAD_SWITCH_S)
        try:
            host, port = listener.getsockname()[:2]
            announce(f"{'https' if access.tls else 'http'}://{host}:{port}")
            admin = Admin(app, self.cluster.pools, self._options.admin_key, limits)
            await serve_http(admin, listener, limits, stop, access.tls, hurry)
        finally:
            await _end_tasks([supervision])


def _cluster_key(options: ServeOptions) -> str:
    """
    Raises:
        LaunchError: workers of elsewhere are asked for, and no key they could prove; or they would
            not know where to dial.
    """
    host = options.scheduler_host
    if host in WILDCARDS:
        raise LaunchError(f"--scheduler-host {host!r}: name the address that workers dial")
    if options.cluster_key:
        if len(options.cluster_key) < GUESSED_BELOW_CHARACTERS:
            log.warning(
                "SPLITWISE_CLUSTER_KEY has %d characters: whoever reaches a worker's port can try "
                "out short keys at leisure; take a random one (openssl rand -hex 32)",
                len(options.cluster_key),
            )
        return options.cluster_key
    if host not in LOOPBACK or options.external_workers:
        asked = f"--external-workers {options.external_workers}"
        raise LaunchError(
            f"{asked if host in LOOPBACK else f'--scheduler-host {host}'}: only workers of this "
            "host's own are served without a cluster key; set SPLITWISE_CLUSTER_KEY, here and for "
            "every worker"
        )
    return secrets.token_hex(16)


def _reload(again: list[Callable[[], None]]) -> None:
    try:
        for read in again:
            read()
    except (ApiKeyError, TlsError) as error:
        log.error("API keys or certificate not read again: %s; the ones before stay", error)
    else:
        log.info("API keys and certificates are read again")


def _stop_on_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """Events that the first signal sets, and the second."""
    stop, hurry = asyncio.Event(), asyncio.Event()

    def on_signal() -> None:
        (hurry if stop.is_set() else stop).set()

    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, on_signal)
    return stop, hurry


def _tell_end(supervision: asyncio.Task[None]) -> None:
    """It ends by itself only if it fails; nobody would notice before the gateway's end."""
    if not supervision.cancelled() and (error := supervision.exception()) is not None:
        log.error("workers that end are not started again any more: %s", error, exc_info=error)


async def _end_tasks(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    for end in await asyncio.gather(*tasks, return_exceptions=True):
        if isinstance(end, Exception):
            log.error("a task of the gateway failed", exc_info=end)
