"""Lines of bytes that come in any pieces."""

from splitwise.launch.lines import CHUNK_BYTES, LINE_LIMIT_BYTES, Lines


def test_lines_are_the_same_however_they_are_cut_into_chunks() -> None:
    too_long, longest = b"y" * (LINE_LIMIT_BYTES + 1), b"z" * LINE_LIMIT_BYTES
    said = b"\n".join([b"one", b"", b"two\r", too_long, longest, b"end"])
    expected = ["one", "", "two"]
    expected += ["y" * LINE_LIMIT_BYTES + f" ... (cut at {LINE_LIMIT_BYTES} bytes)"]
    expected += ["z" * LINE_LIMIT_BYTES, "end"]
    for size in (1, 2, 7, LINE_LIMIT_BYTES - 1, LINE_LIMIT_BYTES, len(said)):
        lines = Lines()
        heard = [
            line
            for start in range(0, len(said), size)
            for line in lines.feed(said[start : start + size])
        ]
        assert heard + lines.rest() == expected, size


def test_a_line_without_end_takes_no_memory() -> None:
    lines = Lines()
    heard = sum(len(line) for _ in range(10_000) for line in lines.feed(b"x" * CHUNK_BYTES))
    assert heard < LINE_LIMIT_BYTES + 100
    assert lines.rest() == []
