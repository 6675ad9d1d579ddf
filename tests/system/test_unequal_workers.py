"""Workers of unequal cache: a small one that is full does not keep requests from a large one."""

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import httpx
import pytest
from command_process import CommandProcess
from test_rejoin import free_port

KEY = "the cluster's key"
TOKEN_BYTES = 16
SMALL_TOKENS, LARGE_TOKENS = 640, 6_400
ITERATION_S = 0.05


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    """A server of two mixed machines, the small one first."""
    http_port, join_port = free_port(), free_port()
    null = ("--engine=null", f"--null-iteration-s={ITERATION_S}")
    with ExitStack() as ends:
        serve = ("serve", "--external-workers=2", "--engine=null", f"--port={http_port}")
        server = CommandProcess(*serve, f"--scheduler-port={join_port}", cluster_key=KEY)
        ends.callback(server.end)
        server.wait_for("waiting for 2 workers")
        for name, tokens in (("small", SMALL_TOKENS), ("large", LARGE_TOKENS)):
            size = f"--kv-cache-gib={(tokens * TOKEN_BYTES + 1) / 2**30}"
            join = ("worker", f"--join=127.0.0.1:{join_port}", f"--machine-id={name}")
            ends.callback(CommandProcess(*join, size, *null, cluster_key=KEY).end)
            server.wait_for(f"machine {name} joined")
        server.wait_for("ready: ")
        yield ends.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{http_port}", timeout=60))


def body(prompt_tokens: int, output_tokens: int, stream: bool = False) -> dict[str, object]:
    prompt = [4] * prompt_tokens
    return {"prompt": prompt, "max_tokens": output_tokens, "ignore_eos": True, "stream": stream}


def test_the_large_machine_goes_on_serving(client: httpx.Client) -> None:
    """The first fills the small machine, the second runs on the large one. Both have one request
    then, so by that count the small machine, which is full, comes first again."""
    with ThreadPoolExecutor(2) as threads:

        def start(prompt_tokens: int, output_tokens: int) -> "Future[None]":
            """Returns once it has its first token; the future is done when it has its last."""
            began: Future[None] = Future()

            def read() -> None:
                sent = body(prompt_tokens, output_tokens, stream=True)
                with client.stream("POST", "/v1/completions", json=sent) as answer:
                    for line in answer.iter_lines():
                        if not began.done() and '"choices":[{' in line:
                            began.set_result(None)

            ended = threads.submit(read)
            began.result(timeout=30)
            return ended

        fills_small = start(SMALL_TOKENS - 80, 80)
        runs_on_large = start(100, 150)
        for _ in range(5):
            answer = client.post("/v1/completions", json=body(100, 2))
            assert answer.json()["usage"]["completion_tokens"] == 2
            assert not fills_small.done() and not runs_on_large.done()
        fills_small.result()
        runs_on_large.result()


@pytest.mark.parametrize(("prompt_tokens", "output_tokens"), [(SMALL_TOKENS + 60, 4), (600, 60)])
def test_what_only_the_large_machine_holds_is_served(
    client: httpx.Client, prompt_tokens: int, output_tokens: int
) -> None:
    """Whether it is too long from the first or outgrows the small machine."""
    answer = client.post("/v1/completions", json=body(prompt_tokens, output_tokens))
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] == output_tokens
    too_long = client.post("/v1/completions", json=body(LARGE_TOKENS, 1))
    assert too_long.status_code == 400
    assert str(LARGE_TOKENS) in too_long.text
