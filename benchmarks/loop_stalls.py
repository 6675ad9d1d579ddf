"""The longest stall of the gateway's event loop under requests made to cause one.

``python benchmarks/loop_stalls.py [--only WORDS] [--repeats N] [--together N]``

A whole server without a model's weights (real tokenizer, null engine) runs in a child process with
a meter on its loop (``stall_meter``). Each request of ``hostile`` is sent, alone or several at
once, then the meter is read: what is shown is the least of the repeats, as whatever else runs on
the machine only adds.
The meter is put around the command as it stands, so that the same file measures older releases:
``PYTHONPATH=/other/checkout/src python benchmarks/loop_stalls.py``.
"""

import argparse
import asyncio
import http.client
import json
import multiprocessing as mp
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import uvloop
from rich.console import Console
from rich.table import Table

from common import write_result
from hostile import CONTEXT_TOKENS, HOSTILE, SMALL, Asked
from processes import free_port
from splitwise.engine.model_files import resolve_model
from stall_meter import Stall, StallMeter

GOAL_S = 0.020
START_LIMIT_S = 120
ANSWER_LIMIT_S = 300


def _serve(arguments: list[str], pipe: Connection) -> None:
    """The child: ``splitwise serve`` with a meter on its loop, read by a word on ``pipe``."""
    from splitwise.cli.main import main

    run = uvloop.run

    async def metered(program: Any) -> Any:
        meter = StallMeter()

        def answer() -> None:
            pipe.recv()
            pipe.send(meter.take())

        asyncio.get_running_loop().add_reader(pipe.fileno(), answer)
        return await program

    uvloop.run = lambda program: run(metered(program))
    sys.argv = ["splitwise", "serve", *arguments]
    main()


@contextmanager
def _server() -> Iterator[tuple[int, Connection]]:
    with tempfile.TemporaryDirectory() as folder:
        model = _model_without_weights(Path(folder) / "model")
        context = mp.get_context("spawn")
        ours, theirs = context.Pipe()
        port = free_port()
        arguments = [str(model), f"--port={port}", "--engine=null", "--mixed=1"]
        child = context.Process(target=_serve, args=(arguments, theirs))
        child.start()
        try:
            _wait_until_up(port)
            yield port, ours
        finally:
            child.terminate()
            child.join(60)


def _model_without_weights(folder: Path) -> Path:
    """The default model's tokenizer and template, for contexts of ``CONTEXT_TOKENS``."""
    folder.mkdir()
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        if (found := resolve_model().path / name).exists():
            shutil.copy(found, folder)
    for name in ("chat_template.jinja", "generation_config.json"):
        if (found := resolve_model().path / name).exists():
            shutil.copy(found, folder)
    config = json.loads((resolve_model().path / "config.json").read_text())
    config["max_position_embeddings"] = CONTEXT_TOKENS
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def _wait_until_up(port: int) -> None:
    end_s = time.monotonic() + START_LIMIT_S
    while True:
        try:
            if _ask(port, SMALL) == 200:
                return
        except OSError:
            pass
        if time.monotonic() > end_s:
            raise RuntimeError("the server did not start")
        time.sleep(0.1)


def _ask(port: int, asked: Asked) -> int:
    """Send it and read the whole answer; returns the status."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=ANSWER_LIMIT_S)
    try:
        path, body = asked
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        answer.read()
        return answer.status
    finally:
        connection.close()


def _read(pipe: Connection) -> Stall:
    pipe.send("read")
    return Stall(*pipe.recv())


def measure(only: str, repeats: int, together: int) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    cases = {"nothing but small requests": lambda: SMALL, **HOSTILE}
    with _server() as (port, pipe):
        for name, make in cases.items():
            if only not in name:
                continue
            asked, stalls, status = make(), [], 0
            for _ in range(repeats):
                _read(pipe)
                with ThreadPoolExecutor(together) as clients:
                    [status, *_] = clients.map(_ask, [port] * together, [asked] * together)
                time.sleep(0.02)
                stalls.append(_read(pipe))
            wall_s = min(stall.wall_s for stall in stalls)
            cpu_s = min(stall.cpu_s for stall in stalls)
            rows.append({"request": name, "status": status, "wall_s": wall_s, "cpu_s": cpu_s})
            print(f"{name}: {status}, {wall_s * 1e3:.1f} ms", file=sys.stderr, flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", default="", help="requests whose names have these words")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--together", type=int, default=1, help="so many at once")
    options = parser.parse_args()
    rows = measure(options.only, options.repeats, options.together)
    table = Table("request", "status", "stall, ms", "of it CPU, ms")
    for row in rows:
        late = "[bold]" if row["wall_s"] > GOAL_S else ""
        table.add_row(
            row["request"],
            str(row["status"]),
            f"{late}{row['wall_s'] * 1e3:.1f}",
            f"{row['cpu_s'] * 1e3:.1f}",
        )
    Console().print(table)
    write_result("loop_stalls", {"goal_s": GOAL_S, "rows": rows})


if __name__ == "__main__":
    main()
