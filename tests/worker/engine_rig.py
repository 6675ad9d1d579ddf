"""A machine over an engine, with real transfers, driven step by step in this process."""

import queue
import time
from collections.abc import Callable

import msgspec
from transfer_machines import ends_of_one_rank

from splitwise.engine.base import Engine
from splitwise.protocol.generation import FinishReason
from splitwise.protocol.messages import Outputs
from splitwise.scheduling.policies.policy import DEFAULT, Policy
from splitwise.transfer import ReceiverAddress
from splitwise.worker.machine import Machine, MachineLimits

KEY = "a key for the test"


class EngineRig:
    """A machine with its inbox; ``said`` is what it has told the cluster scheduler."""

    def __init__(
        self,
        engine: Engine,
        name: str,
        limits: MachineLimits,
        policy: Policy = DEFAULT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self.inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.said: list[msgspec.Struct] = []
        self.receiver, self.sender = ends_of_one_rank(
            engine.memory, engine.layout, name, KEY, self.inbox.put
        )
        self.machine = Machine(
            engine, self.sender, self.receiver, self.said.append, limits, policy, clock
        )

    @property
    def addresses(self) -> list[ReceiverAddress]:
        return self.receiver.addresses

    def turn(self) -> None:
        """Take in what has come, and run one iteration."""
        while not self.inbox.empty():
            self.machine.handle(self.inbox.get())  # type: ignore[arg-type]
        self.machine.iterate()

    def tokens(self, task: int) -> list[int]:
        return [
            item.sample.token
            for message in self.said
            if isinstance(message, Outputs)
            for item in message.items
            if item.task == task
        ]

    def finish(self, task: int) -> FinishReason | None:
        items = [i for m in self.said if isinstance(m, Outputs) for i in m.items if i.task == task]
        return items[-1].finish if items else None

    def heard(self, kind: type[msgspec.Struct]) -> list[msgspec.Struct]:
        return [message for message in self.said if isinstance(message, kind)]

    @property
    def is_empty(self) -> bool:
        status = self.machine.status()
        return not (status.used_blocks or status.running_requests or status.waiting_requests)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        self.engine.close()
