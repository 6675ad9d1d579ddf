"""What a client hears of an exchange that goes wrong, of the API's and of the operator's alike."""

import asyncio
import logging
from collections.abc import Awaitable

from splitwise.gateway.http.exchange import (
    BodyTimeout,
    BodyTooLarge,
    Disconnected,
    HttpLimits,
    Reply,
    Request,
    UpgradeAsked,
)
from splitwise.gateway.openai.errors import FORESEEN, ApiError, as_api_error

log = logging.getLogger(__name__)


async def answer_failures(
    exchange: Awaitable[None], request: Request, reply: Reply, limits: HttpLimits
) -> None:
    """Whatever ``exchange`` raises becomes the answer, or the last event of a stream."""
    try:
        await exchange
    except Disconnected:
        log.debug("request %s: the client went away", request.id)
    except asyncio.CancelledError:
        log.warning("request %s: cancelled because the server stops", request.id)
        error = ApiError(503, "the server stops", kind="server_error")
        await _answer(error, request, reply, limits)
    except FORESEEN as error:
        await _answer(error, request, reply, limits)
    except Exception as error:
        log.exception("request %s failed unexpectedly", request.id)
        await _answer(error, request, reply, limits)


async def _answer(error: Exception, request: Request, reply: Reply, limits: HttpLimits) -> None:
    answer = as_api_error(error, limits, request.id)
    if answer.status >= 500:
        log.warning("request %s: %d: %s", request.id, answer.status, error)
    if reply.started:
        await reply.events(b"data: " + answer.to_json() + b"\n\n")
        await reply.end()
    elif isinstance(error, BodyTooLarge | BodyTimeout | UpgradeAsked):
        await reply.last_body(answer.status, answer.to_json(), request)
    else:
        await reply.body(answer.status, answer.to_json(), headers=answer.headers)
