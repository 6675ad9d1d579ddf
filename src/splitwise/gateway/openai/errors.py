"""What goes wrong, in the shape that OpenAI's clients read."""

import math
from typing import Any, Final

import msgspec

from splitwise.gateway.http.asgi import Headers
from splitwise.gateway.http.exchange import BodyTimeout, BodyTooLarge, HttpLimits, UpgradeAsked
from splitwise.protocol.generation import GenerationFailed, Overloaded, Unavailable


class ErrorBody(msgspec.Struct):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(msgspec.Struct):
    error: ErrorBody


class ApiError(Exception):
    """An answer other than success. ``param`` names the field that is at fault."""

    def __init__(
        self,
        status: int,
        message: str,
        param: str | None = None,
        code: str | None = None,
        kind: str = "invalid_request_error",
        retry_after_s: float | None = None,
        headers: Headers | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.answer = ErrorAnswer(ErrorBody(message, kind, param, code))
        self.headers: Headers = list(headers or ())
        if retry_after_s is not None:
            self.headers.append((b"retry-after", str(math.ceil(retry_after_s)).encode("ascii")))

    def to_json(self) -> bytes:
        return msgspec.json.encode(self.answer)


def invalid(param: str, value: Any, remedy: str, code: str | None = None) -> ApiError:
    """400 for a field: its name, its value (shortened) and what to do."""
    shown = repr(value)
    if len(shown) > 80:
        shown = shown[:77] + "..."
    return ApiError(400, f"{param} is {shown}: {remedy}", param, code)


FORESEEN: Final = (
    ApiError,
    BodyTooLarge,
    BodyTimeout,
    UpgradeAsked,
    Overloaded,
    Unavailable,
    GenerationFailed,
)


def as_api_error(error: Exception, limits: HttpLimits, request_id: str) -> ApiError:
    """The answer for one of the ``FORESEEN`` exceptions; 500 for any other.

    What failed inside (which machine, where, on what) is for the log alone, under ``request_id``.
    """
    match error:
        case ApiError():
            return error
        case BodyTooLarge():
            return ApiError(
                413,
                f"the request body is larger than {limits.max_body_bytes} bytes: send less",
                code="request_too_large",
            )
        case BodyTimeout():
            return ApiError(
                408, f"the request body did not arrive within {limits.body_timeout_s:g} s: retry"
            )
        case UpgradeAsked():
            return ApiError(
                400,
                "the Upgrade header asks for another protocol (HTTP/2 by h2c, perhaps): "
                "set the client to HTTP/1.1",
            )
        case Overloaded():
            return ApiError(
                429,
                f"{error}: retry after {math.ceil(error.retry_after_s)} s",
                code="rate_limit_exceeded",
                kind="rate_limit_error",
                retry_after_s=error.retry_after_s,
            )
        case Unavailable():
            return ApiError(503, f"{error}: retry later", None, "unavailable", "server_error")
        case GenerationFailed():
            return _failed("every machine that tried this request failed: retry", request_id)
    return _failed("the server failed on this request", request_id, "internal_error")


def _failed(what: str, request_id: str, code: str = "generation_failed") -> ApiError:
    said = f"{what}; its log says more under the X-Request-Id {request_id}"
    return ApiError(500, said, None, code, "server_error")
