"""A request as the cluster scheduler sees it, and the stream its client reads."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

from splitwise.engine.sampling import Sample
from splitwise.protocol.generation import Chunk, FinishReason, GenerationRequest
from splitwise.protocol.messages import Output
from splitwise.scheduling.isolation import NO_FAILURES, FailureCount
from splitwise.scheduling.ranking import NOBODY


class RequestState(Enum):
    """Where a request stands: ``attempts`` makes the transitions to PROMPT and TOKEN, ``scheduler``
    those to WAITING and ENDED."""

    WAITING = auto()
    """No machine has room; held at the cluster scheduler."""
    PROMPT = auto()
    """Sent to its machines; the first token of this attempt is not out."""
    TOKEN = auto()
    """The first token of this attempt is out."""
    ENDED = auto()


@dataclass(slots=True)
class Charge:
    """What a request adds to the loads of one machine; ``ledger`` writes it."""

    machine: int = NOBODY
    pending_tokens: int = 0
    waiting: int = 0
    kv_tokens: int = 0
    decodes: int = 0


@dataclass(eq=False)
class LiveRequest:
    """One request from submission to its end, over all its attempts.

    Tokens of an attempt may come from two machines and overtake each other on the way; they are
    delivered in the order of their positions.
    """

    request: GenerationRequest
    on_cancel: Callable[["LiveRequest"], None]
    number: int
    """In order of arrival."""
    submitted_s: float
    waiting_since_s: float
    """When this attempt began to wait for a machine; a retry waits anew."""
    state: RequestState = RequestState.WAITING
    was_started: bool = False
    """Whether it ever had machines."""
    history: list[int] = field(init=False)
    task: int = -1
    attempts: int = 0
    """How often it had machines."""
    failure_count: FailureCount = NO_FAILURES
    avoid: frozenset[int] = frozenset()
    """Machines that failed it in these attempts."""
    moved_s: float = 0.0
    """When this attempt began, or was heard of last."""
    is_alone: bool = False
    """Whether this attempt's prompt has an iteration of its own."""
    _attempt_from: int = 0
    at_prompt: Charge = field(default_factory=Charge)
    at_token: Charge = field(default_factory=Charge)
    _early: dict[int, Output] = field(default_factory=dict)
    _samples: list[Sample] = field(default_factory=list)
    _finish: FinishReason | None = None
    _error: Exception | None = None
    _reader: "asyncio.Future[None] | None" = None

    def __post_init__(self) -> None:
        self.history = list(self.request.prompt)
        self._attempt_from = len(self.history)

    # What ``fair_queue`` goes by.

    @property
    def client(self) -> str:
        return self.request.client

    @property
    def priority(self) -> int:
        return self.request.priority

    @property
    def prompt_tokens(self) -> int:
        return len(self.request.prompt)

    # Where it stands.

    @property
    def prompt_machine(self) -> int:
        return self.at_prompt.machine

    @property
    def token_machine(self) -> int:
        return self.at_token.machine

    @property
    def is_at_prompt(self) -> bool:
        """Whether its prompt is known to be in an iteration."""
        return self.state is RequestState.PROMPT and self.at_prompt.waiting == 0

    @property
    def owing(self) -> int:
        """The machine that has the next word; NOBODY while the cache is on its way."""
        if self.state is RequestState.PROMPT:
            return self.prompt_machine
        is_there = self.prompt_machine == self.token_machine or self.at_prompt.kv_tokens == 0
        return self.token_machine if is_there else NOBODY

    def needs(self, machine: int) -> bool:
        """Whether its attempt cannot go on without that machine: the token machine, or the prompt
        machine until the first token is out and the cache is known to have arrived."""
        if machine == self.token_machine:
            return True
        is_left = self.state is RequestState.TOKEN and self.at_prompt.kv_tokens == 0
        return machine == self.prompt_machine and not is_left

    def has_cache_on(self, machine: int) -> bool:
        """Whether it is charged for cache there."""
        charges = (self.at_prompt, self.at_token)
        return any(charge.machine == machine and charge.kv_tokens for charge in charges)

    @property
    def max_history_tokens(self) -> int:
        return len(self.request.prompt) + self.request.max_tokens

    @property
    def failures(self) -> int:
        """Failed attempts in a row that it is charged for."""
        return self.failure_count.charged

    # The cluster scheduler's side.

    def accept(self, output: Output) -> int:
        """Take a token in, and those after it that came early; returns how many were delivered."""
        self._early[output.position] = output
        delivered = 0
        while not self.is_finished and len(self.history) in self._early:
            following = self._early.pop(len(self.history))
            self.history.append(following.sample.token)
            self._samples.append(following.sample)
            self._finish = following.finish
            delivered += 1
        if delivered:
            self._wake()
        return delivered

    @property
    def has_output(self) -> bool:
        """Whether its very first token is out."""
        return len(self.history) > len(self.request.prompt)

    @property
    def is_finished(self) -> bool:
        """Whether the last token is in."""
        return self._finish is not None

    def attempt_failed(self) -> None:
        """This attempt failed; if it brought the answer further, those before count no more. The
        prompt's own token is no progress: a request that brings each token machine down would be
        taken up again for ever."""
        if self.attempt_tokens > 1:
            self.failure_count, self.avoid = NO_FAILURES, frozenset()

    @property
    def attempt_tokens(self) -> int:
        """Tokens that this attempt has brought."""
        return len(self.history) - self._attempt_from

    def forget_attempt(self) -> None:
        """Drop what came early from an attempt that is given up, for the next to begin here."""
        self._early.clear()
        self._attempt_from = len(self.history)

    def fail(self, error: Exception) -> None:
        """End the stream with an error, after the tokens that are there."""
        self._error = error
        self._wake()

    # The client's side (``generation.TokenStream``).

    async def next(self) -> Chunk:
        """All tokens that have come since the last call; waits for one if there is none."""
        while not self._samples and self._finish is None:
            if self._error is not None:
                raise self._error
            self._reader = asyncio.get_running_loop().create_future()
            await self._reader
        samples, self._samples = self._samples, []
        return Chunk(samples, self._finish)

    def cancel(self) -> None:
        self.on_cancel(self)

    def _wake(self) -> None:
        if self._reader is not None and not self._reader.done():
            self._reader.set_result(None)
