"""Workers on other hosts, which are network namespaces here; and who is kept from joining."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import pytest
from command_process import COMMAND, CommandProcess

from splitwise.launch.local_server import ServerError, running_server

KEY = "the cluster's key"
ADDRESS = {"gateway": "10.83.0.1", "prompt": "10.83.0.2", "token": "10.83.0.3"}
JOIN_PORT, HTTP_PORT = 7100, 8100
CHAT = {
    "messages": [{"role": "user", "content": "Tell me about llamas, and why they spit. " * 8}],
    "max_tokens": 24,
    "temperature": 0,
}


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, timeout=10)


def why_no_namespaces() -> str | None:
    if os.geteuid() != 0:
        return "only root makes network namespaces"
    if shutil.which("ip") is None:
        return "no `ip` (iproute2) here"
    probe = f"sw-probe-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", probe], capture_output=True, check=False)
    if made.returncode != 0:
        return f"no network namespaces here: {made.stderr.decode().strip()}"
    ip("netns", "del", probe)
    return None


@contextmanager
def separate_hosts() -> Iterator[dict[str, str]]:
    """A namespace each for gateway, prompt and token machine; their names."""
    if (reason := why_no_namespaces()) is not None:
        pytest.skip(reason)
    names = {role: f"sw-{role}-{os.getpid()}" for role in ADDRESS}
    with ExitStack() as undo:
        for name in names.values():
            ip("netns", "add", name)
            undo.callback(ip, "netns", "del", name)
            ip("-n", name, "link", "set", "lo", "up")
        yield names


@pytest.fixture
def namespaces() -> Iterator[dict[str, str]]:
    """On a switch of the kernel's."""
    with separate_hosts() as names:
        gateway = names["gateway"]
        ip("-n", gateway, "link", "add", "switch", "type", "bridge")
        ip("-n", gateway, "addr", "add", f"{ADDRESS['gateway']}/24", "dev", "switch")
        ip("-n", gateway, "link", "set", "switch", "up")
        for role in ("prompt", "token"):
            peer = ["peer", "name", "eth0", "netns", names[role]]
            ip("-n", gateway, "link", "add", f"to-{role}", "type", "veth", *peer)
            ip("-n", gateway, "link", "set", f"to-{role}", "master", "switch", "up")
            ip("-n", names[role], "addr", "add", f"{ADDRESS[role]}/24", "dev", "eth0")
            ip("-n", names[role], "link", "set", "eth0", "up")
        yield names


class Weather:
    """Namespaces on a switch of ours, and what befalls their packets."""

    def __init__(self, names: dict[str, str], switch: "subprocess.Popen[str]") -> None:
        self.names = names
        self._switch = switch
        self._await_ok()

    def tell(self, order: str) -> None:
        assert self._switch.stdin is not None
        self._switch.stdin.write(order + "\n")
        self._switch.stdin.flush()
        self._await_ok()

    def _await_ok(self) -> None:
        assert self._switch.stdout is not None
        assert self._switch.stdout.readline() == "ok\n"


@pytest.fixture
def weather() -> Iterator[Weather]:
    with separate_hosts() as names:
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            pytest.skip("no TUN devices here")
        named = [f"{names[role]}={ADDRESS[role]}" for role in ADDRESS]
        switch = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("packet_switch.py")), *named],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        with switch:
            try:
                yield Weather(names, switch)
            finally:
                switch.kill()


def process_in(namespace: str, *arguments: str) -> CommandProcess:
    before = ("ip", "netns", "exec", namespace)
    return CommandProcess(*arguments, cluster_key=KEY, before=before)


ASK = """
import sys, urllib.request
request = urllib.request.Request(sys.argv[1], sys.stdin.buffer.read(),
                                 {"Content-Type": "application/json"})
print(urllib.request.urlopen(request, timeout=60).read().decode())
"""


def chat_in(namespace: str) -> str:
    url = f"http://127.0.0.1:{HTTP_PORT}/v1/chat/completions"
    answer = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", ASK, url],
        input=json.dumps(CHAT),
        capture_output=True,
        text=True,
        timeout=90,
        check=True,
    )
    return str(json.loads(answer.stdout)["choices"][0]["message"]["content"])


@pytest.mark.slow
def test_three_hosts_answer_as_one_machine_does(namespaces: dict[str, str]) -> None:
    with running_server("--mixed=1") as url:
        answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT, timeout=60).json()
        expected = answer["choices"][0]["message"]["content"]
    assert len(expected) > 40
    with ExitStack() as ends:
        gateway = process_in(
            namespaces["gateway"],
            *("serve", "--external-workers=2", f"--port={HTTP_PORT}"),
            *(f"--scheduler-host={ADDRESS['gateway']}", f"--scheduler-port={JOIN_PORT}"),
        )
        ends.callback(gateway.end)
        gateway.wait_for("waiting for 2 workers")
        join = f"--join={ADDRESS['gateway']}:{JOIN_PORT}"
        common = ("worker", join, "--kv-cache-gib=0.5", "--one-piece-below=0", "--checksum")
        common += ("--rejoin-s=0",)
        token = process_in(
            namespaces["token"],
            *(*common, "--role=token", f"--host={ADDRESS['token']}", "--machine-id=t"),
        )
        ends.callback(token.end)
        prompt = process_in(namespaces["prompt"], *common, "--role=prefill", "--machine-id=p")
        ends.callback(prompt.end)
        gateway.wait_for("ready: ")
        assert f"taken in at {ADDRESS['token']}:" in token.log
        assert f"taken in at {ADDRESS['prompt']}:" in prompt.log  # found by itself
        assert chat_in(namespaces["gateway"]) == expected
        assert "sending to t over tcp (different hosts" in prompt.log
        # The gateway ends; its workers say so by their exit codes, and may be started again.
        assert gateway.end() == 0
        assert (prompt.wait(), token.wait()) == (1, 1)
        assert "the cluster scheduler is gone" in token.log


@pytest.mark.slow
def test_a_worker_that_is_cut_off_comes_back(namespaces: dict[str, str]) -> None:
    arguments = (
        *("worker", f"--join={ADDRESS['gateway']}:{JOIN_PORT}"),
        *("--kv-cache-gib=0.5", "--machine-id=m"),
    )
    with ExitStack() as ends:
        gateway = process_in(
            namespaces["gateway"],
            *("serve", "--external-workers=1", f"--port={HTTP_PORT}"),
            *(f"--scheduler-host={ADDRESS['gateway']}", f"--scheduler-port={JOIN_PORT}"),
        )
        ends.callback(gateway.end)
        gateway.wait_for("waiting for 1 workers")
        worker = process_in(namespaces["prompt"], *arguments)
        ends.callback(worker.end)
        gateway.wait_for("ready: ")
        expected = chat_in(namespaces["gateway"])
        ip("-n", namespaces["gateway"], "link", "set", "to-prompt", "down")
        gateway.wait_for("machine m lost: silent")
        worker.wait_for("dialling again")
        ip("-n", namespaces["gateway"], "link", "set", "to-prompt", "up")
        gateway.wait_for("machine m joined the mixed pool", times=2)
        assert chat_in(namespaces["gateway"]) == expected


LOAD = """
import json, re, sys
from concurrent.futures import ThreadPoolExecutor
import httpx

def ask(body):
    answer = httpx.post(sys.argv[1], json=body, timeout=120)
    assert answer.status_code == 200, answer.text
    found = re.findall(r'"token_ids":\\[([\\d,]*)\\]', answer.text)
    return [int(token) for part in found for token in part.split(",") if token]

with ThreadPoolExecutor(8) as clients:
    print(json.dumps(list(clients.map(ask, json.load(sys.stdin)))))
"""


def load_from(namespace: str, bodies: list[dict[str, object]]) -> "subprocess.Popen[str]":
    """Clients there ask for all of this, eight at a time; they print the tokens of each."""
    url = f"http://127.0.0.1:{HTTP_PORT}/v1/completions"
    process = subprocess.Popen(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", LOAD, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(bodies))
    process.stdin.close()
    process.stdin = None
    return process


def is_idle(namespace: str) -> bool:
    """Whether all three report, and none has a request or a block."""
    command = "import httpx; print(httpx.get('http://127.0.0.1:8100/metrics').text)"
    said = subprocess.run(
        ["ip", "netns", "exec", namespace, sys.executable, "-c", command],
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    ).stdout
    gauges = re.findall(r"^splitwise:(?:num_requests|kv_cache)\w*\{.*\} (\S+)$", said, re.MULTILINE)
    machines = all(f'machine="{name}"' in said for name in ("p", "t"))
    return machines and not any(map(float, gauges))


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("engine", "requests"),
    [(["--engine=null", "--null-iteration-s=0.02"], 400), (["--kv-cache-gib=0.5"], 40)],
    ids=["null", "real"],
)
def test_slow_lossy_and_broken_ways_change_no_answer(
    weather: Weather, engine: list[str], requests: int
) -> None:
    """20 ms and 1 % loss on each way, and cuts shorter and longer than a silence is borne."""
    bodies: list[dict[str, object]] = [
        {
            "prompt": [4 + (11 * number + place) % 480 for place in range(5 + 37 * (number % 8))],
            "max_tokens": 5 + 12 * (number % 5),
            "ignore_eos": True,
            "stream": True,
            "return_token_ids": True,
            **({"temperature": 0} if number % 2 else {"temperature": 0.7, "seed": number}),
        }
        for number in range(40)
    ]
    namespaces, gateway_side = weather.names, weather.names["gateway"]
    with ExitStack() as ends:
        gateway = process_in(
            gateway_side,
            *("serve", "--external-workers=2", f"--port={HTTP_PORT}", *engine),
            *(f"--scheduler-host={ADDRESS['gateway']}", f"--scheduler-port={JOIN_PORT}"),
        )
        ends.callback(gateway.end)
        gateway.wait_for("waiting for 2 workers")
        for role, name in (("prompt", "p"), ("token", "t")):
            join = ["worker", f"--join={ADDRESS['gateway']}:{JOIN_PORT}", "--checksum"]
            named = [f"--role={role}", f"--machine-id={name}", "--one-piece-below=0"]
            ends.callback(process_in(namespaces[role], *join, *named, *engine).end)
        gateway.wait_for("ready: ")
        clients = load_from(gateway_side, bodies)
        expected = json.loads(clients.communicate(timeout=300)[0])
        assert [len(tokens) for tokens in expected] == [body["max_tokens"] for body in bodies]
        weather.tell("delay 20 5")
        weather.tell("loss 0.01")
        clients = load_from(gateway_side, bodies * (requests // len(bodies)))
        for role, cut_s in (("token", 3.0), ("prompt", 9.0), ("token", 9.0), ("prompt", 2.0)):
            time.sleep(3)
            weather.tell(f"cut {ADDRESS[role]}")
            time.sleep(cut_s)
            weather.tell(f"mend {ADDRESS[role]}")
        assert clients.poll() is None, "all was over before the last cut"
        answers = json.loads(clients.communicate(timeout=600)[0])
        assert answers == expected * (requests // len(bodies))
        assert gateway.log.count("says nothing: its requests go on elsewhere") >= 2
        deadline_s = time.monotonic() + 60
        while not is_idle(gateway_side):
            assert time.monotonic() < deadline_s, "blocks or requests are left behind"
            time.sleep(1)


@pytest.mark.parametrize(
    ("arguments", "key", "words"),
    [
        (["--scheduler-host=10.0.0.7"], "", "SPLITWISE_CLUSTER_KEY"),
        (["--external-workers=1"], "", "SPLITWISE_CLUSTER_KEY"),
        (["--scheduler-host=0.0.0.0"], KEY, "name the address"),
        (["--scheduler-host=203.0.113.7"], KEY, "203.0.113.7"),
        (["--prompt=0", "--token=0", "--mixed=0"], KEY, "--external-workers"),
    ],
)
def test_a_scheduler_that_would_be_open_or_unreachable_is_refused(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], key: str, words: str
) -> None:
    monkeypatch.setenv("SPLITWISE_CLUSTER_KEY", key)
    with pytest.raises(ServerError, match=words), running_server(*arguments):
        pass


@pytest.mark.parametrize(
    ("arguments", "key", "words"),
    [
        (["--join=127.0.0.1:9"], "", "SPLITWISE_CLUSTER_KEY"),
        (["--join=nobody.invalid:9"], KEY, "nobody.invalid"),
        (["--join=127.0.0.1:9", "--host=203.0.113.7"], KEY, "--host 203.0.113.7"),
        (["--join=127.0.0.1:9", "--host=0.0.0.0"], KEY, "0.0.0.0"),
        (["--join=[::1]:9"], KEY, "no cluster scheduler answers"),
    ],
)
def test_a_worker_that_cannot_take_part_says_why(
    arguments: list[str], key: str, words: str
) -> None:
    result = subprocess.run(
        [*COMMAND, "worker", "--engine=null", "--kv-cache-gib=0.1", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        env=os.environ | {"SPLITWISE_CLUSTER_KEY": key},
    )
    assert result.returncode in (1, 2)
    assert words in result.stderr and "Traceback" not in result.stderr
