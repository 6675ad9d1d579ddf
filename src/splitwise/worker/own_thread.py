"""The thread on which a machine works, and the inbox by which others reach it."""

import asyncio
import os
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

Message = TypeVar("Message")


class OwnThread(Generic[Message]):
    """For as long as a session lasts. Any thread may ``put``."""

    def __init__(self, cores: Sequence[int]) -> None:
        """``cores`` are where it stays, and the threads that it starts; none: anywhere."""
        self._cores = cores
        self._inbox: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._stopping = threading.Event()

    @property
    def is_stopping(self) -> bool:
        return self._stopping.is_set()

    def put(self, message: Message) -> None:
        self._inbox.put(message)

    def wake(self) -> None:
        """Have ``take_in`` look whether there is something else to do."""
        self._inbox.put(None)

    async def run(self, work: Callable[[], None]) -> None:
        """Do ``work`` until it returns. Where this is cancelled ``work`` is to see ``is_stopping``,
        and is waited for."""
        thread = asyncio.get_running_loop().run_in_executor(None, self._run, work)
        try:
            await asyncio.shield(thread)
        finally:
            self._stopping.set()
            self.wake()
            await thread

    def take_in(self, handle: Callable[[Message], None], patience_s: float | None) -> None:
        """Handle all messages. Wait so long for the first, or for a ``wake``; None: without end."""
        try:
            message = self._inbox.get(patience_s != 0, patience_s)
            while message is not None:
                handle(message)
                message = self._inbox.get(block=False)
        except queue.Empty:
            return

    def _run(self, work: Callable[[], None]) -> None:
        if self._cores:
            os.sched_setaffinity(0, self._cores)
        work()
