"""The receiver's windows over NIXL: one that takes grants, and those that wait to be closed.

A transfer whose sender is lost gets its event, and so its blocks back, only when the window that it
was granted through is closed; see ``transports/nixl``.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable

from splitwise.transfer.errors import LinkError
from splitwise.transfer.incoming import Incoming, SenderLink
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.memory import CacheMemory
from splitwise.transfer.thread import LoopThread
from splitwise.transfer.transports.nixl import OpenWindow

logger = logging.getLogger(__name__)


class Windows:
    """Lives on the receiver's thread."""

    def __init__(
        self,
        memory: CacheMemory,
        layout: CacheLayout,
        thread: LoopThread,
        links: Callable[[], Iterable[SenderLink]],
        grant_waiting: Callable[[SenderLink], None],
    ) -> None:
        """``grant_waiting`` grants what was expected over a link meanwhile."""
        self._memory = memory
        self._layout = layout
        self._thread = thread
        self._links = links
        self._grant_waiting = grant_waiting
        self._current: OpenWindow | None = None
        self._opening = asyncio.Lock()
        self._is_closing = False

    async def current(self) -> OpenWindow:
        """The window for new grants. Opened off this thread, since it may take seconds.

        Raises:
            LinkError: NIXL does not work here.
        """
        async with self._opening:
            if self._current is None or self._current.is_retired:
                self._current = await asyncio.to_thread(OpenWindow, self._memory, self._layout)
            return self._current

    def granted(self, incoming: Incoming, over: SenderLink) -> None:
        """A transfer is under way through the link's window."""
        assert over.window is not None
        incoming.window = over.window
        over.window.granted += 1
        self._thread.spawn(self._poll(over.window), "polls NIXL")

    def ended(self, incoming: Incoming) -> None:
        """A transfer has ended, and its sender writes no more."""
        window, incoming.window = incoming.window, None
        if window is not None:
            window.granted -= 1
            window.close_if_unused()

    def lost(self, incoming: Incoming, conclude: Callable[[], None]) -> None:
        """Its sender is lost: ``conclude`` it when nothing can come in any more."""
        window, incoming.window = incoming.window, None
        assert window is not None
        window.granted -= 1
        window.when_closed.append(conclude)
        is_news, window.is_retired = not window.is_retired, True
        if is_news and self._retired() and not self._is_closing:
            self._thread.spawn(self._renew(), "new window for NIXL")
        window.close_if_unused()

    def closing(self) -> None:
        """No new windows from here on."""
        self._is_closing = True

    def close(self) -> None:
        if self._current is not None:
            self._current.close()

    async def _renew(self) -> None:
        """Send the links whose window is retired a new one."""
        try:
            window = await self.current()
        except LinkError as error:
            for over in self._retired():
                over.link.fail(error)
            return
        for over in self._retired():
            over.window = window
            over.link.send(window.message)
            self._grant_waiting(over)

    def _retired(self) -> list[SenderLink]:
        return [o for o in self._links() if o.window is not None and o.window.is_retired]

    async def _poll(self, window: OpenWindow) -> None:
        try:
            await window.poll()
        except LinkError as error:
            for over in self._links():
                if over.window is window:
                    over.link.fail(error)
