"""The one thread of a sender or a receiver: an event loop that others hand work to."""

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import uvloop

logger = logging.getLogger(__name__)


class LoopThread:
    """Runs an asyncio loop on its own thread, blocked while there is nothing to do."""

    def __init__(self, name: str) -> None:
        self._loop = uvloop.new_event_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        # Daemon, so that a process that forgets close() still ends.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def call(self, function: Callable[..., None], *args: Any) -> None:
        """Run ``function`` on the thread, after all earlier calls. Costs microseconds.

        Raises:
            RuntimeError: the thread is closed.
        """
        self._loop.call_soon_threadsafe(function, *args)

    def spawn(self, work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        """Run ``work`` as a task; an exception it lets out is logged. On the thread only."""
        task: asyncio.Task[None] = self._loop.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def close(self, farewell: Callable[[], Coroutine[Any, Any, None]], timeout_s: float) -> None:
        """Run ``farewell`` on the thread, cancel what still runs then, and join. Harmless twice.

        Raises:
            RuntimeError: called on the thread itself.
            TimeoutError: either took longer than ``timeout_s``.
        """
        if not self._thread.is_alive():
            return
        if threading.current_thread() is self._thread:
            raise RuntimeError("close was called from an event callback: call it elsewhere")
        try:
            asyncio.run_coroutine_threadsafe(farewell(), self._loop).result(timeout_s)
        finally:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout_s)
        if self._thread.is_alive():
            raise TimeoutError(f"thread {self._thread.name} has not ended within {timeout_s:g} s")

    def _ended(self, task: "asyncio.Task[None]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            logger.error("%s failed: %s", task.get_name(), error, exc_info=error)

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        left = list(self._tasks)
        for task in left:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        self._loop.run_until_complete(self._loop.shutdown_default_executor())
        self._loop.close()
