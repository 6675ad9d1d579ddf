"""What a mad cluster scheduler may tell a machine: its other tasks get exactly their tokens."""

import gc
import logging
import os
import random
import socket
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from engine_rig import EngineRig
from holdings import Holdings
from mutations import body_of

from splitwise.engine.model_files import read_model_info, read_stop_token_ids
from splitwise.engine.null.engine import NullEngine, null_model
from splitwise.engine.null.tokens import continuation, words_of
from splitwise.engine.sampling import SamplingParams
from splitwise.protocol.messages import (
    Cancel,
    Expect,
    Preempted,
    RunPrompt,
    TaskFailed,
    TaskSpec,
    ToWorker,
    Welcome,
)
from splitwise.transfer import Arrived, ReceiverAddress, TransferStats
from splitwise.worker.machine import MachineLimits
from waiting import eventually

WORDS = words_of(read_model_info(null_model()).vocab_size, read_stop_token_ids(null_model()))
PROMPT = list(range(4, 40))
SAMPLING = SamplingParams(seed=3)
TOKENS = 12
GROWTH_MIB = 24
BLOCKS_BYTES = 2 * 2**17
"""The cache: small, so that tasks that are left there would soon fill it."""


def machine(name: str) -> EngineRig:
    """One of the engine without a model, driven step by step."""
    return EngineRig(NullEngine(null_model(), BLOCKS_BYTES), name, MachineLimits())


def spec(task: int, **changes: Any) -> TaskSpec:
    whole = TaskSpec(task, list(PROMPT), len(PROMPT), len(PROMPT) + TOKENS, SAMPLING, [])
    return msgspec.structs.replace(whole, **changes)


class Attack:
    """A mad scheduler of the machine ``rig``, which now and then asks for something sensible."""

    def __init__(self, rig: EngineRig, other: ReceiverAddress, draw: random.Random) -> None:
        self.rig = rig
        self.draw = draw
        self.other = other
        self.inputs = 0
        self.answers = 0
        self._decoder: msgspec.msgpack.Decoder[ToWorker] = msgspec.msgpack.Decoder(ToWorker)

    def round(self, number: int) -> None:
        """Thirty words, mad or garbled, around a task whose tokens are known."""
        good = 10_000 + number
        mad = range(30)
        self.rig.inbox.put(RunPrompt(spec(good)))
        for _ in mad:
            self.inputs += 1
            word = self._decoded(self._word(self.draw.choice(mad)))
            # A cancel of the good task, or one with its number, would be obeyed.
            if isinstance(word, RunPrompt | Expect | Cancel) and _task_of(word) != good:
                self.rig.inbox.put(word)
            if self.draw.random() < 0.3:
                self.rig.turn()
        self._cancel_all_but(good)  # mad tasks may have taken all memory, as far as that goes
        preempted = Preempted(good)
        self._turn_until(lambda: len(self.rig.tokens(good)) == TOKENS or preempted in self.rig.said)
        tokens = self.rig.tokens(good)
        assert tokens == continuation(PROMPT, TOKENS, SAMPLING, WORDS)[: len(tokens)]
        self.answers += len(tokens) == TOKENS
        self._cancel_all_but(None)
        self._turn_until(lambda: self.rig.is_empty and not self.rig.machine._tasks)
        self.rig.said.clear()

    def _cancel_all_but(self, good: int | None) -> None:
        for task in list(self.rig.machine._tasks):
            if task != good:
                self.rig.inbox.put(Cancel(task))

    def _turn_until(self, done: Callable[[], bool]) -> None:
        def turned() -> bool:
            self.rig.turn()
            return done()

        eventually(turned)

    def _decoded(self, word: msgspec.Struct) -> ToWorker | None:
        """What the worker's wire makes of it; None where it would hang up."""
        try:
            return self._decoder.decode(body_of(word, self.draw))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            return None

    def _word(self, task: int) -> msgspec.Struct:
        words = (
            RunPrompt(spec(task)),
            RunPrompt(spec(task), [self.other]),
            Expect(spec(task), "nobody", self.draw.choice((1, 2, 200))),
            Cancel(task),
            Welcome(),
        )
        return self.draw.choice(words)


def _task_of(word: RunPrompt | Expect | Cancel) -> int:
    return word.task if isinstance(word, Cancel) else word.spec.task


@pytest.fixture
def rig() -> Iterator[EngineRig]:
    made = machine("attacked")
    yield made
    made.close()


@pytest.fixture
def only_numeric_hosts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Addresses are drawn at random: no name is looked up."""
    look_up = socket.getaddrinfo

    def numeric(host: Any, port: Any, family: int, kind: int, protocol: int, flags: int) -> Any:
        return look_up(host, port, family, kind, protocol, socket.AI_NUMERICHOST)

    monkeypatch.setattr(socket, "getaddrinfo", numeric)


@pytest.mark.usefixtures("only_numeric_hosts")
@pytest.mark.parametrize(
    "inputs",
    [1500, pytest.param(24_000, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])],
)
def test_fuzz_of_the_worker(rig: EngineRig, inputs: int, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)
    other = machine("other")
    attack = Attack(rig, other.receiver.addresses[0], random.Random(3))
    for number in range(inputs // 120):
        attack.round(number)
    before = Holdings.of(os.getpid())
    for number in range(inputs // 30):
        attack.round(number)
    gc.collect()
    after = Holdings.of(os.getpid())
    other.close()  # and with it the links to it: one for each way in which its address was given
    eventually(lambda: Holdings.of(os.getpid()).files < before.files)
    print(f"{attack.inputs} inputs, {attack.answers} tasks beside them; {before} -> {after}")
    assert attack.answers > inputs // 30 * 0.9
    for end in (rig.sender, rig.receiver):
        assert not end._transfers.by_id and not any(rank._transfers for rank in end._ranks.values())
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert after.rss_mib < before.rss_mib + GROWTH_MIB


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"history": []}, "of history"),
        ({"max_history_tokens": len(PROMPT)}, "of history"),
        ({"prompt_tokens": 0}, "of history"),
        ({"history": [-1] * 40}, "token ids"),
        ({"history": [2**31] * 40}, "token ids"),
        ({"max_history_tokens": 10**6}, "in a context of"),
        ({"history": [5] * 30_000, "max_history_tokens": 30_001}, "in a cache of"),
    ],
)
def test_a_task_that_cannot_run_is_refused(
    rig: EngineRig, changes: dict[str, Any], words: str
) -> None:
    for command in (RunPrompt(spec(1, **changes)), Expect(spec(2, **changes), "nobody")):
        rig.machine.handle(command)
        failed = rig.said.pop()
        assert isinstance(failed, TaskFailed) and words in failed.reason
    assert not rig.machine.iterate() and rig.is_empty


def test_a_task_twice_is_refused(rig: EngineRig) -> None:
    rig.machine.handle(RunPrompt(spec(1)))
    for again in (RunPrompt(spec(1)), Expect(spec(1), "nobody")):
        rig.machine.handle(again)
        failed = rig.said.pop()
        assert isinstance(failed, TaskFailed) and "here already" in failed.reason


@pytest.mark.parametrize("payload", [b"", b"\xc1", b"\xa1x", b"\xff", b"\xce\xff\xff\xff\xff"])
def test_a_garbled_first_token_fails_its_task_only(rig: EngineRig, payload: bytes) -> None:
    rig.machine.handle(Expect(spec(1), "nobody"))
    rig.receiver.cancel("1")  # that its blocks are free of the transfer
    while not isinstance(rig.inbox.get(timeout=20), msgspec.Struct):
        pass
    rig.machine.handle(Arrived("1", payload, TransferStats("tcp", 1, 0, 0.0, 1)))
    failed = rig.said[-1]
    assert isinstance(failed, TaskFailed) and "garbled" in failed.reason
    assert rig.is_empty
