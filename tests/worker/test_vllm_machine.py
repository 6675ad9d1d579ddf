"""A machine that runs a real vLLM: what it says, and whether every block comes back.

The other machine is a cache without an engine: what it is sent it can send back for another task.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from tiny_models import tiny_config
from token_client import generate, random_model
from vllm_rig import VOCABULARY, Peer, VllmRig, random_prompt, spec_of

from splitwise.engine.faulty import Switch
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.sampling import SamplingParams
from splitwise.engine.vllm.core import NO_TOKEN_YET, VllmCore
from splitwise.engine.vllm.faulty_core import FaultyCore
from splitwise.engine.vllm.settings import VllmSettings
from splitwise.protocol.generation import FinishReason
from splitwise.protocol.messages import (
    Cancel,
    Expect,
    Preempted,
    RunPrompt,
    TaskFailed,
    Transferred,
)
from splitwise.transfer import Arrived, Failed, Sent
from splitwise.worker.trial import EngineFailed

pytestmark = [pytest.mark.vllm, pytest.mark.timeout(600)]

BLOCK_TOKENS = 128
BLOCKS = 24
"""One of them is vLLM's own."""
ARGUMENTS = (
    f"--enforce-eager --max-num-batched-tokens 256 --num-gpu-blocks-override {BLOCKS} "
    "--max-model-len 2900 --long-prefill-token-threshold 128"
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[ModelFolder, Any]:
    """A small model of random weights, and the same in transformers."""
    path = tmp_path_factory.mktemp("model") / "small"
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 256, "head_dim": 32}
    config = tiny_config("llama", {**sizes, "max_position_embeddings": 4096})
    network = random_model(path, config)
    return ModelFolder(path, "small"), network


@pytest.fixture(scope="module")
def fault(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where what befalls vLLM may be written."""
    return tmp_path_factory.mktemp("faults") / "us"


@pytest.fixture(scope="module")
def core(small: tuple[ModelFolder, Any], fault: Path) -> Iterator[VllmCore]:
    settings = VllmSettings("cpu", "float32", kv_cache_gib=0.1, arguments=ARGUMENTS)
    core = FaultyCore(small[0], settings, Switch(fault))
    yield core
    core.close()


@pytest.fixture(scope="module")
def reference(small: tuple[ModelFolder, Any]) -> Any:
    return small[1]


@pytest.fixture
def rig(core: VllmCore) -> Iterator[VllmRig]:
    """For one session, after which nothing of it is left in vLLM."""
    rig = VllmRig(core)
    rig.drop_prefix_cache()
    yield rig
    rig.end()
    assert core.free_blocks == core.total_blocks == BLOCKS - 1
    assert not core.has_requests


@pytest.fixture
def peer(core: VllmCore) -> Iterator[Peer]:
    peer = Peer(core.layout)
    yield peer
    peer.close()


def blocks_for(tokens: int) -> list[int]:
    """A table on the peer, not from its beginning and not in order."""
    return list(range(2 + -(-tokens // BLOCK_TOKENS), 2, -1))


def push(rig: VllmRig, peer: Peer, task: int, prompt: list[int], **fields: Any) -> int:
    """Have the machine run a prompt and send its cache to the peer; returns the first token."""
    peer.takes(task, blocks_for(len(prompt)))
    rig.take(RunPrompt(spec_of(task, prompt, 20, **fields), peer.receiver.addresses))
    return peer.first_token(rig)


@pytest.mark.parametrize("one_piece_below_tokens", [0, 512])
@pytest.mark.parametrize("tokens", [1, 2, 127, 128, 129, 255, 256, 257, 384, 600])
def test_a_cache_that_went_and_came_back_continues_as_transformers_do(
    core: VllmCore, peer: Peer, reference: Any, tokens: int, one_piece_below_tokens: int
) -> None:
    rig = VllmRig(core, one_piece_below_tokens)
    prompt = random_prompt(tokens, seed=tokens + one_piece_below_tokens)
    first = push(rig, peer, 1, prompt)
    rig.turn_until(lambda: rig.is_idle)
    rig.drop_prefix_cache()
    rig.take(Expect(spec_of(2, prompt, 9), "peer"))
    peer.sends(2, rig, blocks_for(tokens), first)
    rig.turn_until(lambda: rig.finish(2) is not None)
    assert [first, *rig.tokens(2)] == generate(reference, prompt, 9)
    assert rig.tokens(1) == [first] and rig.finish(1) is None
    assert [output.position for output in rig.outputs(2)] == list(range(tokens + 1, tokens + 9))
    rig.turn_until(lambda: rig.is_idle)
    rig.end()


def test_draws_and_penalties_go_on_as_they_would_have_unsplit(
    core: VllmCore, rig: VllmRig, peer: Peer
) -> None:
    sampling = SamplingParams(
        seed=7, temperature=0.9, top_p=0.9, presence_penalty=0.5, repetition_penalty=1.2, logprobs=2
    )
    prompt = random_prompt(140, seed=5)
    unsplit = rig.run(RunPrompt(spec_of(1, prompt, 9, sampling=sampling)))
    rig.drop_prefix_cache()
    first = push(rig, peer, 2, prompt, sampling=sampling)
    rig.drop_prefix_cache()
    rig.take(Expect(spec_of(3, prompt, 9, sampling=sampling), "peer"))
    peer.sends(3, rig, blocks_for(140), first)
    rig.turn_until(lambda: rig.finish(3) is not None)
    assert [first, *rig.tokens(3)] == unsplit
    rig.drop_prefix_cache()
    resumed = spec_of(4, [*prompt, *unsplit[:4]], 5, sampling=sampling, prompt_tokens=140)
    assert rig.run(RunPrompt(resumed)) == unsplit[4:]


def test_only_what_the_token_machine_lacks_travels(
    core: VllmCore, rig: VllmRig, peer: Peer, reference: Any
) -> None:
    prompt = random_prompt(300, seed=11)
    block_bytes = core.layout.layers * core.layout.block_bytes(0)
    first = push(rig, peer, 1, prompt)
    rig.take(Expect(spec_of(2, prompt, 5), "peer"))  # whose first two blocks are cached here now
    peer.cache[:, blocks_for(300)[:2]] = 0
    peer.sends(2, rig, blocks_for(300), first)
    rig.turn_until(lambda: rig.finish(2) is not None)
    assert peer.event(Sent, rig).stats.bytes == block_bytes
    [transferred] = rig.heard(Transferred)
    assert transferred.stats.bytes == block_bytes
    assert [first, *rig.tokens(2)] == generate(reference, prompt, 5)


@pytest.mark.parametrize("tokens", [140, 600])
def test_blocks_that_another_prompt_of_the_step_writes_are_not_sent_before(
    core: VllmCore, rig: VllmRig, peer: Peer, tokens: int
) -> None:
    """Both begin alike, and vLLM has the second one count on the first one's blocks."""
    shared = random_prompt(128, seed=tokens)
    prompts = {task: [*shared, *random_prompt(tokens - 128, seed=task)] for task in (1, 2)}
    tables = {1: list(range(10)), 2: list(range(20, 30))}
    used = -(-tokens // BLOCK_TOKENS)
    for task, prompt in prompts.items():
        peer.takes(task, tables[task][:used])
        rig.take(RunPrompt(spec_of(task, prompt, 9), peer.receiver.addresses))
    rig.turn()
    peer.event(Arrived, rig)
    peer.event(Arrived, rig)
    assert rig.machine.status().prefix_hits_tokens >= 128
    shared_blocks = [peer.cache[:, table[0]] for table in tables.values()]
    assert np.array_equal(*shared_blocks)
    assert len(np.unique(shared_blocks[0])) > 10
    rig.turn_until(lambda: rig.is_idle)


@pytest.mark.parametrize("is_dialled", [False, True])
def test_cancelled_while_its_cache_comes(rig: VllmRig, peer: Peer, is_dialled: bool) -> None:
    rig.take(Expect(spec_of(1, random_prompt(300, 1), 9), "peer"))
    rig.turn()
    if is_dialled:
        peer.begins_some(1, rig, blocks_for(300))
        rig.turn_until_some_came()
    assert rig.machine.status().used_blocks == 3
    rig.take(Cancel(1))
    if is_dialled:
        peer.event(Failed, rig)
    rig.turn_until(lambda: rig.is_idle)
    assert not rig.said


def test_cancelled_while_nobody_takes_its_cache(rig: VllmRig, peer: Peer) -> None:
    rig.take(RunPrompt(spec_of(1, random_prompt(300, 1), 9), peer.receiver.addresses))
    rig.turn_until(lambda: bool(rig.tokens(1)))
    rig.turn(3)
    assert rig.machine.status().used_blocks == 3
    rig.take(Cancel(1))
    rig.turn_until(lambda: rig.is_idle)


def test_cancelled_before_it_has_entered_or_while_it_is_unknown(rig: VllmRig, peer: Peer) -> None:
    rig.take(Cancel(3))
    rig.take(Expect(spec_of(1, random_prompt(30, 1), 9), "peer"), Cancel(1))
    rig.take(RunPrompt(spec_of(2, random_prompt(30, 2), 9), peer.receiver.addresses), Cancel(2))
    rig.turn_until(lambda: rig.is_idle)
    assert not rig.said
    assert len(rig.run(RunPrompt(spec_of(3, random_prompt(30, 3), 9)))) == 9


@pytest.mark.parametrize("chunks", [1, 2, 3])
def test_cancelled_between_chunks_or_as_it_is_sent(rig: VllmRig, peer: Peer, chunks: int) -> None:
    """600 tokens are three chunks."""
    peer.takes(1, blocks_for(600))
    rig.take(RunPrompt(spec_of(1, random_prompt(600, 40 + chunks), 9), peer.receiver.addresses))
    rig.turn(chunks)
    assert rig.machine.status().used_blocks
    rig.take(Cancel(1))
    rig.turn_until(lambda: rig.is_idle)
    assert isinstance(peer.events.get(timeout=20), Failed)
    assert len(rig.tokens(1)) == (chunks == 3)


@pytest.mark.parametrize(
    ("new_tokens", "is_stop", "finish"),
    [(1, False, FinishReason.LENGTH), (9, True, FinishReason.STOP)],
)
def test_a_request_that_its_first_token_ends_is_not_handed_over(
    rig: VllmRig,
    peer: Peer,
    reference: Any,
    new_tokens: int,
    is_stop: bool,
    finish: FinishReason,
) -> None:
    prompt = random_prompt(200, seed=31)
    [first] = generate(reference, prompt, 1)
    peer.takes(1, blocks_for(200))
    spec = spec_of(1, prompt, new_tokens, stop_token_ids=[first] if is_stop else [])
    rig.take(RunPrompt(spec, peer.receiver.addresses))
    peer.event(Failed, rig)
    rig.turn_until(lambda: rig.is_idle)
    assert rig.tokens(1) == [first] and rig.finish(1) is finish
    assert not rig.heard(TaskFailed)


def test_a_prompt_preempted_while_it_is_sent(rig: VllmRig, peer: Peer) -> None:
    """Both fit by themselves, not together; the blocks of the one that gives way are the other
    one's from then on, and not read for it any more."""
    peer.takes(1, list(range(16)))
    peer.takes(2, list(range(20, 36)))
    addresses = peer.receiver.addresses
    rig.take(RunPrompt(spec_of(1, random_prompt(2000, 1), 9, priority=5), addresses))
    rig.turn()
    rig.take(RunPrompt(spec_of(2, random_prompt(2000, 2), 9, priority=0), addresses))
    rig.turn_until(lambda: bool(rig.heard(Preempted)))
    assert [message.task for message in rig.heard(Preempted)] == [1]
    assert peer.event(Failed, rig).transfer_id == "1"
    assert peer.event(Arrived, rig).transfer_id == "2"
    rig.turn_until(lambda: rig.is_idle)
    assert not rig.heard(TaskFailed)


def test_full_of_prompts_that_fill_their_blocks(rig: VllmRig, peer: Peer) -> None:
    """Each needs another block for its next token: were all blocks given to what comes, none would
    get on."""
    tasks = range(1, BLOCKS)
    for task in tasks:
        rig.take(Expect(spec_of(task, random_prompt(BLOCK_TOKENS, task), 3), "peer"))
        peer.sends(task, rig, [task], first_token=100)
    rig.turn_until(lambda: all(rig.finish(task) is not None for task in tasks))
    rig.turn_until(lambda: rig.is_idle)


def test_all_but_the_first_token_is_here(
    core: VllmCore, rig: VllmRig, peer: Peer, reference: Any
) -> None:
    """A prompt of whole blocks, and the next token ends a block that others begin with, too."""
    for tokens in (2 * BLOCK_TOKENS, 2 * BLOCK_TOKENS - 1):
        prompt = random_prompt(tokens, seed=tokens)
        expected = generate(reference, prompt, 6)
        assert push(rig, peer, 1, prompt) == expected[0]
        rig.take(Expect(spec_of(2, prompt, 6), "peer"))
        peer.sends(2, rig, blocks_for(tokens), expected[0])
        rig.turn_until(lambda: rig.finish(2) is not None)
        assert rig.tokens(2) == expected[1:]
        has_all = tokens % BLOCK_TOKENS == 0
        assert (peer.event(Sent, rig).stats.bytes == 0) == has_all
        rig.turn_until(lambda: rig.is_idle)
        for task, then in ((3, expected[0]), (4, NO_TOKEN_YET)):
            others = [*prompt, then, *random_prompt(20, 5)]
            before = core.prefix_hits_tokens
            assert rig.run(RunPrompt(spec_of(task, others, 4))) == generate(reference, others, 4)
            is_whole = has_all or then == expected[0]
            assert core.prefix_hits_tokens - before == BLOCK_TOKENS * (1 + is_whole)
        rig.said.clear()


def test_its_source_dies(rig: VllmRig, peer: Peer) -> None:
    rig.take(Expect(spec_of(1, random_prompt(300, 1), 9), "peer"))
    peer.begins_some(1, rig, blocks_for(300))
    rig.turn_until_some_came()
    peer.sender.close()
    rig.turn_until(lambda: rig.is_idle)
    [failed] = rig.heard(TaskFailed)
    assert failed.task == 1 and failed.in_transfer


@pytest.mark.parametrize("chunks", [1, 3])
def test_its_target_dies(rig: VllmRig, peer: Peer, chunks: int) -> None:
    peer.takes(1, blocks_for(600))
    rig.take(RunPrompt(spec_of(1, random_prompt(600, 4), 9), peer.receiver.addresses))
    rig.turn(chunks)
    peer.receiver.close()
    rig.turn_until(lambda: rig.is_idle)
    [failed] = rig.heard(TaskFailed)
    assert failed.task == 1 and failed.in_transfer


def test_a_garbled_cache_is_not_used(core: VllmCore, rig: VllmRig) -> None:
    peer = Peer(core.layout, checksum=True)
    rig.take(Expect(spec_of(1, random_prompt(100, 1), 9), "peer"))
    rig.turn()
    peer.begins_some(1, rig, [5])
    rig.turn_until_some_came()
    rig.cache[-1] ^= 1
    peer.sender.finish("1", msgspec.msgpack.encode(100))
    peer.event(Failed, rig)
    rig.turn_until(lambda: rig.is_idle)
    [failed] = rig.heard(TaskFailed)
    assert failed.in_transfer and "checksum" in failed.reason
    assert not rig.tokens(1)
    peer.close()


@pytest.mark.parametrize("payload", [b"", b"garbage", msgspec.msgpack.encode(10**6)])
def test_a_garbled_first_token_is_not_used(rig: VllmRig, peer: Peer, payload: bytes) -> None:
    rig.take(Expect(spec_of(1, random_prompt(100, 1), 9), "peer"))
    peer.sender.begin("1", rig.addresses, [5])
    peer.sender.finish("1", payload)
    rig.turn_until(lambda: bool(rig.heard(TaskFailed)))
    rig.turn_until(lambda: rig.is_idle)
    assert not rig.tokens(1)


def test_prompts_and_decodes_of_both_ways_at_once(
    core: VllmCore, peer: Peer, rig: VllmRig, reference: Any
) -> None:
    """As on a machine whose role is changing."""
    prompts = {task: random_prompt(50 + 60 * task, seed=task) for task in range(1, 7)}
    expected = {task: generate(reference, p, 6) for task, p in prompts.items()}
    tables = {task: list(range(8 * task, 8 * task + 4)) for task in prompts}
    used = {task: tables[task][: -(-len(p) // BLOCK_TOKENS)] for task, p in prompts.items()}
    for task, prompt in prompts.items():
        peer.takes(task, used[task])
        rig.take(RunPrompt(spec_of(task, prompt, 6), peer.receiver.addresses))
        rig.turn()
    for _ in prompts:
        arrived = peer.event(Arrived, rig)
        task = int(arrived.transfer_id)
        rig.take(Expect(spec_of(task + 10, prompts[task], 6), "peer"))
        rig.take(RunPrompt(spec_of(task + 20, prompts[task], 6)))
        first = msgspec.msgpack.decode(arrived.payload, type=int)
        peer.sends(task + 10, rig, used[task], first)
        while not peer.events.empty() and not isinstance(peer.events.queue[0], Arrived):
            peer.events.get()
    rig.turn_until(lambda: all(rig.finish(t + 10) and rig.finish(t + 20) for t in prompts))
    for task, tokens in expected.items():
        assert rig.tokens(task) == tokens[:1]
        assert rig.tokens(task + 10) == tokens[1:]
        assert rig.tokens(task + 20) == tokens
    rig.turn_until(lambda: rig.is_idle)


def test_a_prompt_that_is_to_be_alone(rig: VllmRig, peer: Peer) -> None:
    """Before it, beside it and after it others of two chunks and more."""
    for task in (1, 2, 3):
        spec = spec_of(task, random_prompt(400, task), 2, alone=task == 2)
        rig.take(RunPrompt(spec))
    under_way: list[set[int]] = []

    def is_over() -> bool:
        tasks = rig.machine._tasks.values()
        under_way.append({task.id for task in tasks if task.state.name == "PROMPT"})
        return all(rig.finish(task) is not None for task in (1, 2, 3))

    rig.turn_until(is_over)
    assert {2} in under_way
    assert all(tasks == {2} for tasks in under_way if 2 in tasks)


def test_a_session_that_ends_with_tasks_in_every_state_leaves_nothing(
    core: VllmCore, peer: Peer
) -> None:
    for _ in range(2):  # the tasks of the next session have the same numbers
        rig = VllmRig(core)
        addresses = peer.receiver.addresses
        rig.take(Expect(spec_of(1, random_prompt(300, 1), 9), "peer"))  # nothing comes
        rig.take(Expect(spec_of(2, random_prompt(300, 2), 9), "peer"))  # it comes in part
        peer.begins_some(2, rig, blocks_for(300))
        rig.take(RunPrompt(spec_of(3, random_prompt(200, 3), 9), addresses))  # nobody takes it
        rig.take(RunPrompt(spec_of(4, random_prompt(50, 4), 900)))
        rig.turn(5)
        rig.take(RunPrompt(spec_of(5, random_prompt(900, 5), 9), addresses))
        rig.turn()
        rig.take(RunPrompt(spec_of(6, random_prompt(900, 6), 9, alone=True)))
        rig.take(Expect(spec_of(7, random_prompt(300, 7), 9), "peer"))
        rig.take_in()
        assert len(rig.tokens(3)) == 1 and len(rig.tokens(4)) > 1
        rig.take(Expect(spec_of(8, random_prompt(300, 8), 9), "peer"))  # comes too late
        rig.take(RunPrompt(spec_of(9, random_prompt(300, 9), 9)))
        rig.end()
        assert core.free_blocks == core.total_blocks and not core.has_requests
        assert isinstance(peer.events.get(timeout=20), Failed)
    rig = VllmRig(core)
    assert len(rig.run(RunPrompt(spec_of(4, random_prompt(50, 4), 9)))) == 9
    rig.end()


def test_a_cancel_of_the_last_session_does_not_reach_a_task_of_this_one(core: VllmCore) -> None:
    """A gateway that is started again numbers its tasks from 1 again."""
    before = VllmRig(core)
    before.run(RunPrompt(spec_of(1, random_prompt(30, 1), 2)))
    before.turn_until(lambda: before.is_idle)
    before.take(Cancel(1))
    before.turn()
    before.end()
    rig = VllmRig(core)
    assert len(rig.run(RunPrompt(spec_of(1, random_prompt(30, 2), 9)))) == 9
    rig.end()


def test_a_fault_from_outside_is_a_step_that_fails(core: VllmCore, fault: Path) -> None:
    rig = VllmRig(core)
    rig.take(RunPrompt(spec_of(1, random_prompt(30, 1), 9)))
    rig.turn()
    fault.write_text("step")
    with pytest.raises(EngineFailed, match="says step"):
        rig.turn()
    fault.unlink()
    core.abort(["1"])
    core.step()
    rig.end()
    assert core.free_blocks == core.total_blocks and not core.has_requests


def test_a_step_that_fails_ends_the_machine_and_fails_every_task(
    core: VllmCore, peer: Peer, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = VllmRig(core)
    rig.take(Expect(spec_of(1, random_prompt(300, 1), 9), "peer"))
    rig.take(RunPrompt(spec_of(2, random_prompt(300, 2), 9)))
    rig.turn()

    def broken() -> Any:
        raise RuntimeError("no more memory")

    with monkeypatch.context() as patch:
        patch.setattr(core._core.model_executor, "execute_model", lambda *_, **__: broken())
        with pytest.raises(EngineFailed, match="no more memory"):
            rig.machine._iterate()
        rig.end()
    failed = rig.heard(TaskFailed)
    assert {message.task for message in failed} == {1, 2}
    assert all(message.in_company and not message.in_transfer for message in failed)
