"""The front of vLLM's own split: a request goes to a prefill server, then to a decode server.

The flow of vLLM's example proxy for its NixlConnector, on the same libraries: the prefill server is
asked for one token with ``kv_transfer_params`` that say a decode server will fetch the cache, its
answer names where the cache lies, and the request goes on to the decode server with that. The
decode server's answer is passed on as it comes. When the prefill server had answered is told in a
header, on ``time.perf_counter``, which is the same clock for all processes of a host.

    python benchmarks/vllm_proxy.py PORT PREFILL_URL DECODE_URL
"""

import sys
import time
import uuid
from collections.abc import AsyncIterator

import httpx
import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

PROMPT_DONE = "x-prompt-done-s"
FETCHED_LATER = {
    "do_remote_decode": True,
    "do_remote_prefill": False,
    "remote_engine_id": None,
    "remote_block_ids": None,
    "remote_host": None,
    "remote_port": None,
}
LIMIT_S = 600.0


def open_proxy(prefill_url: str, decode_url: str) -> FastAPI:
    """The application; ``/health`` is well when both servers are."""
    app = FastAPI()
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=None)
    prefill, decode = (
        httpx.AsyncClient(base_url=url, timeout=LIMIT_S, limits=limits)
        for url in (prefill_url, decode_url)
    )

    @app.get("/health")
    async def health() -> Response:
        try:
            answers = [await server.get("/health") for server in (prefill, decode)]
        except httpx.TransportError:
            return Response(status_code=503)
        return Response(status_code=max(answer.status_code for answer in answers))

    @app.post("/v1/completions")
    async def completions(request: Request) -> Response:
        asked = await request.json()
        headers = {"X-Request-Id": str(uuid.uuid4())}
        first = asked | {"max_tokens": 1, "stream": False, "kv_transfer_params": FETCHED_LATER}
        first.pop("stream_options", None)
        computed = await prefill.post("/v1/completions", json=first, headers=headers)
        if computed.status_code != 200:
            return JSONResponse(computed.json(), computed.status_code)
        done_s = time.perf_counter()
        asked["kv_transfer_params"] = computed.json()["kv_transfer_params"]
        return StreamingResponse(
            _relay(decode, asked, headers),
            media_type="text/event-stream",
            headers={PROMPT_DONE: repr(done_s)},
        )

    return app


async def _relay(
    server: httpx.AsyncClient, asked: dict[str, object], headers: dict[str, str]
) -> AsyncIterator[bytes]:
    async with server.stream("POST", "/v1/completions", json=asked, headers=headers) as answer:
        answer.raise_for_status()
        async for part in answer.aiter_bytes():
            yield part


if __name__ == "__main__":
    app = open_proxy(sys.argv[2], sys.argv[3])
    uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[1]), log_level="warning", loop="uvloop")
