"""A machine whose engine schedules itself: vLLM, followed task by task.

The life of a task here (states: ``TaskState``), all on the thread that steps vLLM:

1. ``RunPrompt`` puts it into ``_prompts`` (producer: the cluster scheduler, consumer:
   ``_enter_prompts``): QUEUED. It enters vLLM at once, but for a task that is to be ``alone``.
2. vLLM has it in a step: PROMPT. Its first token goes out at once. With a target vLLM is done with
   it, and it is SENDING until the transfer says ``Sent``; without one it is RUNNING.
3. ``Expect`` enters vLLM, which has its blocks expected as soon as it has some: EXPECTED.
4. ``Arrived``: RUNNING, one token a step.
5. A stop token, the length, a cancel, a failure or vLLM's preemption ends it. A task that was
   preempted is dropped, and computed again where the cluster scheduler sees fit. Where a transfer
   may still touch its blocks it waits as RELEASING for the transfer's word.

A step that fails ends the machine: what vLLM has in its hands then cannot be trusted.
"""

import logging
import time
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Final

import msgspec

from splitwise.engine.sampling import Sample
from splitwise.engine.vllm.core import NO_TOKEN_YET, VllmCore
from splitwise.protocol.generation import FinishReason
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
from splitwise.scheduling.policies.policy import DEFAULT
from splitwise.transfer import Arrived, Cancelled, Failed, Released, Sent
from splitwise.transfer.events import ReceiverEvent, SenderEvent
from splitwise.worker.ends import open_ends
from splitwise.worker.fitness import unfit_reason
from splitwise.worker.options import WorkerOptions
from splitwise.worker.own_thread import OwnThread
from splitwise.worker.runner import Command, MachineFacts, MachineRunner, OpenRunner, Say
from splitwise.worker.task import Task, TaskState
from splitwise.worker.trial import EngineFailed

if TYPE_CHECKING:
    from vllm.v1.engine import EngineCoreOutput

log = logging.getLogger(__name__)

IDLE_S: Final = 0.05
"""How long to wait for news where vLLM has requests but none that it could run."""
ASK_S: Final = 0.001
"""The same where ranks in processes of their own have to be asked for news."""
RELEASE_LIMIT_S: Final = 30.0
"""How long the transfers of a session that ends may take to let go."""


class VllmMachine(MachineRunner):
    """The tasks of one machine, and the vLLM that runs them."""

    def __init__(self, core: VllmCore, options: WorkerOptions, say: Say) -> None:
        """
        Raises:
            WorkerError: caches cannot be taken in at the address that ``options`` give.
            TlsError: a file of ``options.tls`` cannot be used.
        """
        self._core = core
        self._side = core.scheduler_side
        self._side.one_piece_below_tokens = options.limits.one_piece_below_tokens
        self._say = say
        self._thread: OwnThread[Command] = OwnThread(options.cores)
        self._tasks: dict[str, Task] = {}
        self._prompts: deque[Task] = deque()
        self._arrivals = 0
        self._steps = 0
        self._preemptions = 0
        self._is_broken = False
        """A step has failed: no other is to be tried."""
        self._leaving: set[int] = set()
        """Tasks that had ended but for their transfer at the last status."""
        of_rank = partial(open_ends, msgspec.structs.replace(options, policy=DEFAULT))
        addresses = core.ranks.open(of_rank, self._thread.wake)
        usable = msgspec.structs.replace(core.layout, blocks=core.total_blocks)
        self.facts = MachineFacts(core.model, usable, addresses, core.max_decodes)

    async def run(self) -> None:
        await self._thread.run(self._iterate)

    def take(self, command: Command) -> None:
        if isinstance(command, Cancel):
            self._core.note_abort(str(command.task))
        self._thread.put(command)

    def status(self) -> MachineStatus:
        leaving = {
            task.id: self._side.blocks_of(request_id)
            for request_id, task in tuple(self._tasks.items())
            if task.is_leaving
        }
        before, self._leaving = self._leaving, set(leaving)
        running, waiting = self._core.counts
        return MachineStatus(
            used_blocks=self._core.total_blocks - self._core.free_blocks,
            total_blocks=self._core.total_blocks,
            running_requests=running,
            waiting_requests=waiting + len(self._prompts),
            leaving_blocks={task: leaving[task] for task in before & self._leaving},
            steps=(self._steps + self._core.ranks.steps) % 2**31,
            prefix_queries_tokens=self._core.prefix_queries_tokens,
            prefix_hits_tokens=self._core.prefix_hits_tokens,
            preemptions=self._preemptions,
        )

    async def close(self) -> None:
        self._core.ranks.close()
        self._step_until_idle(0.0)  # each transfer has its word now: vLLM is to hear them
        self._core.forget_aborts()  # another session may have tasks of the same numbers
        self._side.clear()

    # vLLM's thread.

    def _iterate(self) -> None:
        try:
            while not self._thread.is_stopping:
                self._thread.take_in(self._handle, self._patience_s(gets_on=self._step()))
        finally:
            self._drop_all()

    def _patience_s(self, gets_on: bool) -> float | None:
        """How long to wait for the inbox: not at all while vLLM gets on, for ever where only a
        command can bring work."""
        if gets_on or self._side.has_orders:
            return 0.0
        if not self._core.has_requests:
            return None
        return IDLE_S if self._core.ranks.can_wake else ASK_S

    def _step(self) -> bool:
        """Let vLLM do a step; whether anything was computed, or can be now that a cache has come.

        Raises:
            EngineFailed: it cannot.
        """
        self._enter_prompts()
        if not self._core.has_requests:
            return False
        try:
            outputs, computed = self._core.step()
        except Exception as error:
            log.exception("a step of vLLM's failed")
            self._is_broken = True
            self._fail_all(f"engine failed: {type(error).__name__}: {error}")
            raise EngineFailed(f"vLLM failed ({error}); this worker ends: start it again") from None
        self._steps += computed
        has_news = bool(self._side.ended)
        self._follow(outputs)
        return computed or has_news

    def _drop_all(self) -> None:
        """Have vLLM drop every task, and wait until the transfers have let go of their blocks. What
        still comes in is not looked at."""
        if self._is_broken:
            return
        self._core.abort(list(self._tasks))
        for request_id in self._tasks:
            self._side.stop(request_id)
        self._step_until_idle(IDLE_S)

    def _step_until_idle(self, patience_s: float) -> None:
        """Until vLLM has no request any more, or for too long; ``patience_s`` between steps without
        orders."""
        give_up_s = time.monotonic() + RELEASE_LIMIT_S
        while self._core.has_requests and not self._is_broken:
            if time.monotonic() > give_up_s:
                log.warning("vLLM holds on to requests of a session that is over")
                return
            self._core.step()
            if patience_s and not self._side.has_orders:
                self._thread.take_in(lambda _: None, patience_s)

    # Commands.

    def _handle(self, command: Command) -> None:
        match command:
            case RunPrompt(spec=spec, target=target):
                if self._is_fit(spec, len(target or [None]), next_tokens=not target):
                    task = self._admit(Task(spec, TaskState.QUEUED, self._arrivals, target=target))
                    self._prompts.append(task)
            case Expect(spec=spec, source_id=source_id, source_ranks=ranks):
                if self._is_fit(spec, ranks, next_tokens=1):
                    task = self._admit(Task(spec, TaskState.EXPECTED, self._arrivals))
                    tokens = len(spec.history)
                    self._side.will_pull(task.transfer_id, source_id, ranks, tokens)
                    self._enter(task, spec.max_history_tokens - tokens - 1, NO_TOKEN_YET)
            case Cancel(task=task_id):
                self._drop_if_here(str(task_id))

    def _is_fit(self, spec: TaskSpec, other_ranks: int, next_tokens: int) -> bool:
        """Whether the task can run, with so many tokens here after its history; if not, the cluster
        scheduler is told. What does not fit vLLM would let wait for ever."""
        reason = unfit_reason(spec, other_ranks, self._core.model, self._core.layout)
        tokens = len(spec.history) + next_tokens
        if self._core.layout.blocks_for(tokens) > self._core.total_blocks:
            reason = f"{tokens} tokens in a cache of {self._core.total_blocks} blocks"
        if str(spec.task) in self._tasks:
            reason = "a task of that number is here already"
        if reason is None:
            return True
        log.warning("task %d is refused: %s", spec.task, reason)
        self._say(TaskFailed(spec.task, reason, in_transfer=False))
        return False

    def _admit(self, task: Task) -> Task:
        self._arrivals += 1
        self._tasks[task.transfer_id] = task
        return task

    def _enter_prompts(self) -> None:
        """Give vLLM the prompts that wait. One that is to be alone waits until no other is under
        way, and the others wait for it."""
        while self._prompts:
            under_way = [t for t in self._tasks.values() if t.state is TaskState.PROMPT]
            task = self._prompts[0]
            if under_way and (task.spec.alone or under_way[0].spec.alone):
                return
            self._prompts.popleft()
            task.state = TaskState.PROMPT
            spec, tokens = task.spec, len(task.history)
            if task.target is not None:
                most = spec.max_history_tokens
                self._side.will_push(task.transfer_id, task.target, tokens, most)
            self._enter(task, 1 if task.target else spec.max_history_tokens - tokens)

    def _enter(self, task: Task, most_new_tokens: int, *then: int) -> None:
        """Give vLLM a task, whose tokens are its history and ``then``."""
        spec = task.spec
        self._core.add(
            task.transfer_id,
            [*task.history, *then],
            spec.prompt_tokens,
            max(1, most_new_tokens),
            spec.sampling,
            spec.stop_token_ids,
            spec.priority,
            spec.number,
        )

    def _drop(self, task: Task) -> None:
        """The task has ended, here at least; vLLM is to know, and its transfer if there is one."""
        if task.state is TaskState.QUEUED:
            self._prompts.remove(task)
        self._core.abort([task.transfer_id])
        self._side.stop(task.transfer_id)
        if self._side.is_moving(task.transfer_id):
            task.state = TaskState.RELEASING
        else:
            self._forget(task)

    def _drop_if_here(self, request_id: str) -> None:
        if (task := self._tasks.get(request_id)) is not None:
            self._drop(task)

    def _forget(self, task: Task) -> None:
        self._side.forget(task.transfer_id)
        del self._tasks[task.transfer_id]

    # What a step brought.

    def _follow(self, outputs: "Sequence[EngineCoreOutput]") -> None:
        self._tell_started()
        self._take_outputs(outputs)
        preempted, self._side.preempted = self._side.preempted, []
        self._preemptions += len(preempted)
        for request_id in preempted:
            self._on_preempted(request_id)
        ended, self._side.ended = self._side.ended, []
        for request_id, event in ended:
            self._on_transfer(self._tasks[request_id], event)

    def _tell_started(self) -> None:
        started, self._side.started = self._side.started, []
        tasks = [self._tasks[request_id] for request_id in started if request_id in self._tasks]
        prompts = [task.id for task in tasks if task.state is TaskState.PROMPT]
        if prompts:
            self._say(PromptsStarted(prompts))

    def _take_outputs(self, outputs: "Sequence[EngineCoreOutput]") -> None:
        said: list[Output] = []
        for output in outputs:
            task = self._tasks.get(output.request_id)
            if task is None or task.state is TaskState.RELEASING:
                continue
            if not output.new_token_ids:
                self._on_given_up(task)
                continue
            position, sample = len(task.history), _sample(output)
            finish = task.append(sample.token)
            said.append(Output(task.id, position, sample, finish))
            self._advance(task, finish)
        if said:
            self._say(Outputs(said))

    def _advance(self, task: Task, finish: FinishReason | None) -> None:
        """A task has a new token."""
        if finish is not None:
            self._drop(task)
        elif task.state is TaskState.PROMPT:
            task.state = TaskState.SENDING if task.target is not None else TaskState.RUNNING

    def _on_given_up(self, task: Task) -> None:
        """vLLM has ended a task without a token. Where a cache failed to come the transfer says
        so."""
        if task.state is not TaskState.EXPECTED:
            self._say(TaskFailed(task.id, "vLLM gave it up", in_transfer=False))
            self._drop(task)

    def _on_transfer(self, task: Task, event: SenderEvent | ReceiverEvent) -> None:
        match event:
            case Arrived(stats=stats):
                self._say(Transferred(task.id, stats))
                if task.state is TaskState.EXPECTED:
                    task.append(self._side.first_tokens.pop(task.transfer_id))
                    task.state = TaskState.RUNNING
                    return
            case Failed(reason=reason) if task.state is not TaskState.RELEASING:
                self._say(TaskFailed(task.id, reason, in_transfer=True))
                self._core.abort([task.transfer_id])
            case Sent() | Cancelled() | Released() | Failed():
                pass
        self._forget(task)

    def _on_preempted(self, request_id: str) -> None:
        task = self._tasks.get(request_id)
        if task is None or task.state is TaskState.RELEASING:
            return
        self._say(Preempted(task.id))
        self._drop(task)

    def _fail_all(self, reason: str) -> None:
        in_company = len(self._tasks) > 1
        for task in self._tasks.values():
            if not task.is_leaving:
                self._say(TaskFailed(task.id, reason, in_transfer=False, in_company=in_company))


def _sample(output: "EngineCoreOutput") -> Sample:
    """The one token of a step's output, as we report it."""
    [token] = output.new_token_ids
    if output.new_logprobs is None:
        return Sample(token)
    [ids], [logprobs] = output.new_logprobs.logprob_token_ids, output.new_logprobs.logprobs
    pairs = list(zip(ids.tolist(), logprobs.tolist(), strict=True))
    return Sample(token, pairs[0][1], pairs[1:])


def opens_vllm(core: VllmCore, options: WorkerOptions) -> OpenRunner:
    """Opens a machine over ``core``, which outlives the sessions, for each of them."""

    async def open_runner(say: Say) -> MachineRunner:
        return VllmMachine(core, options, say)

    return open_runner
