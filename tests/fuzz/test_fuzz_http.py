"""Inputs drawn from the server's own description, fitting it and not, by schemathesis.

Whatever comes, the answer is one that the description names, and nothing is left behind.
"""

import contextlib
import io
import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
import schemathesis
from holdings import Holdings, descendants, holdings
from hypothesis import HealthCheck, given, seed, settings
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi import checks

from splitwise.engine.model_files import read_model_info, read_stop_token_ids
from splitwise.engine.null.engine import null_model
from splitwise.engine.null.tokens import continuation, words_of
from splitwise.engine.sampling import SamplingParams
from splitwise.gateway.admin import ADMIN_KEY_VARIABLE
from splitwise.launch.local_server import running_server
from waiting import eventually

WORDS = words_of(read_model_info(null_model()).vocab_size, read_stop_token_ids(null_model()))
KEY = {"Authorization": "Bearer the admin key"}
CHECKS = [
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
    checks.negative_data_rejection,
    # Not positive_data_acceptance: no schema says that a prompt must fit the model's context.
]
MOST_TOKENS = 16
GROWTH_MIB = 32


@dataclass
class Server:
    """A whole server, whose words are kept."""

    url: str
    log: io.StringIO
    pids: list[int]

    def post(self, path: str, body: dict[str, Any]) -> Any:
        answer = httpx.post(self.url + path, json=body, timeout=30)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def is_idle(self) -> bool:
        """No cache block is in use and nothing is charged to any machine."""
        metrics = httpx.get(self.url + "/metrics").text.splitlines()
        usage = [line for line in metrics if line.startswith("splitwise:kv_cache_usage_perc{")]
        machines = httpx.get(self.url + "/admin/pools", headers=KEY).json()["machines"]
        assert usage and machines
        loads = ("pending_tokens", "waiting", "kv_tokens")
        return all(line.endswith(" 0.0") for line in usage) and not any(
            machine[load] for machine in machines for load in loads
        )


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv(ADMIN_KEY_VARIABLE, "the admin key")
    before = descendants(os.getpid())
    with (
        contextlib.redirect_stderr(io.StringIO()) as log,
        running_server("--engine=null", "--kv-cache-gib=0.001", "--one-piece-below=64") as url,
    ):
        pids = [pid for pid in descendants(os.getpid()) if pid not in before]
        yield Server(url, log, pids)


class Attack:
    """Counts what it sends and what comes back."""

    def __init__(self, server: Server) -> None:
        self.schema = schemathesis.openapi.from_url(server.url + "/openapi.json")
        self.statuses: Counter[int] = Counter()

    def run(self, examples: int, number: int) -> None:
        """``examples`` of each kind for each operation, five times as many for those with bodies;
        ``number`` seeds them."""
        for found in self.schema.get_all_operations():
            operation = found.ok()
            count = examples * 5 if operation.body else examples
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                bounds = settings(
                    max_examples=count,
                    deadline=None,
                    database=None,
                    suppress_health_check=list(HealthCheck),
                )
                cases = operation.as_strategy(generation_mode=mode)
                seed(number)(bounds(given(cases)(self._send)))()

    def _send(self, case: Case) -> None:
        if case.operation.path.startswith("/v1/") and isinstance(case.body, dict):
            _shorten(case.body)
        is_admin = case.operation.path.startswith("/admin")
        answer = case.call(headers=KEY if is_admin else None, timeout=30)
        self.statuses[answer.status_code] += 1
        timed = "X-Request-Timeout" in case.headers
        assert answer.status_code < 500 or (answer.status_code == 504 and timed), answer.text
        case.validate_response(answer, checks=CHECKS)


def _shorten(body: dict[str, Any]) -> None:
    """The examples are many, so that an answer must be short where its length is left open."""
    for name in ("max_tokens", "max_completion_tokens"):
        value = body.get(name)
        if value is None or (isinstance(value, int) and value > MOST_TOKENS):
            body[name] = MOST_TOKENS


@pytest.mark.parametrize(
    ("examples", "least"),
    [(8, 500), pytest.param(230, 20_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_fuzz_of_the_description(server: Server, examples: int, least: int) -> None:
    attack = Attack(server)
    attack.run(max(1, examples // 4), number=0)  # caches and pools of the processes fill up
    eventually(server.is_idle)
    before = holdings(server.pids)
    attack.run(examples, number=1)
    eventually(server.is_idle)
    eventually(lambda: not _left(before, holdings(server.pids)))
    print(f"{attack.statuses.total()} inputs: {dict(attack.statuses)}")
    print(f"before {before}\nafter  {holdings(server.pids)}")
    assert attack.statuses.total() >= least
    assert attack.statuses[200] > least / 20  # not all is refused at the first look
    assert "Traceback" not in server.log.getvalue()
    prompt = list(range(4, 40))
    body = {"prompt": prompt, "max_tokens": 20, "temperature": 0, "return_token_ids": True}
    tokens = server.post("/v1/completions", body)["choices"][0]["token_ids"]
    assert tokens == continuation(prompt, 20, SamplingParams(temperature=0), WORDS)


def _left(before: dict[int, Holdings], after: dict[int, Holdings]) -> dict[int, Holdings]:
    """The processes that hold more than they did."""
    return {
        pid: now
        for pid, now in after.items()
        if now.files > before[pid].files or now.rss_mib > before[pid].rss_mib + GROWTH_MIB
    }
