"""Prompts that go in chunks, some to a receiver that holds their beginning: as numpy has it."""

import itertools
import random
import time
from collections.abc import Iterator

import numpy as np
import pytest
from chunk_plans import Plan, assert_same, draw_plan, split
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transfer_machines import TRANSPORTS, LocalMachine, Settings, content, machines, warm_up

from splitwise.transfer import (
    Arrived,
    CacheLayout,
    Cancelled,
    Deadlines,
    Failed,
    Released,
    Sent,
)
from splitwise.transfer.layout import Region
from waiting import eventually

LAYERS, BLOCKS = 3, 24
LAYOUTS = {
    # Over TCP more than five blocks of it are two stripes.
    "large": CacheLayout.flat(LAYERS, BLOCKS, 16, 49_152),
    "apart": CacheLayout(
        *(LAYERS, BLOCKS, 16, 1, 1), (Region(0, LAYERS, 40), Region(0, LAYERS, 56))
    ),
}
SMALL = CacheLayout.flat(LAYERS, BLOCKS, 16, 512)
MARK = 0xA5
names = (f"t{number}" for number in itertools.count())


@pytest.fixture(scope="module", params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module", params=LAYOUTS)
def pair(
    request: pytest.FixtureRequest, transport: str
) -> Iterator[tuple[LocalMachine, LocalMachine]]:
    layout = LAYOUTS[request.param]
    prompt = Settings("prompt", layout, 1, transport=transport, checksum=True)
    with machines(prompt, Settings("token", layout, 2)) as (first, second):
        yield first, second


@pytest.fixture
def small_pair(transport: str) -> Iterator[tuple[LocalMachine, LocalMachine]]:
    prompt = Settings("prompt", SMALL, 1, transport=transport)
    with machines(prompt, Settings("token", SMALL, 2)) as (first, second):
        yield first, second


def carry(plan: Plan, prompt: LocalMachine, token: LocalMachine) -> Arrived:
    """A whole transfer; checked at both ends."""
    layout = prompt.settings.layout
    token.cache[:] = content(token.settings)
    before, after = (split(layout, machine.cache.ravel().copy()) for machine in (prompt, token))
    name = next(names)

    def expect() -> None:
        token.receiver.expect(name, "prompt", plan.target, plan.skipped)

    plan.say(name, prompt.sender, token.address, expect)
    plan.until_put(name, prompt.sender, layout)
    prompt.sender.finish(name, name.encode())
    arrived, sent = token.event(), prompt.event()
    assert isinstance(arrived, Arrived), arrived
    assert isinstance(sent, Sent), sent
    assert (arrived.transfer_id, arrived.payload) == (name, name.encode())
    assert sent.stats == arrived.stats
    assert_same(split(layout, token.cache.ravel()), plan.moved(layout, before, after, BLOCKS))
    assert_same(split(layout, prompt.cache.ravel()), before)
    return arrived


@given(rng=st.randoms(use_true_random=False))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_what_is_said_of_chunks_moves_what_is_missing_and_nothing_else(
    pair: tuple[LocalMachine, LocalMachine], rng: random.Random
) -> None:
    prompt, token = pair
    plan = draw_plan(rng, LAYERS, BLOCKS, BLOCKS)
    stats = carry(plan, prompt, token).stats
    block_bytes = prompt.settings.layout.block_bytes(0)
    assert stats.bytes == LAYERS * len(plan.target) * block_bytes
    assert stats.early_bytes == plan.early_entries() * block_bytes


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_a_cancel_between_chunks_is_the_end_of_writing(
    small_pair: tuple[LocalMachine, LocalMachine], end: str
) -> None:
    prompt, token = small_pair
    token.receiver.expect("t", "prompt", [4, 5, 6, 7], skipped=1)
    prompt.sender.begin("t", token.address, [1, 2, 3], table_blocks=5)
    for layer in range(LAYERS):
        prompt.sender.layer_ready(["t"], layer, [3])
    wanted = prompt.cache[:, [2, 3]]
    eventually(lambda: bool((token.cache[:, [4, 5]] == wanted).all()))
    if end == "sender":
        prompt.sender.cancel("t")
        assert prompt.event() == Cancelled("t")
        assert token.event() == Failed("t", "cancelled by the sender")
    else:
        token.receiver.cancel("t")
        assert token.event() == Released("t")
        assert prompt.event() == Failed("t", "cancelled by the receiver")
    token.cache[:] = MARK
    prompt.sender.extend("t", [8, 9])
    prompt.sender.layer_ready(["t"], 0, [5])
    prompt.sender.held("t", 5)
    prompt.sender.finish("t", b"")
    # A second transfer over the same link is over once all that was seen.
    token.receiver.expect("next", "prompt", [0])
    prompt.sender.begin("next", token.address, [0])
    prompt.sender.finish("next", b"")
    assert isinstance(token.event(), Arrived)
    assert isinstance(prompt.event(), Sent)
    assert (token.cache[:, 1:] == MARK).all()


@pytest.mark.parametrize("is_granted_first", [True, False])
def test_a_grant_that_does_not_fit_the_table(
    small_pair: tuple[LocalMachine, LocalMachine], is_granted_first: bool
) -> None:
    prompt, token = small_pair
    if is_granted_first:
        token.receiver.expect("t", "prompt", [1, 2], skipped=3)
        prompt.sender.begin("t", token.address, [1], table_blocks=6)
    else:
        prompt.sender.begin("t", token.address, [1], table_blocks=6)
        token.receiver.expect("t", "prompt", [1, 2], skipped=3)
    reason = "2 blocks granted beside 3 held already for 6"
    assert prompt.event() == Failed("t", reason)
    assert token.event() == Failed("t", reason)


@pytest.mark.parametrize("said", ["held", "a layer", "the whole table", "finish"])
def test_what_is_said_of_blocks_that_nobody_named_fails_the_transfer(
    small_pair: tuple[LocalMachine, LocalMachine], said: str
) -> None:
    """As where the table is never completed."""
    prompt, token = small_pair
    token.receiver.expect("t", "prompt", [1, 2, 3])
    prompt.sender.begin("t", token.address, [1], table_blocks=3)
    prompt.sender.extend("t", [2])
    prompt.sender.held("t", 2)
    if said == "held":
        prompt.sender.held("t", 3)
    elif said == "finish":
        prompt.sender.finish("t", b"")
    else:
        prompt.sender.layer_ready(["t"], 1, [3] if said == "a layer" else None)
    for machine in (prompt, token):
        event = machine.event()
        assert isinstance(event, Failed) and "2 of 3 are known" in event.reason


def test_a_layer_may_come_again_until_it_is_complete(
    small_pair: tuple[LocalMachine, LocalMachine],
) -> None:
    prompt, token = small_pair
    token.receiver.expect("t", "prompt", [1, 2, 3])
    prompt.sender.begin("t", token.address, [1, 2, 3])
    for upto in (2, 2, 1, 0, 3):
        prompt.sender.layer_ready(["t"], 0, [upto])
    moved = 3 * SMALL.block_bytes(0)
    eventually(lambda: prompt.sender._transfers["t"].put_bytes == moved)
    prompt.sender.layer_ready(["t"], 0, [3])
    for machine in (prompt, token):
        event = machine.event()
        assert isinstance(event, Failed) and "layer 0 was reported twice" in event.reason


def test_chunks_of_several_transfers_in_one_report(
    small_pair: tuple[LocalMachine, LocalMachine],
) -> None:
    prompt, token = small_pair
    tables = {"a": ([3, 4, 5], [10, 11, 12]), "b": ([0, 7], [1, 0])}
    for name, (source, target) in tables.items():
        token.receiver.expect(name, "prompt", target)
        prompt.sender.begin(name, token.address, source)
    for layer in range(LAYERS - 1):
        prompt.sender.layer_ready(["a", "gone", "b"], layer, [1, 9, 2])
    for layer in range(LAYERS - 1):
        prompt.sender.layer_ready(["a"], layer, [3])
    put = {"a": 3, "b": 2}
    for name, entries in put.items():
        transfer = prompt.sender._transfers[name]
        early = entries * (LAYERS - 1) * SMALL.block_bytes(0)
        eventually(lambda of=transfer, nbytes=early: of.put_bytes == nbytes)
        prompt.sender.finish(name, b"")
        assert isinstance(event := token.event(), Arrived), event
        source, target = tables[name]
        np.testing.assert_array_equal(token.cache[:, target], prompt.cache[:, source])


def test_chunks_that_come_seldom_are_waited_for_each_anew(transport: str) -> None:
    """All together they take longer than a transfer may be idle."""
    warm_up(transport)
    deadlines = Deadlines(idle_s=1.2)
    with machines(
        Settings("prompt", SMALL, 1, transport=transport, deadlines=deadlines),
        Settings("token", SMALL, 2, deadlines=deadlines),
    ) as (prompt, token):
        token.receiver.expect("t", "prompt", [5, 6, 7, 8, 9])
        prompt.sender.begin("t", token.address, [], table_blocks=5)
        for upto in range(1, 6):
            prompt.sender.extend("t", [upto])
            prompt.sender.held("t", upto)
            time.sleep(0.4)
        prompt.sender.finish("t", b"")
        assert isinstance(event := token.event(), Arrived), event
        np.testing.assert_array_equal(token.cache[:, 5:10], prompt.cache[:, 1:6])
        assert isinstance(event := prompt.event(), Sent), event
        prompt.sender.begin("u", token.address, [1], table_blocks=2)
        token.receiver.expect("u", "prompt", [1, 2])
        prompt.sender.held("u", 1)
        assert isinstance(event := prompt.event(), Failed), event  # no second chunk
        assert isinstance(event := token.event(), Failed), event


def test_arguments_that_make_no_sense() -> None:
    with machines(Settings("prompt", SMALL, 1), Settings("token", SMALL, 2)) as (prompt, token):
        begin, extend = prompt.sender.begin, prompt.sender.extend
        with pytest.raises(ValueError, match="2 blocks where table_blocks is 1"):
            begin("t", token.address, [1, 2], table_blocks=1)
        with pytest.raises(ValueError, match="blocks is empty"):
            begin("t", token.address, [])
        begin("t", token.address, [1, 2], table_blocks=4)
        with pytest.raises(ValueError, match="3 blocks more where 2 of 4"):
            extend("t", [3, 4, 5])
        with pytest.raises(ValueError, match="named before"):
            extend("t", [3, 2])
        with pytest.raises(ValueError, match="named twice"):
            extend("t", [3, 3])
        with pytest.raises(ValueError, match="blocks 3 to 24 of a cache of 24"):
            extend("t", [3, 24])
        with pytest.raises(ValueError, match="argument 2 is longer"):
            prompt.sender.layer_ready(["t"], 0, [1, 2])
        extend("t", [])
        extend("never", [1])
        extend("t", [3, 0])  # the refused ones have left nothing behind
        with pytest.raises(ValueError, match="skipped is -1"):
            token.receiver.expect("t", "prompt", [1], skipped=-1)
        with pytest.raises(ValueError, match="blocks is empty"):
            token.receiver.expect("t", "prompt", [])
        token.receiver.expect("t", "prompt", [9, 8, 7, 6])
        prompt.sender.finish("t", b"")
        assert isinstance(event := token.event(), Arrived), event
        np.testing.assert_array_equal(token.cache[:, [9, 8, 7, 6]], prompt.cache[:, [1, 2, 3, 0]])
