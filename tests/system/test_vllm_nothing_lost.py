"""Requests of every kind against one prompt and one token machine of vLLM, whose caches are small,
while clients leave at any moment and ask for nonsense: every answer is what it is without all that,
and in the end every block is free."""

import asyncio
import random
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from command_process import ready_server
from test_churn import wait_until_idle
from vllm_requests import Asked, Choice, choices_in, choices_streamed, request_of

from splitwise.engine.model_files import DEFAULT_MODEL

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(3000)]

WORDS = (Path(__file__).parents[2] / "LICENSE").read_text().split()
DIFFERENT = 64
REQUESTS = 500
AT_ONCE = 20
ENGINE = ["--engine=vllm", "--dtype=float32", "--kv-cache-gib=1"]
ROOMY = "--enforce-eager --max-model-len 1536"
SMALL = f"{ROOMY} --max-num-batched-tokens 256 --num-gpu-blocks-override 14"
SPLIT = ["--prompt=1", "--token=1", "--transport=tcp", "--checksum", "--one-piece-below=128"]
END_LIMIT_S = 90

Answers = list[list[Choice]]


@pytest.fixture(scope="module")
def asked() -> list[Asked]:
    return [request_of(number, WORDS) for number in range(DIFFERENT)]


@pytest.fixture(scope="module")
def undisturbed(asked: list[Asked], tmp_path_factory: pytest.TempPathFactory) -> Answers:
    """By one machine that runs both phases, one request after the other."""
    log = tmp_path_factory.mktemp("undisturbed") / "serve.log"
    with ready_server("--mixed=1", *ENGINE, f"--vllm-args={ROOMY}", log=log) as (_, url):
        return answers_of(url, asked)


@pytest.fixture
def small_split(tmp_path: Path) -> Iterator[tuple["subprocess.Popen[str]", str]]:
    log = tmp_path / "serve.log"
    arguments = [*SPLIT, *ENGINE, f"--vllm-args={SMALL}"]
    with ready_server(*arguments, log=log) as server:
        yield server


def answers_of(url: str, asked: list[Asked]) -> Answers:
    with httpx.Client(base_url=url, timeout=300) as client:
        answers = [client.post(one.path, json=one.body) for one in asked]
    assert [(a.status_code, a.text) for a in answers if a.status_code != 200] == []
    return [choices_in(answer.json()) for answer in answers]


class Crowd:
    """Clients of whom some leave and some ask for nonsense."""

    def __init__(self, url: str, asked: list[Asked], expected: Answers) -> None:
        self._http = httpx.AsyncClient(base_url=url, timeout=600, limits=httpx.Limits())
        self._asked = asked
        self._expected = expected
        self._gate = asyncio.Semaphore(AT_ONCE)
        self.kinds: Counter[str] = Counter()
        self.wrong: list[str] = []

    async def run(self, requests: int) -> None:
        async with self._http:
            await asyncio.gather(*(self._one(number) for number in range(requests)))
            await wait_until_idle(self._http, "")

    async def _one(self, number: int) -> None:
        rng = random.Random(number)
        which = rng.randrange(len(self._asked))
        kind = rng.choices(("whole", "leave", "bad"), (6, 3, 1))[0]
        async with self._gate:
            if kind == "whole":
                await self._whole(which, rng.random() < 0.6)
            elif kind == "leave":
                await self._leave(which, rng)
            else:
                await self._bad(which, rng)
        self.kinds[kind] += 1

    async def _whole(self, which: int, is_streamed: bool) -> None:
        asked, expected = self._asked[which], self._expected[which]
        body = asked.body | {"stream": is_streamed}
        answer = await self._http.post(asked.path, json=body)
        try:
            assert answer.status_code == 200, answer.text
            lines = answer.text.split("\n")
            choices = choices_streamed(lines) if is_streamed else choices_in(answer.json())
        except (AssertionError, ValueError) as error:
            self.wrong.append(f"{which}: {error}")
            return
        same = len(choices) == len(expected)
        if not same or not all(a.is_like(b) for a, b in zip(choices, expected, strict=True)):
            self.wrong.append(f"{which}: {choices}, not {expected}")

    async def _leave(self, which: int, rng: random.Random) -> None:
        asked = self._asked[which]
        try:
            async with asyncio.timeout(rng.uniform(0.0, 4.0)):
                body = asked.body | {"stream": True}
                async with self._http.stream("POST", asked.path, json=body) as response:
                    async for _ in response.aiter_bytes():
                        if rng.random() < 0.2:
                            break
        except TimeoutError:
            return

    async def _bad(self, which: int, rng: random.Random) -> None:
        asked = self._asked[which]
        field = rng.choice(["max_tokens", "temperature", "n", "stop", "logprobs"])
        body = asked.body | {field: rng.choice([{}, [[]], -7])}
        if rng.random() < 0.2:
            body = {"model": DEFAULT_MODEL, "prompt": [10**7]}
        answer = await self._http.post(asked.path, json=body)
        if not 400 <= answer.status_code < 500:
            self.wrong.append(f"{which}: {field} {body.get(field)}: {answer.status_code}")


def test_nothing_is_lost_and_nothing_stays(
    small_split: tuple["subprocess.Popen[str]", str],
    asked: list[Asked],
    undisturbed: Answers,
    tmp_path: Path,
) -> None:
    server, url = small_split
    crowd = Crowd(url, asked, undisturbed)
    asyncio.run(crowd.run(REQUESTS))
    assert crowd.wrong == []
    assert min(crowd.kinds[kind] for kind in ("whole", "leave", "bad")) > 20
    assert answers_of(url, asked[:8]) == undisturbed[:8]
    metrics = httpx.get(f"{url}/metrics").text
    assert figure(metrics, "splitwise:machine_preemptions_total") > 0
    server.send_signal(signal.SIGTERM)
    assert server.wait(END_LIMIT_S) == 0
    log = (tmp_path / "serve.log").read_text()
    assert "Traceback" not in log and "given up" not in log


def figure(metrics: str, name: str) -> float:
    """The sum of a metric over all machines."""
    lines = [line for line in metrics.split("\n") if line.startswith(f"{name}{{")]
    assert lines, f"no {name}"
    return sum(float(line.rpartition(" ")[2]) for line in lines)


def test_draws_are_those_of_the_embedded_engine(
    asked: list[Asked], undisturbed: Answers, tmp_path: Path
) -> None:
    """Same sampler, same float32 model, other kernels."""
    seeded = [place for place, one in enumerate(asked) if "seed" in one.body][:12]
    log = tmp_path / "serve.log"
    with ready_server("--mixed=1", "--dtype=float32", log=log) as (_, url):
        embedded = answers_of(url, [asked[place] for place in seeded])
    for place, choices in zip(seeded, embedded, strict=True):
        pairs = zip(choices, undisturbed[place], strict=True)
        assert all(ours.is_like(vllms) for ours, vllms in pairs), place
