"""The gateway runs on uvloop, Ray's actors on asyncio's own loop: what waits is tried on both."""

import asyncio
from collections.abc import Callable

import uvloop

Factories = dict[str, Callable[[], asyncio.AbstractEventLoop]]


def pytest_asyncio_loop_factories() -> Factories:
    return {"asyncio": asyncio.new_event_loop, "uvloop": uvloop.new_event_loop}
