"""A real cluster whose machines speak TLS to each other; and those that cannot take part."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from certificates import Pair, make_pair, needs_openssl
from command_process import COMMAND, CommandProcess
from test_null_cluster import GREEDY, WORDS, complete
from test_rejoin import free_port

from splitwise.engine.null.tokens import continuation
from splitwise.launch.local_server import running_server

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls") / "ours")


def options(pair: Pair) -> list[str]:
    return [f"--cluster-tls-cert={pair.certificate}", f"--cluster-tls-key={pair.key}"]


@pytest.fixture(scope="module")
def client(pair: Pair) -> Iterator[httpx.Client]:
    arguments = ("--engine=null", "--kv-cache-gib=0.01", "--transport=tcp", "--one-piece-below=64")
    ca = f"--cluster-tls-ca={pair.certificate}"
    with (
        running_server(*arguments, *options(pair), ca, "--checksum") as url,
        httpx.Client(base_url=url, timeout=30) as client,
    ):
        yield client


def test_tokens_are_those_predicted_with_every_word_encrypted(client: httpx.Client) -> None:
    for length in (1, 16, 100, 300):
        prompt = list(range(4, 4 + length))
        assert complete(client, prompt, temperature=0) == continuation(prompt, 40, GREEDY, WORDS)


def worker_log(join: int, key: str, *arguments: str) -> str:
    """What a worker says that cannot take part."""
    command = [*COMMAND, "worker", f"--join=127.0.0.1:{join}", "--engine=null", *arguments]
    result = subprocess.run(
        command,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=os.environ | {"SPLITWISE_CLUSTER_KEY": key},
    )
    assert result.returncode == 1 and "Traceback" not in result.stderr
    return " ".join(result.stderr.replace("│", " ").split())


def test_workers_that_do_not_fit_say_why_and_the_gateway_too(pair: Pair, tmp_path: Path) -> None:
    other = make_pair(tmp_path / "other")
    join, port = free_port(), free_port()
    gateway = CommandProcess(
        *("serve", "--engine=null", "--external-workers=1", "--prompt=0", "--token=0"),
        *(f"--scheduler-port={join}", f"--port={port}", *options(pair)),
        cluster_key="one key",
    )
    try:
        gateway.wait_for("SPLITWISE_CLUSTER_KEY has 7 characters")
        gateway.wait_for("workers join at")
        said = worker_log(join, "another key", *options(pair))
        assert "the cluster key differs" in said and "SPLITWISE_CLUSTER_KEY" in said
        gateway.wait_for("finds that the cluster key differs")
        assert "--cluster-tls-cert" in worker_log(join, "one key")
        strict = f"--cluster-tls-ca={other.certificate}"
        assert "no TLS with the cluster scheduler" in worker_log(
            join, "one key", *options(other), strict
        )
        assert "cannot read /nowhere" in worker_log(
            join, "one key", "--cluster-tls-cert=/nowhere", f"--cluster-tls-key={pair.key}"
        )
        good = CommandProcess(
            *("worker", f"--join=127.0.0.1:{join}", "--engine=null", "--kv-cache-gib=0.01"),
            *options(other),
            cluster_key="one key",
        )
        try:
            gateway.wait_for("ready:")
        finally:
            good.kill()
            good.wait()
    finally:
        gateway.end()
