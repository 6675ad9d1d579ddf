"""How long a request may take: the server's limit, or the client's where that is shorter."""

import math

from splitwise.gateway.openai.errors import ApiError, invalid


def time_limit_s(given: bytes | None, max_request_s: float) -> float:
    """The limit of a request with the header ``X-Request-Timeout: given``, in seconds.

    Raises:
        ApiError: 400 for what is not a positive number.
    """
    if given is None:
        return max_request_s
    text = given.decode("latin-1")
    try:
        asked_s = float(text)
    except ValueError:
        asked_s = math.nan
    if not (0 < asked_s < math.inf):
        raise invalid("X-Request-Timeout", text, "give seconds, a number over 0 such as 30")
    return min(asked_s, max_request_s)


def deadline_passed(limit_s: float) -> ApiError:
    """The answer to a request that took longer than it might."""
    return ApiError(
        504,
        f"the request took longer than {limit_s:g} s: ask for less, or allow more time with "
        "X-Request-Timeout and the server's --max-request-s",
        code="timeout",
        kind="server_error",
        # OpenAI's clients would otherwise send it again at once, to take as long again.
        headers=[(b"x-should-retry", b"false")],
    )
