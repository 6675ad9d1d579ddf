"""A worker that does as it is told, whose every token is known beforehand."""

import asyncio

from splitwise.engine.sampling import Sample
from splitwise.protocol.generation import FinishReason
from splitwise.protocol.messages import (
    MachineStatus,
    Output,
    Outputs,
    PromptsStarted,
    RunPrompt,
    TaskSpec,
    ToWorker,
)
from splitwise.protocol.wire import Wire
from splitwise.scheduling.silence import BEAT_PERIOD_S


def expected(position: int) -> int:
    return position * 7 % 90


class GoodWorker:
    """Runs what it is told, a token a turn of the loop."""

    def __init__(self, wire: Wire[ToWorker]) -> None:
        self._wire = wire
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        beat = asyncio.create_task(self._beat())
        self._tasks.add(beat)
        while True:
            message = await self._wire.receive()
            if isinstance(message, RunPrompt):
                assert message.target is None
                task = asyncio.create_task(self._generate(message.spec))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    async def _beat(self) -> None:
        while True:
            self._wire.send(MachineStatus(0, 64, 0, 0))
            await asyncio.sleep(BEAT_PERIOD_S)

    async def _generate(self, spec: TaskSpec) -> None:
        self._wire.send(PromptsStarted([spec.task]))
        for position in range(len(spec.history), spec.max_history_tokens):
            is_last = position == spec.max_history_tokens - 1
            finish = FinishReason.LENGTH if is_last else None
            self._wire.send(
                Outputs([Output(spec.task, position, Sample(expected(position)), finish)])
            )
            await asyncio.sleep(0.001)
