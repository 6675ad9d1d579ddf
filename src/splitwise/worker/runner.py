"""What a session drives: a machine that takes tasks in and says what becomes of them.

A machine whose iterations we compose (``engine_runner``) is one kind, an engine that schedules
itself and answers when it likes another. The life of either:

1. ``OpenRunner`` makes one a session, with its transfer ends open and its facts known. What is
   costly (weights, cache) it finds made already: that outlives the sessions.
2. The session registers the facts, starts ``run``, and from then on hands over each command with
   ``take``. The runner says what ``messages`` has for a worker to say, by ``say``, from whichever
   thread the news comes up in: every task that it took ends with a finished Output, TaskFailed,
   Preempted, the word of its transfer, or the cluster scheduler's own Cancel.
3. The session cancels ``run``, which ends when the tasks are dropped and nothing runs for them any
   more, and calls ``close``: nothing touches the cache from outside after that. The next session
   opens a new one.
"""

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from splitwise.engine.base import ModelInfo
from splitwise.protocol.messages import Cancel, Expect, MachineStatus, RunPrompt
from splitwise.scheduling.batching import UNBOUNDED_DECODES
from splitwise.transfer import CacheLayout, ReceiverAddress

Command = RunPrompt | Expect | Cancel
Say = Callable[[msgspec.Struct], None]
"""Takes a message for the cluster scheduler; any thread may call it, and it does not wait long."""


@dataclass(frozen=True)
class MachineFacts:
    """What the cluster must know of a machine; it does not change within a session."""

    model: ModelInfo
    layout: CacheLayout
    addresses: list[ReceiverAddress]
    """One a rank."""
    max_decodes: int = UNBOUNDED_DECODES
    """Requests in their token phase that all get a token an iteration; the cluster scheduler places
    no more here. Without a bound an engine that schedules itself takes what its cache holds."""


class MachineRunner(ABC):
    """One machine for the time of a session. All but ``run``'s own work is called on the session's
    event loop."""

    facts: MachineFacts

    @abstractmethod
    async def run(self) -> None:
        """Work on what is taken in, until cancelled. Returns of itself only if there is nothing
        left to run the machine with; raises what broke it."""

    @abstractmethod
    def take(self, command: Command) -> None:
        """Note a command. Never waits, and refuses by a TaskFailed, not by an exception."""

    @abstractmethod
    def status(self) -> MachineStatus:
        """How full the machine is just now."""

    @abstractmethod
    async def close(self) -> None:
        """Close the transfer ends. ``run`` has ended or was never called."""


OpenRunner = Callable[[Say], Awaitable[MachineRunner]]
"""
Raises:
    WorkerError: the machine cannot be opened.
"""
