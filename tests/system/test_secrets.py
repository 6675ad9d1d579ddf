"""No process that the gateway starts is given its secrets, but for the cluster's key."""

import os
from typing import Any

import httpx
import psutil
import pytest
from command_process import CommandProcess
from typer.testing import CliRunner

from splitwise.cli.main import app
from splitwise.launch.launcher import WorkerSpec, worker_environment
from splitwise.scheduling.pool import Pool

SECRETS = {
    "SPLITWISE_API_KEY": "sk-of-the-environment",
    "SPLITWISE_ADMIN_KEY": "operators-only",
    "SPLITWISE_API_KEYS": "/where/the/keys/are",
    "SPLITWISE_SOMETHING_NEW": "nobody-thought-of-it",
    "HF_TOKEN": "hf_of-the-hub",
}


def test_of_our_variables_a_worker_gets_what_it_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {**SECRETS, "SPLITWISE_CACHE": "/cache", "UCX_TLS": "tcp"}.items():
        monkeypatch.setenv(name, value)
    spec = WorkerSpec("prompt-0", Pool.PROMPT, 3, [], [])
    given = worker_environment(spec, "the-key")
    assert not SECRETS.keys() & given.keys()
    assert not set(SECRETS.values()) & set(given.values())
    assert given["SPLITWISE_CLUSTER_KEY"] == "the-key"
    assert given["SPLITWISE_CACHE"] == "/cache" and given["UCX_TLS"] == "tcp"
    assert given["PATH"] == os.environ["PATH"]


def test_ray_starts_in_an_environment_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's processes inherit the gateway's environment, and their actors theirs."""
    seen: list[dict[str, str]] = []

    def connect(_: str) -> Any:
        seen.append(dict(os.environ))
        raise OSError("far enough")

    monkeypatch.setattr("splitwise.launch.ray_launcher.connect", connect)
    env = {name: SECRETS[name] for name in ("SPLITWISE_API_KEY", "SPLITWISE_ADMIN_KEY")}
    env["SPLITWISE_CLUSTER_KEY"] = "the-clusters"
    arguments = ["serve", "--engine=null", "--launcher=ray"]
    result = CliRunner().invoke(app, arguments, env=env)
    assert "far enough" in result.output
    assert seen and not set(env.values()) & set(seen[0].values())


def test_no_child_of_a_server_has_them_and_they_still_count(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in SECRETS.items():
        if name != "SPLITWISE_API_KEYS":
            monkeypatch.setenv(name, value)
    server = CommandProcess("serve", "--engine=null", "--port=0", cluster_key="the-clusters")
    try:
        server.wait_for("ready: ")
        url = server.log.split("ready: ")[1].split()[0]
        children = psutil.Process(server.popen.pid).children(recursive=True)
        assert len(children) == 2
        for child in children:
            environment = child.environ()
            assert not set(SECRETS.values()) & set(environment.values())
            assert environment["SPLITWISE_CLUSTER_KEY"] == "the-clusters"
        for path, key in (("v1/models", "API"), ("admin/pools", "ADMIN")):
            secret = SECRETS[f"SPLITWISE_{key}_KEY"]
            asked = httpx.get(f"{url}/{path}", headers={"Authorization": f"Bearer {secret}"})
            assert asked.status_code == 200
            assert httpx.get(f"{url}/{path}").status_code == 401
        assert not any(secret in server.log for secret in SECRETS.values())
    finally:
        server.end()
