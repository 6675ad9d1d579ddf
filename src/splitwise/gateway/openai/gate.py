"""What a request must pass before it is even routed: its key, and the server's taking requests.

It also says whose a request is, for the queue to be fair, and how urgent it may be: its key's
owner's. Without keys it is its address's or, as a proxy may stand before many, that of the user it
names at that address. A user is never looked for beyond that, so that nobody can use up another
one's share.
"""

import asyncio
from typing import Final

from splitwise.gateway.api_keys import PRIORITIES, USUAL_PRIORITY, ApiKeys, Tenant
from splitwise.gateway.http.exchange import Request
from splitwise.gateway.openai.errors import ApiError

_ALWAYS_OPEN: Final = frozenset({"/health", "/version", "/openapi.json"})
"""They tell nothing of clients or of load."""
_METRICS: Final = "/metrics"
_USER_CHARS: Final = 256
"""Beyond that all users of the same beginning are one."""
_DRAINING_RETRY_S: Final = 5.0
"""By then a proxy has taken this server out, or its successor is up."""


class Gate:
    """``stop`` is the server's: once it is set, what runs may end and nothing new begins."""

    def __init__(
        self,
        keys: ApiKeys | None = None,
        open_metrics: bool = False,
        stop: asyncio.Event | None = None,
        min_priority: int | None = None,
    ) -> None:
        """``min_priority`` is the most urgent one that a request may ask for, where its key says
        nothing else; None: the usual one with keys, and any without."""
        self._keys = keys or ApiKeys()
        self._open = _ALWAYS_OPEN | ({_METRICS} if open_metrics else set())
        self._stop = stop or asyncio.Event()
        self._min_priority = min_priority

    @property
    def draining(self) -> bool:
        return self._stop.is_set()

    def check(self, request: Request) -> None:
        """Let the request in, and note whose its key is, where it needed one.

        Raises:
            ApiError: 401 without a valid key, 503 while draining.
        """
        if self._keys and request.path not in self._open:
            request.tenant = self._owner(request.authorization)
        if self.draining and request.path not in _ALWAYS_OPEN | {_METRICS}:
            raise ApiError(
                503,
                "the server is draining: it ends once its running requests have",
                None,
                "draining",
                "server_error",
                retry_after_s=_DRAINING_RETRY_S,
                headers=[(b"connection", b"close")],
            )

    def client(self, request: Request, user: str | None) -> str:
        """Who sent a request that was let in; ``user`` is whom it names."""
        if request.tenant is not None:
            return request.tenant.name
        return f"{request.address} {user[:_USER_CHARS]}" if user else request.address

    def least_priority(self, request: Request) -> int:
        """The most urgent (lowest) priority that a request that was let in may ask for."""
        tenant = request.tenant
        if tenant is not None and tenant.min_priority is not None:
            return tenant.min_priority
        if self._min_priority is not None:
            return self._min_priority
        return PRIORITIES[0] if tenant is None else USUAL_PRIORITY

    def _owner(self, authorization: bytes) -> Tenant:
        if (tenant := self._keys.find(authorization)) is not None:
            return tenant
        message = "the API key is not one of this server's: check it"
        if not authorization:
            message = "an API key is needed: send it as the header Authorization: Bearer KEY"
        raise ApiError(
            401,
            message,
            code="invalid_api_key",
            headers=[(b"www-authenticate", b'Bearer realm="splitwise"')],
        )
