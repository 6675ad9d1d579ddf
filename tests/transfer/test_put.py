"""Blocks from one process's cache into another's, compared byte for byte with numpy's answer."""

from collections.abc import Iterator

import numpy as np
import pytest
from remote_machine import RemoteMachine
from transfer_machines import TRANSPORTS, LocalMachine, Settings, content

from splitwise.transfer import Arrived, CacheLayout, Sent
from waiting import eventually

LAYOUTS = {
    "small chunks": (CacheLayout.flat(5, 64, 16, 96), CacheLayout.flat(5, 40, 16, 96)),
    "one layer": (CacheLayout.flat(1, 20, 16, 4096), CacheLayout.flat(1, 80, 16, 4096)),
    # Fifteen chunks of this size are cut into two stripes over TCP.
    "large chunks": (CacheLayout.flat(4, 48, 16, 49_152), CacheLayout.flat(4, 48, 16, 49_152)),
}


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=LAYOUTS)
def pair(
    request: pytest.FixtureRequest, transport: str
) -> Iterator[tuple[RemoteMachine, LocalMachine]]:
    """A prompt machine in its own process, and a token machine here."""
    source, target = LAYOUTS[request.param]
    prompt = RemoteMachine(Settings("prompt-0", source, 1, transport=transport, checksum=True))
    token = LocalMachine(Settings("token-0", target, 2))
    yield prompt, token
    prompt.close()
    token.close()


def test_interleaved_transfers_land_where_granted_and_nowhere_else(
    pair: tuple[RemoteMachine, LocalMachine], transport: str
) -> None:
    prompt, token = pair
    rng = np.random.default_rng(3)
    source_content, expected = content(prompt.settings), content(token.settings)
    layers = token.settings.layout.layers
    free = list(rng.permutation(token.settings.layout.blocks))
    tables = {}
    for index, length in enumerate((1, 15, 3)):
        source = rng.permutation(prompt.settings.layout.blocks)[:length]
        if index == 1:
            source.sort()
        target, free = free[:length], free[length:]
        tables[f"t{index}"] = ([int(b) for b in source], [int(b) for b in target])
        expected[:, target] = source_content[:, source]

    token.receiver.expect("t0", "prompt-0", tables["t0"][1])  # the grant comes first
    for name in ("t0", "t1"):
        prompt.call("sender.begin", name, token.address, tables[name][0])
    for layer in range(layers):
        prompt.call("sender.layer_ready", ["t0", "t1"], layer)
        if layer == 0:
            token.receiver.expect("t2", "prompt-0", tables["t2"][1])
    prompt.call("sender.begin", "t2", token.address, tables["t2"][0], True)
    prompt.call("sender.finish", "t0", b"a")
    prompt.call("sender.finish", "t1", b"b")
    token.receiver.expect("t1", "prompt-0", tables["t1"][1])  # the grant comes last
    prompt.call("sender.finish", "t2", b"c")

    arrived, sent = {}, {}
    for _ in tables:
        event = token.event()
        assert isinstance(event, Arrived), event
        arrived[event.transfer_id] = event
        done = prompt.event()
        assert isinstance(done, Sent), done
        sent[done.transfer_id] = done
    np.testing.assert_array_equal(token.cache, expected)
    assert {name: event.payload for name, event in arrived.items()} == {
        "t0": b"a",
        "t1": b"b",
        "t2": b"c",
    }
    for name, (source, _) in tables.items():
        stats = arrived[name].stats
        assert stats == sent[name].stats
        assert stats.transport == transport
        assert stats.bytes == len(source) * token.settings.layout.block_bytes(0) * layers
        assert 0 <= stats.early_bytes <= stats.bytes
        assert stats.visible_s >= 0
    if transport == "tcp" and token.settings.layout.block_bytes(0) > 40_000:
        assert arrived["t1"].stats.puts == 2 * layers
    assert arrived["t1"].stats.early_bytes == 0  # nothing can be put before the grant


@pytest.mark.parametrize("layers", [0, 5, 6])
def test_layers_go_when_they_are_ready(transport: str, layers: int) -> None:
    """One by one, or all of them from the start; what is left when the prompt ends goes then."""
    layout = CacheLayout.flat(6, 16, 16, 1024)
    prompt = LocalMachine(Settings("prompt-0", layout, 1, transport=transport))
    token = LocalMachine(Settings("token-0", layout, 2))
    token.receiver.expect("long", "prompt-0", [4, 5, 9])
    prompt.sender.begin("long", token.address, [0, 1, 2], all_ready=layers == 6)
    for layer in range(layers if layers < 6 else 0):
        prompt.sender.layer_ready(["long"], layer)
    # A second transfer over the same link, which is over once all notes so far were seen.
    token.receiver.expect("short", "prompt-0", [0])
    prompt.sender.begin("short", token.address, [0])
    prompt.sender.finish("short", b"")
    assert isinstance(token.event(), Arrived)
    assert isinstance(prompt.event(), Sent)
    # The bytes are there before the sender's task has counted them.
    eventually(lambda: prompt.sender._transfers["long"].put_bytes == layers * 3 * 1024)
    there, untouched = token.cache[:, [4, 5, 9]], content(token.settings)[:, [4, 5, 9]]
    np.testing.assert_array_equal(there[:layers], prompt.cache[:layers, [0, 1, 2]])
    np.testing.assert_array_equal(there[layers:], untouched[layers:])
    prompt.sender.finish("long", b"")
    event = token.event()
    assert isinstance(event, Arrived)
    assert event.stats.early_bytes == layers * 3 * 1024
    # Blocks 0 to 2 go to 4, 5 and 9: two runs a layer. TCP and NIXL send this little in one piece.
    assert event.stats.puts == 6 * (2 if transport == "shared_memory" else 1)
    np.testing.assert_array_equal(token.cache[:, [4, 5, 9]], prompt.cache[:, [0, 1, 2]])
    prompt.close()
    token.close()


def test_both_ways_at_once_between_two_machines(transport: str) -> None:
    layout = CacheLayout.flat(3, 20, 16, 512)
    left = LocalMachine(Settings("left", layout, 1, transport=transport))
    right = LocalMachine(Settings("right", layout, 2, transport=transport))
    left_content, right_content = content(left.settings), content(right.settings)
    for index in range(8):
        right.receiver.expect(f"r{index}", "left", [index])
        left.receiver.expect(f"l{index}", "right", [index])
        left.sender.begin(f"r{index}", right.address, [19 - index])
        right.sender.begin(f"l{index}", left.address, [19 - index])
    for index in range(8):
        left.sender.finish(f"r{index}", b"")
        right.sender.finish(f"l{index}", b"")
    for machine in (left, right):
        kinds = [type(machine.event()) for _ in range(16)]
        assert kinds.count(Arrived) == kinds.count(Sent) == 8
    np.testing.assert_array_equal(left.cache[:, :8], right_content[:, 19:11:-1])
    np.testing.assert_array_equal(right.cache[:, :8], left_content[:, 19:11:-1])
    left.close()
    right.close()
