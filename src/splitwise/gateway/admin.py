"""The operator's HTTP endpoint, in front of the API: pools shown and set.

- ``GET /admin/pools``: every machine.
- ``PATCH`` or ``POST /admin/pools/MACHINE`` with ``{"pool": "token"}``, ``{"drain": true}`` or
  both: set it; the answer is the machine.

Every request proves the admin key (``Authorization: Bearer KEY``), which is another one than the
API's. Where none is configured there is no such endpoint: it answers 404, whoever asks.
"""

import asyncio
import hmac
from typing import Final

import msgspec

from splitwise.cluster.pools import MachineView, PoolError, Pools, UnknownMachine
from splitwise.gateway.http.asgi import Application, Receive, Scope, Send
from splitwise.gateway.http.exchange import HttpLimits, Reply, Request
from splitwise.gateway.openai.errors import ApiError, invalid
from splitwise.gateway.openai.failures import answer_failures
from splitwise.gateway.openai.validation import decode
from splitwise.scheduling.pool import POOL_NAMES

ADMIN_KEY_VARIABLE: Final = "SPLITWISE_ADMIN_KEY"
_PREFIX: Final = "/admin/"
_POOLS: Final = "/admin/pools"


class Order(msgspec.Struct, forbid_unknown_fields=True):
    """What is to be set of a machine."""

    pool: str | None = None
    drain: bool | None = None


class PoolList(msgspec.Struct):
    """The answer to ``GET /admin/pools``."""

    machines: list[MachineView]


_order_decoder = msgspec.json.Decoder(Order)


class Admin:
    """Answers ``/admin/`` and hands everything else on to ``app``."""

    def __init__(self, app: Application, pools: Pools, key: str, limits: HttpLimits) -> None:
        """``key`` is empty where none is configured."""
        self._app = app
        self._pools = pools
        self._key = key.encode()
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or not scope["path"].startswith(_PREFIX):
            await self._app(scope, receive, send)
            return
        request = Request(scope, receive)
        reply = Reply(send, request.id)
        exchange = self._answer_in_time(scope, request, reply)
        await answer_failures(exchange, request, reply, self._limits)

    async def _answer_in_time(self, scope: Scope, request: Request, reply: Reply) -> None:
        async with asyncio.timeout(self._limits.max_request_s):
            self._authenticate(scope)
            answer = await self._answer(request)
            await reply.body(200, msgspec.json.encode(answer))

    def _authenticate(self, scope: Scope) -> None:
        if not self._key:
            raise ApiError(404, f"no admin endpoint: start the server with {ADMIN_KEY_VARIABLE}")
        given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
        kind, _, key = given.partition(b" ")
        if not hmac.compare_digest(key.strip(), self._key) or kind.lower() != b"bearer":
            raise ApiError(
                401,
                "send the header `Authorization: Bearer KEY` with the server's admin key "
                f"({ADMIN_KEY_VARIABLE})",
                code="invalid_admin_key",
                kind="authentication_error",
                headers=[(b"www-authenticate", b"Bearer")],
            )

    async def _answer(self, request: Request) -> PoolList | MachineView:
        if request.path == _POOLS:
            _check_method(request, "GET")
            return PoolList(self._pools.show())
        if not request.path.startswith(_POOLS + "/"):
            raise ApiError(404, f"there is no {request.path[:200]} here: use {_POOLS}")
        _check_method(request, "PATCH", "POST")
        order = decode(await request.body(self._limits), _order_decoder)
        return self._obey(request.path[len(_POOLS) + 1 :], order)

    def _obey(self, name: str, order: Order) -> MachineView:
        if order.pool is None and order.drain is None:
            raise ApiError(400, 'send {"pool": "token"}, {"drain": true} or both')
        pool = None if order.pool is None else POOL_NAMES.get(order.pool)
        if order.pool is not None and pool is None:
            raise invalid("pool", order.pool, f"use one of {', '.join(POOL_NAMES)}")
        try:
            if pool is not None:
                view = self._pools.set_home(name, pool)
            if order.drain is not None:
                view = self._pools.drain(name, order.drain)
        except UnknownMachine as error:
            raise ApiError(404, str(error), code="machine_not_found") from None
        except PoolError as error:
            raise ApiError(409, str(error), code="machine_state") from None
        return view


def _check_method(request: Request, *allowed: str) -> None:
    if request.method not in allowed:
        allow = ", ".join(allowed)
        raise ApiError(
            405,
            f"{request.path[:200]} does not take {request.method}: use {allow}",
            headers=[(b"allow", allow.encode())],
        )
