"""The machine's half of the connector: it stands beside vLLM's scheduler and follows each request
whose cache travels.

A ``Push`` (out) and a ``Pull`` (in) are entered by ``will_push`` and ``will_pull`` before their
request is. vLLM then calls, all on the thread that steps its engine core:

1. ``matched`` and ``allocated``: a pull's blocks are known, and expected from the next step on.
2. ``orders``: what the step that was just composed means for each rank.
3. ``news``: how transfers ended. A first token that arrived goes into its request.
4. ``finished``: vLLM is done with a request, and asks whether somebody still reads its blocks.

What the machine wants to know of a step lies in ``started``, ``preempted`` and ``ended`` until it
takes it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import msgspec

from splitwise.engine.vllm.orders import Begin, Expect, RankNews, StepOrders
from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.events import Arrived, Failed, ReceiverEvent, SenderEvent, Sent

if TYPE_CHECKING:
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.request import Request


@dataclass
class Push:
    """A prompt whose cache goes to ``target``, an address a rank.

    ``tokens`` are those of the prompt; with ``most_tokens`` the request is over."""

    target: Sequence[ReceiverAddress]
    tokens: int
    most_tokens: int
    table: list[int] = field(default_factory=list)
    generations: list[int] = field(default_factory=list)
    """Of the table's blocks, as they were when it got them."""
    computed: int = 0
    is_begun: bool = False
    said: list[SenderEvent] = field(default_factory=list)
    """How it ended, as ranks have said so far."""
    is_over: bool = False
    """All have: nobody reads the blocks any more."""


@dataclass
class Pull:
    """A cache that comes from machine ``source_id``, and the first token with it.

    The request has that token from the start, as ``core.NO_TOKEN_YET``: so vLLM gives it room for
    that when it gives it blocks. Requests that had to find a block for it later could wait for each
    other's for ever."""

    source_id: str
    source_ranks: int
    tokens: int
    request: "Request | None" = None
    """Once its blocks are expected."""
    said: list[ReceiverEvent] = field(default_factory=list)
    """How it ended, as ranks have said so far."""


class SchedulerSide:
    """What runs where vLLM schedules."""

    def __init__(self, block_tokens: int, vocab_size: int, ranks: int) -> None:
        self._block_tokens = block_tokens
        self._vocab_size = vocab_size
        self._ranks = ranks
        self.one_piece_below_tokens = 512
        """Shorter prompts are transferred in one go (Splitwise, section IV.D)."""
        self._pushes: dict[str, Push] = {}
        self._pulls: dict[str, Pull] = {}
        self._orders = StepOrders()
        self._generations: dict[int, int] = {}
        """How often a block was given to somebody to write into."""
        self.started: list[str] = []
        """Requests in a step for the first time."""
        self.preempted: list[str] = []
        self.ended: list[tuple[str, SenderEvent | ReceiverEvent]] = []
        self.first_tokens: dict[str, int] = {}
        """That came with caches, by request."""

    # The machine's thread, which is the one that steps.

    def will_push(
        self, request_id: str, target: Sequence[ReceiverAddress], tokens: int, most_tokens: int
    ) -> None:
        self._pushes[request_id] = Push(target, tokens, most_tokens)

    def will_pull(self, request_id: str, source_id: str, source_ranks: int, tokens: int) -> None:
        self._pulls[request_id] = Pull(source_id, source_ranks, tokens)

    def is_moving(self, request_id: str) -> bool:
        """Whether a transfer may still touch its blocks."""
        push, pull = self._pushes.get(request_id), self._pulls.get(request_id)
        return bool(push and push.is_begun) or bool(pull and pull.request)

    def blocks_of(self, request_id: str) -> int:
        """How many a push has."""
        push = self._pushes.get(request_id)
        return len(push.table) if push is not None else 0

    def stop(self, request_id: str) -> None:
        """Its cache is not to go out any more. vLLM does not say so of a request that it is done
        with."""
        push = self._pushes.get(request_id)
        if push is not None and push.is_begun and not push.is_over:
            self._orders.stops.add(request_id)

    def forget(self, request_id: str) -> None:
        """Nothing of it travels, or no more."""
        self._pushes.pop(request_id, None)
        self._pulls.pop(request_id, None)
        self.first_tokens.pop(request_id, None)

    def clear(self) -> None:
        """Forget all of them, and what was still to be ordered: a session has ended."""
        self._orders = StepOrders()
        self._pushes.clear()
        self._pulls.clear()
        self.first_tokens.clear()
        self.started.clear()
        self.preempted.clear()
        self.ended.clear()

    @property
    def has_orders(self) -> bool:
        """Whether a step would carry something, even one that computes nothing."""
        return not self._orders.is_empty

    # What vLLM asks, in the order of a step.

    def matched(self, request: "Request", computed_tokens: int) -> tuple[int, bool]:
        """How many tokens beyond ``computed_tokens`` will come, and whether later (always)."""
        pull = self._pulls.get(request.request_id)
        if pull is None:
            return 0, False
        return pull.tokens + 1 - computed_tokens, True

    def allocated(self, request: "Request", table: list[int], coming_tokens: int) -> None:
        """A request has blocks, ``table``, for all its tokens; so many are to come."""
        pull = self._pulls.get(request.request_id)
        if pull is None or not coming_tokens or pull.request is not None:
            return
        pull.request = request
        skipped = (pull.tokens + 1 - coming_tokens) // self._block_tokens
        blocks = table[skipped : self._blocks_for(pull.tokens)]
        self._lend(blocks)
        self._orders.expects.append(
            Expect(request.request_id, pull.source_id, pull.source_ranks, blocks, skipped)
        )

    def orders(self, step: "SchedulerOutput") -> StepOrders:
        """What the step means for the ranks. Called once a step."""
        orders, self._orders = self._orders, StepOrders()
        preempted = step.preempted_req_ids or set()
        self.preempted += preempted
        self._stop_preempted(preempted, orders)
        self.started += [new.req_id for new in step.scheduled_new_reqs]
        self._note_loans(step)
        for new in step.scheduled_new_reqs:
            if (push := self._pushes.get(new.req_id)) is not None:
                full = new.block_ids[0][: new.num_computed_tokens // self._block_tokens]
                held = self._held(full, step) if full else 0
                self._add_blocks(push, new.block_ids[0])
                push.computed = new.num_computed_tokens + step.num_scheduled_tokens[new.req_id]
                self._begin(new.req_id, push, held, orders)
        cached = step.scheduled_cached_reqs
        for request_id, new_blocks in zip(cached.req_ids, cached.new_block_ids, strict=True):
            push = self._pushes.get(request_id)
            if push is None or push.is_over:
                continue
            if new_blocks is not None:
                self._add_blocks(push, new_blocks[0])
                orders.extends[request_id] = list(new_blocks[0])
            push.computed += step.num_scheduled_tokens[request_id]
            self._fill(request_id, push, orders)
        return orders

    def news(self, news: RankNews) -> None:
        """Transfers have ended, at some of the ranks at least. Where one failed the others are to
        end, too."""
        for request_id, sent in news.sent.items():
            push = self._pushes[request_id]
            push.said += sent
            if len(push.said) == self._ranks:
                push.is_over = True
                self.ended.append((request_id, _worst(push.said)))
            elif isinstance(_worst(push.said), Failed):
                self._orders.stops.add(request_id)
        for request_id, received in news.received.items():
            pull = self._pulls[request_id]
            pull.said += received
            if len(pull.said) == self._ranks:
                self._end_pull(request_id, self._pulls.pop(request_id))
            elif isinstance(_worst(pull.said), Failed):
                self._orders.refusals.add(request_id)

    def _end_pull(self, request_id: str, pull: Pull) -> None:
        event = _worst(pull.said)
        if isinstance(event, Arrived) and pull.request is not None:
            event = self._take_first_token(pull.request, event)
        self.ended.append((request_id, event))

    def finished(self, request: "Request") -> bool:
        """vLLM is done with a request. Whether its blocks are still read: then they are to stay
        until a rank reports it as sent."""
        request_id = request.request_id
        pull = self._pulls.get(request_id)
        if pull is not None and pull.request is not None:
            self._orders.refusals.add(request_id)
            return False  # vLLM itself keeps the blocks of what it waits for
        push = self._pushes.get(request_id)
        if push is None or not push.is_begun or push.is_over:
            return False
        first_token = self._first_token(request, push)
        if first_token is None:
            self._orders.stops.add(request_id)
        else:
            self._orders.finishes[request_id] = msgspec.msgpack.encode(first_token)
        return True

    # How.

    def _stop_preempted(self, preempted: set[str], orders: StepOrders) -> None:
        for request_id in preempted:
            push = self._pushes.get(request_id)
            if push is not None and push.is_begun and not push.is_over:
                orders.preempted.add(request_id)
                orders.stops.add(request_id)

    def _note_loans(self, step: "SchedulerOutput") -> None:
        """Count who is given a block of this step to write into."""
        for new in step.scheduled_new_reqs:
            self._lend(new.block_ids[0][new.num_computed_tokens // self._block_tokens :])
        for new_blocks in step.scheduled_cached_reqs.new_block_ids:
            if new_blocks is not None:
                self._lend(new_blocks[0])

    def _held(self, full: Sequence[int], step: "SchedulerOutput") -> int:
        """How many of these blocks, counted on as full, are so already. vLLM lets a request count
        on blocks that another one will have filled in the same step."""
        written = self._written(step)
        return next((place for place, block in enumerate(full) if block in written), len(full))

    def _written(self, step: "SchedulerOutput") -> set[int]:
        """The blocks that this step writes into."""
        state, cached = step.kv_connector_block_state, step.scheduled_cached_reqs
        assert state is not None, "a connector is asked for its orders with that"
        computed = {new.req_id: new.num_computed_tokens for new in step.scheduled_new_reqs}
        computed |= dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        written: set[int] = set()
        for request_id, before in computed.items():
            after = before + step.num_scheduled_tokens[request_id]
            table = state.resolve_block_ids(request_id)[0]
            written.update(table[before // self._block_tokens : self._blocks_for(after)])
        return written

    def _lend(self, blocks: Sequence[int]) -> None:
        for block in blocks:
            self._generations[block] = self._generations.get(block, 0) + 1

    def _add_blocks(self, push: Push, blocks: Sequence[int]) -> None:
        push.table += blocks
        push.generations += [self._generations.get(block, 0) for block in blocks]

    def _begin(self, request_id: str, push: Push, held: int, orders: StepOrders) -> None:
        table_blocks = self._blocks_for(push.tokens)
        push.is_begun = True
        begin = Begin(request_id, push.target, list(push.table), table_blocks, held)
        is_short = push.tokens < self.one_piece_below_tokens
        if is_short and push.computed >= push.tokens:
            orders.whole.append(begin)
            return
        orders.begins.append(begin)
        self._fill(request_id, push, orders)

    def _fill(self, request_id: str, push: Push, orders: StepOrders) -> None:
        """Note how many blocks are full when the step is done."""
        is_last = push.computed >= push.tokens
        full = self._blocks_for(push.tokens) if is_last else push.computed // self._block_tokens
        if full:
            orders.fills[request_id] = full

    def _first_token(self, request: "Request", push: Push) -> int | None:
        """What is to go with the signal; None where nothing is to be sent after all."""
        from vllm.v1.request import RequestStatus

        if request.status is not RequestStatus.FINISHED_LENGTH_CAPPED:
            return None  # aborted, or a stop token: it ends here
        if push.tokens + 1 >= push.most_tokens or not self._is_intact(push):
            return None
        return int(request.output_token_ids[-1])

    def _is_intact(self, push: Push) -> bool:
        """Whether nobody else was given a block of it meanwhile."""
        return push.generations == [self._generations.get(block, 0) for block in push.table]

    def _take_first_token(self, request: "Request", event: Arrived) -> ReceiverEvent:
        """Put the first token into its place in the request, which then only has that to run."""
        try:
            token = msgspec.msgpack.decode(event.payload, type=int)
        except msgspec.MsgspecError:
            token = -1
        if not 0 <= token < self._vocab_size:
            return Failed(event.transfer_id, f"its first token came as {event.payload[:40]!r}")
        assert request.prompt_token_ids is not None
        request.prompt_token_ids[-1] = request._all_token_ids[-1] = token
        request.block_hashes.clear()  # the last may have been made with what stood in its place
        request.update_block_hashes()
        self.first_tokens[request.request_id] = token
        return event

    def _blocks_for(self, tokens: int) -> int:
        return -(-tokens // self._block_tokens)


Event = TypeVar("Event", SenderEvent, ReceiverEvent)


def _worst(events: Sequence[Event]) -> Event:
    """How a transfer has ended whose ranks say this: well only where all do."""
    return min(events, key=_goodness)


def _goodness(event: SenderEvent | ReceiverEvent) -> int:
    return 0 if isinstance(event, Failed) else 1 + isinstance(event, Sent | Arrived)
