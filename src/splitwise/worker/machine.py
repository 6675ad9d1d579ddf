"""The machine-level scheduler: one machine's queues, blocks and iterations.

The life of a task here (states: ``TaskState``):

1. ``RunPrompt`` puts it into ``_prompts`` (producer: the cluster scheduler, consumer:
   ``_start_prompts``): QUEUED.
2. ``_start_prompts`` gives it blocks and a place in the next iteration: PROMPT. A task with a
   target begins its transfer (``departures``), layer by layer as the iteration goes on, or in one
   piece after the last layer. Prompts that are ``alike`` are computed once.
3. The iteration gives its first token, which goes out at once. With a target it is SENDING until
   the transfer says ``Sent``; without one it joins ``_running``: RUNNING.
4. ``Expect`` puts it into ``_newcomers`` (consumer: ``_reserve``): UNRESERVED. With blocks
   reserved and promised to the prompt machine it is EXPECTED.
5. ``Arrived`` moves it into ``_running``: RUNNING, one token an iteration, but for those that
   prompts preempt (``seating``).
6. A stop token, the length, a cancel, a failure or a preemption ends it. An iteration that fails
   ends its prompts; decodes keep their caches and are tried again (``isolation``). Once the device
   has passed what such an iteration had queued ``_free`` gives the blocks back, once; where a
   transfer might still touch them the task waits as RELEASING for the transfer's word. A transfer
   that was begun or expected gives exactly one such word.

Everything runs on one thread, the engine's. ``handle`` and ``iterate`` are called in turn.
"""

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence

import msgspec

from splitwise.engine.base import Engine, LayerCallback
from splitwise.engine.blocks import BlockPool
from splitwise.engine.sampling import Sample
from splitwise.protocol.messages import (
    Cancel,
    Expect,
    MachineStatus,
    Output,
    Outputs,
    Preempted,
    PromptsStarted,
    RunPrompt,
    TaskFailed,
    TaskSpec,
    Transferred,
)
from splitwise.scheduling import batching
from splitwise.scheduling.policies.policy import DEFAULT, Policy
from splitwise.transfer import (
    Arrived,
    Cancelled,
    Failed,
    MachineReceiver,
    MachineSender,
    ReceiverAddress,
    Released,
    Sent,
)
from splitwise.worker.asking import Asking
from splitwise.worker.composing import Composing
from splitwise.worker.departures import Departures
from splitwise.worker.fitness import unfit_reason
from splitwise.worker.runner import Command
from splitwise.worker.seating import Seating
from splitwise.worker.task import Task, TaskState
from splitwise.worker.trial import EngineFailed, Trials, try_engine
from splitwise.worker.victims import Victims

log = logging.getLogger(__name__)

TransferEvent = Arrived | Released | Sent | Cancelled | Failed


class MachineLimits(msgspec.Struct, frozen=True):
    """Bounds of an iteration and the form of a transfer."""

    prompt_batch_tokens: int = batching.PROMPT_BATCH_TOKENS
    batch_requests: int = batching.BATCH_REQUESTS
    max_preemptions: int = batching.MAX_PREEMPTIONS
    one_piece_below_tokens: int = 512
    """Shorter prompts are transferred in one go (Splitwise, section IV.D)."""
    put_bytes: int = 4 << 20
    """Layers are handed to the transfer together until they make up this much: waking its thread
    for every small layer costs the prompt more than it gains."""

    @property
    def max_decodes(self) -> int:
        """Requests that all have a place in an iteration without prompts."""
        return batching.max_decodes(self.batch_requests, self.prompt_batch_tokens)


class _Abandoned(Exception):
    """Every request of the running iteration was cancelled meanwhile."""


class Machine:
    """The tasks of one machine, and the engine that runs them."""

    def __init__(
        self,
        engine: Engine,
        sender: MachineSender,
        receiver: MachineReceiver,
        emit: Callable[[msgspec.Struct], None],
        limits: MachineLimits,
        policy: Policy = DEFAULT,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``emit`` takes messages for the cluster scheduler; ``clock`` says seconds."""
        self._engine = engine
        self._departures = Departures(
            sender, engine.layout, limits.one_piece_below_tokens, limits.put_bytes
        )
        self._receiver = receiver
        self._emit = emit
        self._clock = clock
        asking = Asking(policy)
        self._seating = Seating(
            limits.batch_requests,
            limits.prompt_batch_tokens,
            limits.max_preemptions,
            self._composing(asking, limits) if asking.is_own("compose") else None,
        )
        self._victims = Victims(asking, engine.layout)
        self._pool = BlockPool(engine.layout.blocks)
        self._tasks: dict[int, Task] = {}
        self._prompts: deque[Task] = deque()
        self._newcomers: deque[Task] = deque()
        self._running: list[Task] = []
        self._trials = Trials()
        self._arrivals = 0
        self._came_s: dict[int, float] = {}
        """When each prompt came that is still in the inbox."""
        self._cancelled: set[int] = set()
        self._leaving: set[int] = set()
        """Tasks that had ended but for their transfer at the last status."""
        self._steps = 0

    def _composing(self, asking: Asking, limits: MachineLimits) -> Composing:
        return Composing(
            asking,
            limits.batch_requests,
            limits.prompt_batch_tokens,
            self._engine.layout.block_tokens,
            self._clock,
        )

    # What may be called from another thread: a dict's or a set's update and reads of plain counts.

    def note_prompt(self, task_id: int) -> None:
        """A ``RunPrompt`` comes into the inbox: its time in line begins."""
        self._came_s[task_id] = self._clock()

    def note_cancel(self, task_id: int) -> None:
        """Tell a running iteration of a cancel whose ``Cancel`` is still in the inbox."""
        self._cancelled.add(task_id)

    def status(self) -> MachineStatus:
        leaving = {
            task.id: len(task.blocks) for task in tuple(self._tasks.values()) if task.is_leaving
        }
        before, self._leaving = self._leaving, set(leaving)
        return MachineStatus(
            used_blocks=self._pool.total - self._pool.free_count,
            total_blocks=self._pool.total,
            running_requests=len(self._running),
            waiting_requests=len(self._prompts) + len(self._newcomers),
            leaving_blocks={task: leaving[task] for task in before & self._leaving},
            steps=self._steps % 2**31,
        )

    # Commands and events.

    def handle(self, message: Command | TransferEvent) -> None:
        """Take in what the cluster scheduler or a transfer has to say."""
        match message:
            case RunPrompt(spec=spec, target=target):
                came_s = self._came_s.pop(spec.task, self._clock())
                if self._is_fit(spec, len(target or [None])):
                    task = self._admit(spec, TaskState.QUEUED, target=target)
                    task.came_s = came_s
                    self._prompts.append(task)
            case Expect(spec=spec, source_id=source_id, source_ranks=ranks):
                if self._is_fit(spec, ranks):
                    state = TaskState.UNRESERVED
                    task = self._admit(spec, state, source_id=source_id, source_ranks=ranks)
                    self._newcomers.append(task)
                    self._reserve()
            case Cancel(task=task_id):
                self._cancel(task_id)
            case Arrived():
                self._on_arrived(message)
            case Failed(transfer_id=transfer_id, reason=reason):
                self._on_failed(int(transfer_id), reason)
            case Sent() | Cancelled() | Released():
                self._free(self._tasks[int(message.transfer_id)])

    def _is_fit(self, spec: TaskSpec, other_ranks: int) -> bool:
        """Whether the task can run; if not, the cluster scheduler is told."""
        reason = unfit_reason(spec, other_ranks, self._engine.model, self._engine.layout)
        if spec.task in self._tasks:
            reason = "a task of that number is here already"
        if reason is None:
            return True
        log.warning("task %d is refused: %s", spec.task, reason)
        self._emit(TaskFailed(spec.task, reason, in_transfer=False))
        return False

    def _admit(
        self,
        spec: TaskSpec,
        state: TaskState,
        target: list[ReceiverAddress] | None = None,
        source_id: str | None = None,
        source_ranks: int = 1,
    ) -> Task:
        self._arrivals += 1
        task = Task(spec, state, self._arrivals, target, source_id, source_ranks)
        self._tasks[task.id] = task
        return task

    def _on_arrived(self, event: Arrived) -> None:
        task = self._tasks[int(event.transfer_id)]
        self._emit(Transferred(task.id, event.stats))
        if task.state is TaskState.RELEASING:  # Cancelled while it came in.
            self._free(task)
            return
        token = self._first_token(event.payload)
        if token is None:
            log.warning("task %d came with %r for its first token", task.id, event.payload[:40])
            self._emit(TaskFailed(task.id, "its first token came garbled", in_transfer=True))
            self._free(task)
            return
        task.append(token)
        task.state = TaskState.RUNNING
        self._running.append(task)

    def _first_token(self, payload: bytes) -> int | None:
        """What the prompt machine signalled; None if it is no token."""
        try:
            token: int = msgspec.msgpack.decode(payload, type=int)
        except msgspec.MsgspecError:
            return None
        return token if 0 <= token < self._engine.model.vocab_size else None

    def _on_failed(self, task_id: int, reason: str) -> None:
        task = self._tasks[task_id]
        if task.state is not TaskState.RELEASING:
            self._emit(TaskFailed(task_id, reason, in_transfer=True))
        self._free(task)

    def _cancel(self, task_id: int) -> None:
        self._cancelled.discard(task_id)
        task = self._tasks.get(task_id)
        if task is None:
            return
        match task.state:
            case TaskState.QUEUED:
                self._prompts.remove(task)
            case TaskState.UNRESERVED:
                self._newcomers.remove(task)
            case TaskState.RUNNING:
                self._running.remove(task)
            case TaskState.PROMPT | TaskState.SENDING if task.is_sending:
                task.state = TaskState.RELEASING
                self._departures.cancel(task)
                return
            case TaskState.EXPECTED:
                task.state = TaskState.RELEASING
                self._receiver.cancel(task.transfer_id)
                return
            case TaskState.RELEASING:
                return
        self._free(task)

    def _free(self, task: Task) -> None:
        """The one place where a task ends and its blocks come back."""
        del self._tasks[task.id]
        self._pool.free(task.blocks)
        self._reserve()

    # Memory.

    def _reserve(self) -> None:
        """Promise blocks to the tasks that wait for them, first come, first served."""
        while self._newcomers:
            task = self._newcomers[0]
            needed = self._engine.layout.blocks_for(len(task.history))
            if not batching.may_reserve(needed, self._pool.free_count, len(self._running)):
                return
            self._newcomers.popleft()
            self._take_blocks(task, needed)
            task.state = TaskState.EXPECTED
            assert task.source_id is not None
            self._receiver.expect(task.transfer_id, task.source_id, task.source_ranks, task.blocks)

    def _take_blocks(self, task: Task, count: int) -> None:
        blocks = self._pool.allocate(count)
        assert blocks is not None, "the caller looked at free_count"
        task.blocks.extend(blocks)

    def _grow(self) -> None:
        """Give every running task room for its next token, preempting as many as it takes."""
        blocks_for = self._engine.layout.blocks_for
        full = [task for task in self._running if blocks_for(len(task.history)) > len(task.blocks)]
        if len(full) > self._pool.free_count:
            for victim in self._victims.for_growth(self._running, self._pool.free_count):
                self._preempt(victim)
            full = [task for task in full if task.state is TaskState.RUNNING]
        for task in full:
            self._take_blocks(task, 1)

    def _preempt(self, victim: Task) -> None:
        # Not _free: the block is for a running task, not for a newcomer.
        self._running.remove(victim)
        victim.state = TaskState.RELEASING
        del self._tasks[victim.id]
        self._pool.free(victim.blocks)
        self._emit(Preempted(victim.id))

    # Iterations.

    def iterate(self) -> bool:
        """Run one iteration; False if there was nothing that could run.

        Raises:
            EngineFailed: the engine cannot run anything any more.
        """
        self._grow()
        decodes = self._trials.next(self._is_here)
        prompts = [] if decodes else self._start_prompts()
        decodes = decodes or self._seating.decodes(self._running, prompts)
        batch = [*prompts, *decodes]
        if not batch:
            return False
        self._seating.began(are_left_out=bool(self._prompts) and not prompts)
        try:
            samples = self._step(prompts, decodes)
        except _Abandoned:
            for task in prompts:
                self._cancel(task.id)
            return True
        except Exception as error:
            log.exception("iteration of %d requests failed", len(batch))
            # Its words alone: the error holds on to all that the iteration had in memory.
            failure = f"{type(error).__name__}: {error}"
        else:
            self._steps += 1
            self._finish_iteration(batch, samples)
            return True
        self._isolate(prompts, decodes, failure)
        return True

    def _is_here(self, task: Task) -> bool:
        """Whether the task has not been cancelled or preempted meanwhile."""
        return self._tasks.get(task.id) is task

    def _start_prompts(self) -> list[Task]:
        """Move the prompts of the next iteration out of the queue and give them blocks."""
        if not self._prompts:
            return []
        self._running, aged = self._seating.order(self._running)
        head = self._seating.company(self._prompts, aged)
        needed = [self._engine.layout.blocks_for(len(task.history)) for task in head]
        free = self._pool.free_count - len(self._running)
        count = self._seating.count_prompts(head, self._running, needed, free, aged)
        started = [self._prompts.popleft() for _ in range(count)]
        for task, blocks in zip(started, needed, strict=False):
            self._take_blocks(task, blocks)
            task.state = TaskState.PROMPT
            self._departures.enter(task)
        if started:
            self._emit(PromptsStarted([task.id for task in started]))
        return started

    def _step(self, prompts: Sequence[Task], decodes: Sequence[Task]) -> list[Sample]:
        works = [task.prompt_work() for task in prompts]
        works += [task.token_work() for task in decodes]
        on_layer = self._layer_callback([*prompts, *decodes]) if prompts else None
        try:
            samples = self._engine.step(works, on_layer)
        except BaseException:
            # What it has queued still writes into blocks that others are about to get.
            self._engine.synchronise()
            raise
        return [sample for sample in samples if sample is not None]

    def _layer_callback(self, batch: list[Task]) -> LayerCallback:
        """Hands finished layers to the transfer, and gives up a batch that nobody wants."""
        ids = {task.id for task in batch}
        hand_over = self._departures.hand_over(batch)

        def on_layer(layer: int) -> None:
            self._steps += 1
            if self._cancelled >= ids:
                raise _Abandoned
            hand_over(layer)

        return on_layer

    def _finish_iteration(self, batch: list[Task], samples: list[Sample]) -> None:
        outputs = [
            Output(task.id, len(task.history), sample, task.append(sample.token))
            for task, sample in zip(batch, samples, strict=True)
        ]
        self._emit(Outputs(outputs))
        for task, output in zip(batch, outputs, strict=True):
            if output.finish is not None:
                self._cancel(task.id)
            elif task.state is TaskState.PROMPT:
                self._leave_prompt_phase(task)

    def _leave_prompt_phase(self, task: Task) -> None:
        if task.target is None:
            task.state = TaskState.RUNNING
            self._running.append(task)
            return
        task.state = TaskState.SENDING
        self._departures.finish(task)

    # An iteration that failed.

    def _isolate(self, prompts: Sequence[Task], decodes: Sequence[Task], failure: str) -> None:
        """Find out what an iteration failed of, by steps (``scheduling.isolation``).

        Raises:
            EngineFailed: it is the engine.
        """
        reason = f"engine failed: {failure}"
        in_company = len(prompts) + len(decodes) > 1
        try:
            self._try_engine(prompts, failure)
        except EngineFailed:
            self._fail([*prompts, *decodes], reason, in_company)
            raise
        self._fail(self._trials.after(prompts, decodes), reason, in_company)

    def _try_engine(self, prompts: Sequence[Task], failure: str) -> None:
        if prompts:  # they are given up, and their caches with them
            try_engine(self._engine, prompts[0].blocks[0], failure)
            return
        if self._pool.free_count == 0:
            self._preempt(self._victims.for_block(self._running))
        [block] = self._pool.allocate(1) or []
        try:
            try_engine(self._engine, block, failure)
        finally:
            self._pool.free([block])

    def _fail(self, tasks: Sequence[Task], reason: str, in_company: bool) -> None:
        for task in tasks:
            if self._is_here(task):
                self._emit(TaskFailed(task.id, reason, in_transfer=False, in_company=in_company))
                self._cancel(task.id)
