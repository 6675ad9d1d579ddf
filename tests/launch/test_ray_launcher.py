"""Workers on a Ray cluster: where they are placed, what happens when they are lost, who says so."""

import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from splitwise.engine.model_files import read_model_info, read_stop_token_ids
from splitwise.engine.null.engine import null_model
from splitwise.engine.null.tokens import continuation, words_of
from splitwise.engine.sampling import SamplingParams
from splitwise.launch.launcher import LaunchError
from splitwise.launch.local_server import ServerError, running_server
from splitwise.launch.ray_launcher import connect, read_needs

WORDS = words_of(read_model_info(null_model()).vocab_size, read_stop_token_ids(null_model()))
NULL = ("--engine=null", "--kv-cache-gib=0.01", "--launcher=ray")
KEY = "a key that nobody may read"
STORE_BYTES = 80 * 2**20
WAIT_S = 60
PLACES = {"prompt": "accelerator_type:H100", "token": "old"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Three nodes, all of them on this host: a head without cores, a new one and an old one."""
    ray = pytest.importorskip("ray", reason="Ray is an extra: make check-ray")
    utils = pytest.importorskip("ray.cluster_utils")
    common = {"object_store_memory": STORE_BYTES}
    with (
        # Paths of Unix sockets are short, pytest's folders are not.
        tempfile.TemporaryDirectory(
            prefix="sw-ray-", dir="/tmp", ignore_cleanup_errors=True
        ) as folder,
        pytest.MonkeyPatch.context() as patch,
    ):
        Path("/tmp/ray").mkdir(exist_ok=True)  # Ray notes an address there, whatever its folder.
        head = {**common, "num_cpus": 0, "include_dashboard": False, "temp_dir": folder}
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        cluster = utils.Cluster(initialize_head=True, head_node_args=head)
        try:
            cluster.add_node(num_cpus=2, resources={PLACES["prompt"]: 1}, **common)
            cluster.add_node(num_cpus=2, resources={PLACES["token"]: 2}, **common)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="ERROR")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()


@contextmanager
def on_ray(cluster: Any, *arguments: str) -> Iterator[httpx.Client]:
    with (
        running_server(*NULL, f"--ray={cluster.address}", *arguments) as url,
        httpx.Client(base_url=url, timeout=WAIT_S) as client,
    ):
        yield client


def split(prompt: str = "H100", token: str = "old=1") -> tuple[str, str]:
    return f"--ray-prompt={prompt}", f"--ray-token={token}"


def alive() -> list[dict[str, Any]]:
    """The actors that run, as Ray's own state has them."""
    from ray._private import state

    return [actor for actor in state.actors().values() if actor["State"] == "ALIVE"]


def hosted() -> dict[str, dict[str, Any]]:
    """Those with a worker, by its machine id."""
    return {machine: actor for actor in alive() for machine in machines_of(actor["Pid"])}


def machines_of(pid: int) -> dict[str, int]:
    """The workers that are children of a process: their machine ids and processes."""
    found = {}
    for children in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in children.read_text().split():
            for word in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
                if word.startswith("--machine-id="):
                    found[word.removeprefix("--machine-id=")] = int(child)
    return found


def complete(client: httpx.Client, prompt: list[int]) -> list[int]:
    body = {"prompt": prompt, "max_tokens": 40, "return_token_ids": True, "temperature": 0}
    answer = client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return list(answer.json()["choices"][0]["token_ids"])


def expected(prompt: list[int]) -> list[int]:
    return continuation(prompt, 40, SamplingParams(temperature=0), WORDS)


def wait_until_gone(pids: list[int]) -> None:
    deadline = time.monotonic() + WAIT_S
    while running := [pid for pid in pids if is_running(pid)]:
        assert time.monotonic() < deadline, f"still running: {running}"
        time.sleep(0.1)


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text() != ""  # empty: ended, not yet waited for
    except (FileNotFoundError, ProcessLookupError):
        return False


def worker_of(machine: str) -> int | None:
    actor = hosted().get(machine)
    return machines_of(actor["Pid"]).get(machine) if actor else None


def wait_until_placed(machine: str, other_than: int) -> None:
    """Until a machine's worker runs in an actor again, as another process."""
    deadline = time.monotonic() + WAIT_S
    while worker_of(machine) in (None, other_than):
        assert time.monotonic() < deadline, f"{machine} did not come back"
        time.sleep(0.1)


@pytest.mark.slow
def test_each_pool_is_placed_where_it_belongs_and_answers_as_one_machine(
    cluster: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import ray

    monkeypatch.setenv("SPLITWISE_CLUSTER_KEY", KEY)
    with on_ray(cluster, "--token=2", "--checksum", "--one-piece-below=0", *split()) as client:
        for length in (1, 16, 17, 100):
            prompt = list(range(4, 4 + length))
            assert complete(client, prompt) == expected(prompt)
        actors = hosted()
        assert sorted(actors) == ["prompt-0", "token-0", "token-1"]
        resources = {node["NodeID"]: node["Resources"] for node in ray.nodes()}
        for machine, actor in actors.items():
            assert PLACES[machine.partition("-")[0]] in resources[actor["Address"]["NodeID"]]
        workers = [machines_of(actor["Pid"])[machine] for machine, actor in actors.items()]
        for worker in workers:
            assert KEY not in Path(f"/proc/{worker}/cmdline").read_text()
            assert KEY in Path(f"/proc/{worker}/environ").read_text()
    wait_until_gone(workers)
    assert alive() == []
    session = Path(cluster.head_node.get_session_dir_path())
    logs = [path for path in (session / "logs").rglob("*") if path.is_file()]
    assert logs
    assert not [path for path in logs if KEY.encode() in path.read_bytes()]


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["the worker", "its actor"])
def test_a_killed_worker_comes_back_and_changes_no_answer(cluster: Any, lost: str) -> None:
    prompts = [list(range(4 + i, 24 + i)) for i in range(40)]
    with (
        on_ray(cluster, "--null-iteration-s=0.02", *split()) as client,
        ThreadPoolExecutor(8) as threads,
    ):
        first = threading.Event()

        def ask(prompt: list[int]) -> list[int]:
            answer = complete(client, prompt)
            first.set()
            return answer

        answers = [threads.submit(ask, prompt) for prompt in prompts]
        assert first.wait(WAIT_S)
        actor = hosted()["token-0"]["Pid"]
        worker = machines_of(actor)["token-0"]
        os.kill(worker if lost == "the worker" else actor, signal.SIGKILL)
        assert [answer.result() for answer in answers] == [expected(prompt) for prompt in prompts]
        wait_until_gone([worker])
        wait_until_placed("token-0", other_than=worker)
        assert complete(client, prompts[0]) == expected(prompts[0])


@pytest.mark.slow
def test_a_lost_node_is_noticed_and_its_worker_placed_elsewhere(cluster: Any) -> None:
    node = {"num_cpus": 1, "resources": {"spare": 1}, "object_store_memory": STORE_BYTES}
    doomed = cluster.add_node(**node)
    with on_ray(cluster, *split(token="spare=1")) as client:
        prompt = list(range(4, 44))
        assert complete(client, prompt) == expected(prompt)
        worker = machines_of(hosted()["token-0"]["Pid"])["token-0"]
        cluster.remove_node(doomed, allow_graceful=False)
        wait_until_gone([worker])
        spare = cluster.add_node(**node)
        assert complete(client, prompt) == expected(prompt)
        wait_until_placed("token-0", other_than=worker)
        assert hosted()["token-0"]["Address"]["NodeID"] == spare.node_id
        assert complete(client, prompt) == expected(prompt)
    cluster.remove_node(spare)


@pytest.mark.slow
def test_no_worker_outlives_a_killed_gateway(cluster: Any) -> None:
    command = [sys.executable, "-m", "splitwise.cli.main", "serve", "--port=0", *NULL, *split()]
    with subprocess.Popen(
        [*command, f"--ray={cluster.address}"], stdout=subprocess.PIPE, text=True
    ) as gateway:
        assert gateway.stdout is not None
        try:
            assert gateway.stdout.readline().startswith("ready: ")
            workers = [worker_of(machine) for machine in ("prompt-0", "token-0")]
        finally:
            gateway.kill()
    wait_until_gone([worker for worker in workers if worker is not None])
    assert None not in workers
    deadline = time.monotonic() + WAIT_S
    while alive():
        assert time.monotonic() < deadline, alive()
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (split(token="nowhere=1"), "token-0 could not start .*needs CPU 1, nowhere 1 on one node"),
        ((*split(), "--threads=3"), "needs CPU 3, accelerator_type:H100 0.001 .*CPU 2"),
        ((*split(), "--engine=torch", "--device=cuda"), "could not start .*GPU"),
    ],
)
def test_a_worker_that_cannot_run_says_why(
    cluster: Any, arguments: tuple[str, ...], words: str
) -> None:
    with (
        pytest.raises(ServerError, match=words),
        on_ray(cluster, "--ray-placement-s=5", *arguments),
    ):
        pass
    assert alive() == []


@pytest.mark.slow
def test_a_cluster_of_its_own_ends_with_the_gateway() -> None:
    pytest.importorskip("ray", reason="Ray is an extra: make check-ray")
    prompt = list(range(4, 44))
    with (
        running_server(*NULL, "--ray=local", "--mixed=1") as url,
        httpx.Client(base_url=url, timeout=WAIT_S) as client,
    ):
        assert complete(client, prompt) == expected(prompt)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("127.0.0.1:1", "127.0.0.1:1: no Ray cluster answers there"),
        ("nobody.invalid:6379", "nobody.invalid:6379: no Ray cluster"),
        ("locl", "'locl': give HOST:PORT"),
    ],
)
def test_an_address_without_a_cluster_is_named(address: str, words: str) -> None:
    pytest.importorskip("ray", reason="Ray is an extra: make check-ray")
    with pytest.raises(LaunchError, match=words), connect(address):
        pass


def test_ray_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as Python marks what it is not to find
    with (
        pytest.raises(LaunchError, match=r"pip install 'splitwise-llm\[ray\]'"),
        connect("local"),
    ):
        pass


def test_needs_are_accelerator_types_and_amounts() -> None:
    assert read_needs("--ray-prompt", "") == {}
    assert read_needs("--ray-prompt", "H100,fast_nic=0.5") == {
        "accelerator_type:H100": 0.001,
        "fast_nic": 0.5,
    }
    for bad in ("rack=", "rack=many", "rack=0", "rack=-1", "rack=nan", "=1"):
        with pytest.raises(ValueError, match=f"--ray-token '{bad}'"):
            read_needs("--ray-token", bad)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--launcher=rai"], "--launcher 'rai'"),
        (["--launcher=ray", "--device=cuda:1"], "Ray deals the GPUs out"),
    ],
)
def test_bad_launchers_are_named(arguments: list[str], words: str) -> None:
    with pytest.raises(ServerError, match=words), running_server(*arguments):
        pass
