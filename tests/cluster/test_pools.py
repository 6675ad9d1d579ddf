"""The admin endpoint and ``splitwise pools``: over a scripted cluster, and over a real server."""

import asyncio
import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from scripted_cluster import ScriptedCluster, request

from splitwise.gateway.admin import Admin
from splitwise.gateway.http.asgi import Receive, Scope, Send
from splitwise.gateway.http.exchange import HttpLimits
from splitwise.gateway.http.server import listen, serve_http
from splitwise.launch.local_server import running_server
from splitwise.scheduling.pool import Pool

KEY = "an operator's secret"
BEARER = {"Authorization": f"Bearer {KEY}"}


async def other_app(scope: Scope, receive: Receive, send: Send) -> None:
    """What stands behind the admin endpoint."""
    await send({"type": "http.response.start", "status": 418, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def scripted() -> ScriptedCluster:
    return ScriptedCluster(Pool.PROMPT, Pool.TOKEN, Pool.TOKEN)


def client(scripted: ScriptedCluster, key: str = KEY) -> httpx.AsyncClient:
    admin = Admin(other_app, scripted.cluster.pools, key, HttpLimits(max_body_bytes=1000))
    transport = httpx.ASGITransport(admin)  # type: ignore[arg-type]
    return httpx.AsyncClient(transport=transport, base_url="http://test", headers=BEARER)


async def test_it_shows_each_machine(scripted: ScriptedCluster) -> None:
    scripted.cluster.submit(request(prompt=31))
    async with client(scripted) as http:
        machines = (await http.get("/admin/pools")).json()["machines"]
    assert [machine["machine_id"] for machine in machines] == ["m0", "m1", "m2"]
    assert machines[0] == {
        "machine_id": "m0",
        "home": "prompt",
        "pool": "prompt",
        "up": True,
        "draining": False,
        "pending_tokens": 31,
        "waiting": 1,
        "kv_tokens": 32,
        "kv_capacity_tokens": 1024,
        "role_changes": 0,
        "quarantined": False,
        "quiet": False,
    }


async def test_a_new_home_takes_requests_at_once_and_outlives_the_connection(
    scripted: ScriptedCluster,
) -> None:
    async with client(scripted) as http:
        answer = await http.patch("/admin/pools/m2", json={"pool": "prefill"})
    assert answer.status_code == 200 and answer.json()["pool"] == "prompt"
    assert scripted.metrics.role_changes == [("m2", "prompt")]
    placed = [scripted.cluster.submit(request()).prompt_machine for _ in range(2)]
    assert placed == [0, 2]
    scripted.cluster.lose(2)
    scripted.cluster.join(scripted.links[2])
    assert scripted.pools() == [Pool.PROMPT, Pool.TOKEN, Pool.PROMPT]


async def test_a_drained_machine_ends_its_work_and_is_told_to_leave(
    scripted: ScriptedCluster,
) -> None:
    live = scripted.cluster.submit(request(prompt=10, max_tokens=2))
    assert live.token_machine == 1
    assert scripted.cluster.submit(request(prompt=100)).token_machine == 2
    async with client(scripted) as http:
        answer = await http.post("/admin/pools/m1", json={"drain": True})
        assert answer.json()["draining"]
        assert scripted.cluster.submit(request()).token_machine == 2
        assert not scripted.links[1].is_told_to_end
        scripted.output(0, live.task, 10, 5)
        scripted.transferred(1, live.task)
        scripted.output(1, live.task, 11, 6, finish=True)
        assert scripted.links[1].is_told_to_end and live.is_finished
        undo = await http.post("/admin/pools/m1", json={"drain": False})
        assert undo.status_code == 409 and "told to end" in undo.json()["error"]["message"]
        scripted.cluster.lose(1)
        gone = await http.post("/admin/pools/m1", json={"pool": "token"})
        assert gone.status_code == 409 and "not connected" in gone.json()["error"]["message"]
        state = (await http.get("/admin/pools")).json()["machines"][1]
    assert state["draining"] and not state["up"]
    assert scripted.cluster.pools.is_draining("m1")
    scripted.cluster.join(scripted.links[1])
    assert not scripted.cluster.pools.is_draining("m1")


async def test_draining_undone_in_time_gives_the_machine_its_work_back(
    scripted: ScriptedCluster,
) -> None:
    live = scripted.cluster.submit(request())
    async with client(scripted) as http:
        await http.post("/admin/pools/m1", json={"drain": True})
        await http.post("/admin/pools/m1", json={"drain": False})
    live.cancel()
    assert not scripted.links[1].is_told_to_end
    assert scripted.cluster.submit(request()).token_machine == 1


async def test_what_waits_runs_when_a_machine_comes_back_from_draining() -> None:
    scripted = ScriptedCluster(Pool.MIXED, Pool.MIXED)
    kept = scripted.cluster.submit(request(prompt=600))
    other = scripted.cluster.submit(request(prompt=600))
    scripted.cluster.pools.drain("m1")
    other.cancel()
    assert scripted.links[1].is_told_to_end
    waits = scripted.cluster.submit(request(prompt=600))
    assert waits.task == -1
    scripted.cluster.lose(1)
    scripted.cluster.join(scripted.links[1])
    assert waits.prompt_machine == 1 and kept.prompt_machine == 0


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("{}", "drain"),
        ('{"pool": "swimming"}', "swimming"),
        ('{"pool": 3}', "pool"),
        ('{"drain": "yes"}', "drain"),
        ('{"drained": true}', "drained"),
        ("nonsense", "JSON"),
        ("[1]", "object"),
    ],
)
async def test_bad_orders_are_named(scripted: ScriptedCluster, body: str, words: str) -> None:
    async with client(scripted) as http:
        answer = await http.patch("/admin/pools/m1", content=body)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"]
    assert scripted.pools() == [Pool.PROMPT, Pool.TOKEN, Pool.TOKEN]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("PATCH", "/admin/pools/nobody", 404),
        ("DELETE", "/admin/pools/m1", 405),
        ("POST", "/admin/pools", 405),
        ("GET", "/admin/else", 404),
        ("GET", "/v1/models", 418),
        ("GET", "/administrator", 418),
    ],
)
async def test_paths_and_methods(
    scripted: ScriptedCluster, method: str, path: str, status: int
) -> None:
    async with client(scripted) as http:
        answer = await http.request(method, path, json={"pool": "token"})
    assert answer.status_code == status


@pytest.mark.parametrize(
    "given", ["", f"Bearer {KEY}x", "Bearer ", KEY, f"Basic {KEY}", "Bearer \u00e9"]
)
async def test_only_the_key_opens(scripted: ScriptedCluster, given: str) -> None:
    async with client(scripted) as http:
        headers = {"Authorization": given.encode()}
        answer = await http.patch("/admin/pools/m1", json={"drain": True}, headers=headers)
    assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
    assert not scripted.cluster.pools.is_draining("m1")


@pytest.mark.parametrize("given", ["Bearer ", f"Bearer {KEY}"])
async def test_without_a_configured_key_there_is_no_endpoint(
    scripted: ScriptedCluster, given: str
) -> None:
    async with client(scripted, key="") as http:
        answer = await http.get("/admin/pools", headers={"Authorization": given})
    assert answer.status_code == 404 and "SPLITWISE_ADMIN_KEY" in answer.text


async def test_a_large_body_is_refused(scripted: ScriptedCluster) -> None:
    async with client(scripted) as http:
        answer = await http.patch("/admin/pools/m1", content=b" " * 2000)
    assert answer.status_code == 413


# The command.


@pytest.fixture
def served(scripted: ScriptedCluster) -> Iterator[str]:
    """The endpoint on a loopback port, in a thread."""
    limits = HttpLimits(drain_s=1.0)
    listener = listen("127.0.0.1", 0)
    loop, stop = asyncio.new_event_loop(), asyncio.Event()
    admin = Admin(other_app, scripted.cluster.pools, KEY, limits)
    thread = threading.Thread(
        target=loop.run_until_complete, args=(serve_http(admin, listener, limits, stop),)
    )
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    loop.call_soon_threadsafe(stop.set)
    thread.join(20)
    loop.close()


def pools(url: str, *arguments: str, key: str = KEY) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "splitwise.cli.main", "pools", "--url", url, *arguments],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={"SPLITWISE_ADMIN_KEY": key, "PYTHONPATH": ":".join(sys.path), "COLUMNS": "140"},
    )


def test_the_command_shows_and_sets(served: str, scripted: ScriptedCluster) -> None:
    table = pools(served).stdout
    assert "m2" in table and "role changes" in table
    done = pools(served, "set", "m2", "prompt")
    assert done.stdout == "m2 is at home in the prompt pool\n", done.stderr
    assert pools(served, "drain", "m1").stdout == "m1 drains\n"
    machines = json.loads(pools(served, "--json").stdout)["machines"]
    assert [(m["home"], m["draining"]) for m in machines] == [
        *(("prompt", False), ("token", True), ("prompt", False))
    ]
    assert scripted.links[1].is_told_to_end


def test_the_command_says_what_is_wrong(served: str) -> None:
    assert "'nobody'" in pools(served, "drain", "nobody").stderr
    assert "swimming" in pools(served, "set", "m1", "swimming").stderr
    assert "SPLITWISE_ADMIN_KEY" in pools(served, key="").stderr
    assert "admin key" in pools(served, key="wrong").stderr
    nobody = pools("http://127.0.0.1:1")
    assert nobody.returncode == 2 and "127.0.0.1:1" in nobody.stderr


def test_a_drained_worker_of_a_real_server_ends_and_is_not_started_again(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("SPLITWISE_ADMIN_KEY", KEY)
    with (
        running_server("--engine=null", "--mixed=2") as url,
        httpx.Client(base_url=url, timeout=60) as http,
    ):

        def state() -> dict[str, bool]:
            machines = http.get("/admin/pools", headers=BEARER).json()["machines"]
            return {machine["machine_id"]: machine["up"] for machine in machines}

        assert state() == {"mixed-0": True, "mixed-1": True}
        assert http.get("/admin/pools").status_code == 401
        assert pools(url, "drain", "mixed-0").stdout == "mixed-0 drains\n"
        log, deadline = "", time.monotonic() + 60
        while "worker mixed-0 was drained and ended (exit code 0" not in log:
            assert time.monotonic() < deadline, log
            log += capfd.readouterr().err
            assert http.get("/health").status_code == 200
        assert state() == {"mixed-0": False, "mixed-1": True}
        body = {"prompt": "Once", "max_tokens": 3}
        assert http.post("/v1/completions", json=body).status_code == 200
        assert "started again" not in log
