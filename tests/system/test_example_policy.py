"""The policies of docs/policies.md have the same effect in the simulator and in a server."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from splitwise.cli.main import app
from splitwise.launch.local_server import running_server
from splitwise.scheduling.batching import MAX_PROMPT_SKIPS

EXAMPLE = Path(__file__).parents[2] / "examples" / "policies" / "small_apart.py"
LONG, SHORT = 4000, 100
ROWS = [(0.0, LONG), (0.0, LONG), (0.0, LONG), (0.5, SHORT)]
"""Of three prompt machines the default has a long prompt on each when the short one comes."""
POLICIES = [("default", False), (str(EXAMPLE), True)]


@pytest.mark.parametrize("example", sorted(EXAMPLE.parent.glob("*.py")))
def test_the_page_shows_the_file(example: Path) -> None:
    page = EXAMPLE.parents[2] / "docs" / "policies.md"
    assert example.read_text().strip() in page.read_text()


@pytest.mark.parametrize(("policy", "short_is_first"), POLICIES)
def test_simulated(tmp_path: Path, policy: str, short_is_first: bool) -> None:
    trace = tmp_path / "trace.jsonl"
    rows = [
        {"arrival_s": at_s, "prompt_tokens": tokens, "output_tokens": 2} for at_s, tokens in ROWS
    ]
    rows[-1]["arrival_s"] = 0.05  # a DGX computes the long ones in less than a second
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    table = tmp_path / "requests.csv"
    arguments = ["--prompt=3xdgx-h100", "--token=1xdgx-h100", f"--requests-table={table}"]
    result = CliRunner().invoke(
        app, ["simulate", str(trace), *arguments, "--no-change-roles", f"--policy={policy}"]
    )
    assert result.exit_code == 0, result.output
    head, *lines = [line.split(",") for line in table.read_text().splitlines()]
    first_token_s = [float(line[head.index("first_token_s")]) for line in lines]
    assert (first_token_s[-1] < min(first_token_s[:-1])) == short_is_first


@pytest.mark.parametrize(("policy", "short_is_first"), POLICIES)
def test_served(policy: str, short_is_first: bool) -> None:
    with (
        running_server(
            *("--engine=null", "--prompt=3", "--token=1", "--no-change-roles"),
            *("--null-prompt-token-s=1e-3", f"--policy={policy}"),
        ) as url,
        httpx.Client(base_url=url, timeout=60) as client,
        ThreadPoolExecutor(len(ROWS)) as pool,
    ):

        def send(row: tuple[float, int]) -> float:
            time.sleep(row[0])
            body = {"prompt": [4] * row[1], "max_tokens": 2, "ignore_eos": True}
            assert client.post("/v1/completions", json=body).status_code == 200
            return time.monotonic()

        ended_s = list(pool.map(send, ROWS))
    assert (ended_s[-1] < min(ended_s[:-1])) == short_is_first


NEVER = "def compose(batch, prompt_tokens):\n    return 0"


def test_a_server_s_worker_composes_by_it(tmp_path: Path) -> None:
    """A prompt that comes beside a stream is kept out for as many of its tokens as may be."""
    (tmp_path / "never.py").write_text(NEVER)
    seen = 0
    with (
        running_server(
            *("--engine=null", "--mixed=1", "--null-iteration-s=0.01"),
            f"--policy={tmp_path / 'never.py'}",
        ) as url,
        httpx.Client(base_url=url, timeout=60) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        body = {"prompt": [4, 5], "max_tokens": 200, "ignore_eos": True, "stream": True}
        with client.stream("POST", "/v1/completions", json=body) as stream:
            lines = (line for line in stream.iter_lines() if line.startswith("data: {"))
            next(lines)
            other = {"prompt": [6, 7], "max_tokens": 1, "ignore_eos": True}
            answer = pool.submit(client.post, "/v1/completions", json=other)
            for _ in lines:
                seen += not answer.done()
        assert answer.result().status_code == 200
    assert MAX_PROMPT_SKIPS / 2 < seen < 150
