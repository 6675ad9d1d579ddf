"""A machine with a real vLLM, driven step by step in this process, and another machine's ends."""

import asyncio
import queue
import random
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
from transfer_machines import ends_of_one_rank

from splitwise.engine.sampling import SamplingParams
from splitwise.engine.vllm.core import VllmCore
from splitwise.protocol.generation import FinishReason
from splitwise.protocol.messages import Expect, Output, Outputs, RunPrompt, TaskSpec
from splitwise.scheduling.pool import Pool
from splitwise.transfer import Arrived, CacheLayout, HostMemory, ReceiverAddress
from splitwise.transfer.events import ReceiverEvent, SenderEvent
from splitwise.worker.machine import MachineLimits
from splitwise.worker.options import WorkerOptions
from splitwise.worker.runner import Command
from splitwise.worker.vllm_machine import VllmMachine
from waiting import eventually

KEY = "a key for the test"
VOCABULARY = 2000
UNIQUE = 77
NAME, PEER = "us", "peer"
GREEDY = SamplingParams(temperature=0)
PEER_BLOCKS = 56


def random_prompt(tokens: int, seed: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(10, VOCABULARY) for _ in range(tokens)]


def spec_of(task: int, history: Sequence[int], new_tokens: int, **fields: Any) -> TaskSpec:
    """Greedy unless ``fields`` say otherwise; the whole history is prompt."""
    values = {"sampling": GREEDY, "stop_token_ids": [], "prompt_tokens": len(history)} | fields
    return TaskSpec(
        task=task, history=list(history), max_history_tokens=len(history) + new_tokens, **values
    )


class VllmRig:
    """A machine over ``core`` for one session; ``said`` is what it has told the cluster."""

    def __init__(self, core: VllmCore, one_piece_below_tokens: int = 0) -> None:
        limits = MachineLimits(one_piece_below_tokens=one_piece_below_tokens)
        options = WorkerOptions(NAME, Pool.MIXED, "127.0.0.1", 1, KEY, limits=limits)
        self.core = core
        self.said: list[msgspec.Struct] = []
        self.machine = VllmMachine(core, options, self.said.append)

    @property
    def addresses(self) -> list[ReceiverAddress]:
        return self.machine.facts.addresses

    def take(self, *commands: Command) -> None:
        for command in commands:
            self.machine.take(command)

    def take_in(self) -> None:
        """All that has come."""
        while not self.machine._thread._inbox.empty():
            self.machine._thread.take_in(self.machine._handle, 0.0)

    def turn(self, times: int = 1) -> None:
        """Take in what has come, and let vLLM do a step."""
        for _ in range(times):
            self.take_in()
            self.machine._step()

    def turn_until(self, done: Callable[[], bool]) -> None:
        def turned() -> bool:
            self.turn()
            return done()

        eventually(turned)

    def run(self, command: RunPrompt | Expect) -> list[int]:
        """Take it and go on until its request has ended; returns the tokens that were said."""
        self.take(command)
        self.turn_until(lambda: self.finish(command.spec.task) is not None)
        return self.tokens(command.spec.task)

    def end(self) -> None:
        """As a session does it."""
        self.machine._thread._stopping.set()
        self.machine._iterate()
        asyncio.run(self.machine.close())

    def drop_prefix_cache(self) -> None:
        """Of vLLM, so that nothing is found there."""
        assert self.core._scheduler.reset_prefix_cache()

    @property
    def cache(self) -> npt.NDArray[np.uint8]:
        """``[layers, blocks, block_bytes]``"""
        assert self.core.ranks._here is not None
        memory = self.core.ranks._here._memory
        assert isinstance(memory, HostMemory)
        return cache_of(memory, self.core.layout)

    def turn_until_some_came(self) -> None:
        """What ``Peer.begins_some`` sends, in all layers."""
        self.turn_until(lambda: bool((self.cache == UNIQUE).all(axis=2).any(axis=1).all()))

    def heard(self, kind: type[msgspec.Struct]) -> list[Any]:
        return [message for message in self.said if isinstance(message, kind)]

    def outputs(self, task: int) -> list[Output]:
        return [o for message in self.heard(Outputs) for o in message.items if o.task == task]

    def tokens(self, task: int) -> list[int]:
        return [output.sample.token for output in self.outputs(task)]

    def finish(self, task: int) -> FinishReason | None:
        return outputs[-1].finish if (outputs := self.outputs(task)) else None

    @property
    def is_idle(self) -> bool:
        """Whether vLLM knows of nothing any more, and all its blocks are free."""
        status = self.machine.status()
        used = status.used_blocks + status.running_requests + status.waiting_requests
        return not used and not self.core.has_requests and not self.machine._tasks


class Peer:
    """Another machine, whose cache holds what the test puts there; it has no engine."""

    def __init__(self, layout: CacheLayout, checksum: bool = False) -> None:
        self.layout = msgspec.structs.replace(layout, blocks=PEER_BLOCKS)
        self.memory = HostMemory(self.layout.total_bytes)
        self.cache = cache_of(self.memory, self.layout)
        self.events: queue.Queue[ReceiverEvent | SenderEvent] = queue.Queue()
        self.receiver, self.sender = ends_of_one_rank(
            self.memory, self.layout, PEER, KEY, self.events.put, checksum
        )

    def takes(self, task: int, blocks: Sequence[int], skipped: int = 0) -> None:
        """Expect a task's cache from the machine."""
        self.receiver.expect(str(task), NAME, 1, blocks, skipped)

    def begins_some(self, task: int, rig: VllmRig, blocks: Sequence[int]) -> None:
        """Send the first of ``blocks``, whose bytes are like no others."""
        self.cache[:, blocks[0]] = UNIQUE
        self.sender.begin(str(task), rig.addresses, blocks)
        self.sender.held(str(task), 1)

    def sends(self, task: int, rig: VllmRig, blocks: Sequence[int], first_token: int) -> None:
        self.sender.begin(str(task), rig.addresses, blocks)
        self.sender.finish(str(task), msgspec.msgpack.encode(first_token))

    def event(self, kind: type[msgspec.Struct], rig: VllmRig) -> Any:
        """The next event, which is to be of that kind; ``rig`` goes on until it comes."""
        rig.turn_until(lambda: not self.events.empty())
        event = self.events.get()
        assert isinstance(event, kind), event
        return event

    def first_token(self, rig: VllmRig) -> int:
        arrived: Arrived = self.event(Arrived, rig)
        return msgspec.msgpack.decode(arrived.payload, type=int)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()


def cache_of(memory: HostMemory, layout: CacheLayout) -> npt.NDArray[np.uint8]:
    """``[layers, blocks, block_bytes]``"""
    shape = layout.layers, layout.blocks, layout.block_bytes(0)
    return np.frombuffer(memory.buffer, np.uint8).reshape(shape)
