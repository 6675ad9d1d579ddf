"""Ways to serve a model with vLLM side by side: plain, split by vLLM itself, and by us.

Each engine has one core, the first for whoever computes prompts and the second for a machine of the
token phase; what takes HTTP goes where the kernel puts it. All have the same model, type, cache and
chunks of prompts. vLLM's own split needs NIXL (``pip install --no-deps nixl==1.5.1
nixl-cu12==1.5.1``, which also runs where no GPU is).

NIXL's progress threads spin, as is right where cores abound. Here they would take half of the core
that their engine computes on, and of everybody else's: they are given a lower priority, and stand
still while it is another system's turn.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from processes import children, free_port
from splitwise.engine.model_files import DEFAULT_MODEL, resolve_model
from splitwise.launch.local_server import running_server

CHUNK_TOKENS = 256
DTYPE = "float32"
CACHE_GIB = 1
BATCH = f"--enforce-eager --max-num-batched-tokens {CHUNK_TOKENS}"
START_LIMIT_S = 600.0
STOP_LIMIT_S = 60.0
LAST_WORDS_BYTES = 2000
PROGRESS_NICENESS = 10
SPIN_S = 2.0
"""How long to watch for threads that spin."""
PLAIN, THEIR_SPLIT = "vLLM", "vLLM, 1 + 1"
OUR_MIXED, OUR_SPLIT = "ours, 1 mixed", "ours, 1 + 1"
OUR_LAYOUTS = {OUR_MIXED: ["--mixed=1"], OUR_SPLIT: ["--prompt=1", "--token=1"]}


@dataclass(frozen=True)
class System:
    """A running one."""

    url: str
    fronts: list[int]
    """Its processes that take and answer requests of HTTP, without those that compute."""
    spinning: Sequence[int] = ()
    """Its processes that use a core even while idle."""

    @contextmanager
    def turn(self) -> Iterator[None]:
        """While this lasts it may be used."""
        self._send(signal.SIGCONT)
        try:
            yield
        finally:
            self._send(signal.SIGSTOP)

    def _send(self, number: signal.Signals) -> None:
        for pid in self.spinning:
            os.kill(pid, number)


@contextmanager
def plain(core: int = 0, **environ: str) -> Iterator[System]:
    """vLLM's server as it is started alone."""
    with _vllm_server(core, [], environ) as (url, process):
        _wait_until_ready(url, process)
        yield System(url, [process.pid])


@contextmanager
def their_split() -> Iterator[System]:
    """Two of vLLM's servers with its NixlConnector, and a proxy."""
    with ExitStack() as running:
        servers = [
            running.enter_context(_vllm_server(core, [_connector(role)], _nixl_environ()))
            for core, role in enumerate(("kv_producer", "kv_consumer"))
        ]
        port = free_port()
        program = str(Path(__file__).with_name("vllm_proxy.py"))
        command = [sys.executable, program, str(port), *(url for url, _ in servers)]
        processes = [running.enter_context(_process(command, {})), *(p for _, p in servers)]
        url = f"http://127.0.0.1:{port}"
        _wait_until_ready(url, *processes)  # the proxy is when both servers are
        spinning = _spinning_threads([p.pid for _, p in servers])
        for thread in spinning:
            os.setpriority(os.PRIO_PROCESS, thread, PROGRESS_NICENESS)
        workers = sorted(set(spinning.values()))
        system = System(url, [process.pid for process in processes], workers)
        with system.turn():
            pass  # whoever is not at turn stands still
        try:
            yield system
        finally:
            for pid in workers:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGCONT)


@contextmanager
def ours(*layout: str) -> Iterator[System]:
    """Our server with vLLM as its engine; machines keep their roles."""
    before = set(children(os.getpid()))
    engine = ["--engine=vllm", f"--dtype={DTYPE}", f"--kv-cache-gib={CACHE_GIB}"]
    roles = ["--no-change-roles", f"--queue-threshold={10**9}", "--transport=shared_memory"]
    with running_server(*layout, *engine, *roles, f"--vllm-args={BATCH}") as url:
        (gateway,) = set(children(os.getpid())) - before
        yield System(url, [gateway])


def _connector(role: str) -> str:
    config = {"kv_connector": "NixlConnector", "kv_role": role}
    return f"--kv-transfer-config={json.dumps(config)}"


def _nixl_environ() -> dict[str, str]:
    return {"VLLM_NIXL_SIDE_CHANNEL_PORT": str(free_port())}


def _spinning_threads(servers: list[int]) -> dict[int, int]:
    """Threads of the servers' children that use their core although nothing is asked of them; and
    the process of each."""

    def used_s() -> dict[tuple[int, int], float]:
        return {
            (thread.id, child.pid): thread.user_time + thread.system_time
            for server in servers
            for child in psutil.Process(server).children(recursive=True)
            for thread in child.threads()
        }

    before = used_s()
    time.sleep(SPIN_S)
    spun = {at: s - before.get(at, s) for at, s in used_s().items()}
    return {thread: pid for (thread, pid), s in spun.items() if s > SPIN_S / 10}


@contextmanager
def _vllm_server(
    core: int, arguments: list[str], environ: dict[str, str]
) -> "Iterator[tuple[str, subprocess.Popen[bytes]]]":
    """Its URL and its process; it is only starting."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *(f"--model={resolve_model(DEFAULT_MODEL).path}", f"--dtype={DTYPE}"),
        *(f"--kv-cache-memory-bytes={CACHE_GIB * 2**30}", *BATCH.split()),
        *("--host=127.0.0.1", f"--port={port}", "--disable-uvicorn-access-log"),
        *arguments,
    ]
    bound = {"VLLM_CPU_OMP_THREADS_BIND": str(core), "OMP_NUM_THREADS": "1"}
    with _process(command, bound | environ) as process:
        yield f"http://127.0.0.1:{port}", process


@contextmanager
def _process(command: list[str], environ: dict[str, str]) -> "Iterator[subprocess.Popen[bytes]]":
    """A process that is ended afterwards; if it fails its last words are shown."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | {"VLLM_NO_USAGE_STATS": "1"} | environ,
        )
        try:
            yield process
        except BaseException:
            log.seek(0)
            sys.stderr.write(log.read()[-LAST_WORDS_BYTES:].decode(errors="replace"))
            raise
        finally:
            process.terminate()
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait_until_ready(url: str, *processes: "subprocess.Popen[bytes]") -> None:
    deadline_s = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline_s:
        if any(process.poll() is not None for process in processes):
            raise RuntimeError(f"{url}: a process of it has ended")
        with suppress(httpx.TransportError):
            if httpx.get(f"{url}/health", timeout=10).status_code == 200:
                return
        time.sleep(0.5)
    raise RuntimeError(f"{url} is not ready after {START_LIMIT_S:g} s")
