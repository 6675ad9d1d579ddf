"""Whole servers with too little memory, or too many requests, over the engine without a model.

Nothing here measures time: what is compared is who was answered, and in which order.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from splitwise.engine.model_files import read_model_info, read_stop_token_ids
from splitwise.engine.null.engine import null_model
from splitwise.engine.null.tokens import continuation, words_of
from splitwise.engine.sampling import SamplingParams
from splitwise.gateway.api_keys import API_KEY_VARIABLE
from splitwise.launch.local_server import running_server

WORDS = words_of(read_model_info(null_model()).vocab_size, read_stop_token_ids(null_model()))
GREEDY = SamplingParams(temperature=0)
PROMPT_TOKENS = 20
SLOW = pytest.param("two token machines", marks=pytest.mark.slow)
CLUSTERS = {
    "split": ["--prompt=1", "--token=1"],
    "split, roles fixed": ["--prompt=1", "--token=1", "--no-change-roles"],
    "two token machines": ["--prompt=1", "--token=2", "--no-change-roles", "--transport=tcp"],
    "mixed": ["--mixed=1"],
}
ONE_AT_A_TIME = [
    *("--engine=null", "--mixed=1", "--null-prompt-token-s=0.005"),
    *(f"--prompt-batch-tokens={PROMPT_TOKENS}", f"--queue-threshold={PROMPT_TOKENS}"),
]
"""Prompts take 0.1 s, one after the other, and one may lie in the machine's queue."""
SLOWLY = [*ONE_AT_A_TIME, "--null-prompt-token-s=0.02"]


@dataclass
class Crowd:
    """Sends requests side by side and notes their ends in order."""

    http: httpx.AsyncClient
    ends: list[tuple[str, httpx.Response]] = field(default_factory=list)
    sent: int = 0

    def send(
        self, name: str, count: int, output_tokens: int = 1, **body: Any
    ) -> "asyncio.Task[Any]":
        """``body`` may hold ``key``, the client's."""
        headers = {"Authorization": f"Bearer {key}"} if (key := body.pop("key", None)) else {}

        async def one(number: int) -> None:
            fields = {
                "prompt": prompt(number),
                "max_tokens": output_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "return_token_ids": True,
                **body,
            }
            answer = await self.http.post("/v1/completions", json=fields, headers=headers)
            self.ends.append((name, answer))
            if answer.status_code == 200:
                tokens = answer.json()["choices"][0]["token_ids"]
                assert tokens == continuation(prompt(number), output_tokens, GREEDY, WORDS)

        async def all_of_them(first: int) -> None:
            async with asyncio.TaskGroup() as group:
                for number in range(first, first + count):
                    group.create_task(one(number))

        self.sent += count
        return asyncio.create_task(all_of_them(self.sent - count))

    def count(self, name: str, status: int = 200) -> int:
        return sum(who == name and answer.status_code == status for who, answer in self.ends)

    async def wait_for(self, name: str, count: int) -> None:
        while self.count(name) < count:
            await asyncio.sleep(0.005)

    async def figure(self, name: str, label: str = "") -> float:
        """The sum over a metric's series, those with ``label``."""
        text = (await self.http.get("/metrics")).text
        series = re.findall(rf"^splitwise:{name}{{.*{label}.*}} (\S+)$", text, re.M)
        assert series, name
        return sum(float(value) for value in series)

    async def wait_for_figure(self, name: str, at_least: float) -> None:
        async with asyncio.timeout(30):
            while await self.figure(name) < at_least:
                await asyncio.sleep(0.02)

    async def wait_until_idle(self) -> None:
        """Every cache block is free and nothing waits."""
        for name in ("kv_cache_usage_perc", "num_requests_queued", "num_requests_waiting"):
            async with asyncio.timeout(10):
                while await self.figure(name):
                    await asyncio.sleep(0.1)


def prompt(number: int) -> list[int]:
    return [4 + (number * 7 + place) % 200 for place in range(PROMPT_TOKENS)]


@contextmanager
def crowd(*arguments: str) -> Iterator[Crowd]:
    with running_server(*arguments) as url:
        limits = httpx.Limits(max_connections=None)
        yield Crowd(httpx.AsyncClient(base_url=url, timeout=120, limits=limits))


@pytest.mark.parametrize("cluster", ["split", "split, roles fixed", "mixed", SLOW])
@pytest.mark.timeout(300)
async def test_full_token_memory_holds_prompts_and_stalls_nothing(cluster: str) -> None:
    """67,000 tokens of cache a machine for 246,000 that are asked for at once."""
    few = ["--engine=null", "--kv-cache-gib=0.001", "--null-iteration-s=0.001"]
    with crowd(*few, *CLUSTERS[cluster]) as clients:
        async with clients.http:
            await asyncio.wait_for(clients.send("all", 240, output_tokens=1005), 240)
            assert clients.count("all") == 240
            assert await clients.figure("num_preemptions_total") > 0
            await clients.wait_until_idle()


async def test_past_the_limit_429_comes_at_once_and_says_when_to_retry() -> None:
    with crowd(*SLOWLY, "--max-waiting-requests=8") as clients:
        async with clients.http:
            await clients.send("one", 20)
            statuses = [answer.status_code for _, answer in clients.ends]
            assert Counter(statuses) == {200: 8, 429: 12}
            # Eight prompts take longer than all refusals: none of these waited for one of those.
            assert statuses.index(429) < 2 and statuses[-6:] == [200] * 6
            for _, answer in clients.ends:
                if answer.status_code == 429:
                    assert int(answer.headers["retry-after"]) >= 1
                    assert answer.json()["error"]["code"] == "rate_limit_exceeded"
            assert await clients.figure("requests_refused_total") == 12
            await clients.wait_until_idle()


async def test_a_light_client_is_served_between_a_heavy_ones_requests(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "sk-heavy,sk-light")
    with crowd(*ONE_AT_A_TIME, "--open-metrics") as clients:
        async with clients.http:
            heavy = clients.send("heavy", 40, key="sk-heavy", user="claims to be many")
            await clients.wait_for("heavy", 1)
            await clients.send("light", 5, key="sk-light", user="claims to be many")
            # In turns, and two were on the machine; first come, first served would be all 40.
            assert clients.count("heavy") <= 20
            await heavy
            assert clients.count("heavy") == 40


async def test_a_heavy_client_cannot_hold_the_whole_queue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(API_KEY_VARIABLE, "sk-heavy,sk-light")
    with crowd(*SLOWLY, "--open-metrics", "--max-waiting-requests=12") as clients:
        async with clients.http:
            heavy = clients.send("heavy", 30, key="sk-heavy")
            await clients.wait_for_figure("requests_refused_total", 10)
            await clients.send("light", 4, key="sk-light")
            await heavy
            assert clients.count("light") == 4
            # Each displaced a heavy one, but for places that became free meanwhile.
            assert await clients.figure("requests_refused_total", 'reason="displaced"') > 0
            assert clients.count("heavy") + clients.count("heavy", 429) == 30
            refused = [answer for _, answer in clients.ends if answer.status_code == 429]
            assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)


async def test_users_of_a_server_without_keys_share_it() -> None:
    with crowd(*ONE_AT_A_TIME) as clients:
        async with clients.http:
            heavy = clients.send("heavy", 30, user="heavy")
            await clients.wait_for("heavy", 1)
            await clients.send("light", 3, safety_identifier="light", user="heavy")
            assert clients.count("heavy") <= 15
            await heavy


async def test_urgent_requests_overtake_and_patient_ones_are_last() -> None:
    with crowd(*ONE_AT_A_TIME) as clients:
        async with clients.http:
            patient = clients.send("patient", 15, priority=3)
            await clients.wait_for("patient", 1)
            usual = clients.send("usual", 15)
            await clients.wait_for("usual", 1)
            await clients.send("urgent", 3, priority=-5)
            assert clients.count("usual") <= 9
            await usual
            assert clients.count("patient") <= 9  # those that the usual ones came too late for
            await patient
