"""A task on a machine: one attempt at a request, in one or both of its phases."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property

from splitwise.engine.base import Work
from splitwise.protocol.generation import FinishReason
from splitwise.protocol.messages import TaskSpec
from splitwise.transfer import ReceiverAddress


class TaskState(Enum):
    """Where a task stands on this machine; ``machine`` makes every transition."""

    QUEUED = auto()
    """Prompt machine: waits for a prompt batch. Holds no blocks."""
    PROMPT = auto()
    """Prompt machine: in the present iteration."""
    SENDING = auto()
    """Prompt machine: first token is out, the cache is leaving."""
    UNRESERVED = auto()
    """Token machine: waits for blocks."""
    EXPECTED = auto()
    """Token machine: blocks are promised to the prompt machine."""
    RUNNING = auto()
    """Token phase: one token an iteration."""
    RELEASING = auto()
    """Dropped, but a transfer may still touch its blocks."""


@dataclass(eq=False)
class Task:
    """``arrival`` numbers tasks in the order in which this machine met them."""

    spec: TaskSpec
    state: TaskState
    arrival: int
    target: list[ReceiverAddress] | None = None
    source_id: str | None = None
    source_ranks: int = 1
    blocks: list[int] = field(default_factory=list)
    came_s: float = 0.0
    """When its prompt came to this machine."""
    is_sending: bool = False
    """Whether its transfer was begun."""
    has_place: bool = False
    """Whether it has been in an iteration of the token phase."""
    skips: int = 0
    """Iterations in a row that it was left out of since."""
    like: int | None = None
    """The place of the prompt in its iteration that it is ``alike``."""

    @property
    def id(self) -> int:
        return self.spec.task

    @property
    def transfer_id(self) -> str:
        return str(self.spec.task)

    @property
    def rank(self) -> tuple[int, int, int]:
        """Whose memory is taken last: the lowest priority number's, then the oldest request's."""
        return self.spec.priority, self.spec.number, self.arrival

    @property
    def is_leaving(self) -> bool:
        """Whether nothing but a transfer still needs its blocks."""
        return self.state in (TaskState.SENDING, TaskState.RELEASING)

    @property
    def history(self) -> list[int]:
        """Prompt and output so far."""
        return self.spec.history

    @cached_property
    def prompt_key(self) -> int:
        """The same for prompts of the same tokens; to be asked for before any is added."""
        return hash(tuple(self.history))

    @property
    def computed_tokens(self) -> int:
        """The tokens of its prompt that an iteration computes: none where another is like it."""
        return len(self.history) if self.like is None else 0

    def prompt_work(self) -> Work:
        """The whole history in one pass, or with that of the entry that it is like."""
        return self._work(self.history, start=0, like=self.like)

    def token_work(self) -> Work:
        """The newest token, whose keys and values are not in the cache yet."""
        return self._work(self.history[-1:], start=len(self.history) - 1)

    def append(self, token: int) -> FinishReason | None:
        """Take a new token in; says whether it ends the request, and why."""
        self.history.append(token)
        if token in self.spec.stop_token_ids:
            return FinishReason.STOP
        if len(self.history) >= self.spec.max_history_tokens:
            return FinishReason.LENGTH
        return None

    def _work(self, tokens: list[int], start: int, like: int | None = None) -> Work:
        return Work(
            tokens=tokens,
            start=start,
            blocks=self.blocks,
            sampling=self.spec.sampling,
            history=self.history,
            prompt_tokens=self.spec.prompt_tokens,
            like=like,
        )


def alike(tasks: Sequence[Task]) -> list[int | None]:
    """For each prompt the place of the first one before it that has the same tokens, as those have
    that are answered several times (``n``); None where there is none."""
    first: dict[int, int] = {}
    places = [first.setdefault(task.prompt_key, place) for place, task in enumerate(tasks)]
    return [
        like if like < place and tasks[like].history == tasks[place].history else None
        for place, like in enumerate(places)
    ]
