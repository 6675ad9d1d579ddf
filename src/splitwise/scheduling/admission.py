"""Whether the cluster takes another request, and when a refused client may come again."""

from typing import Final

MAX_WAITING_REQUESTS: Final = 1024
"""Requests in the cluster without a first token, past which one is refused for each that comes:
``fair_queue`` says which."""


def admits(waiting_requests: int, limit: int = MAX_WAITING_REQUESTS) -> bool:
    """Whether one more request may wait for its first token."""
    return waiting_requests < limit


def retry_after_s(pending_prompt_tokens: int, prompt_tokens_per_s: float) -> float:
    """Seconds until half of the queue is gone at the present rate, between 1 and 60."""
    if prompt_tokens_per_s <= 0:
        return 1.0
    return min(60.0, max(1.0, pending_prompt_tokens / prompt_tokens_per_s / 2))
