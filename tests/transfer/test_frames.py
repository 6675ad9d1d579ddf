"""Frames."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitwise.transfer.errors import LinkError
from splitwise.transfer.frames import (
    HEADER,
    PROTOCOL_VERSION,
    Done,
    Grant,
    Handles,
    Progress,
    Window,
    body_bytes,
    decode,
    encode,
)


@pytest.mark.parametrize(
    "message",
    [
        Grant(7, "transfer", [3, 1, 2]),
        Grant(8, "the rest", [3], skipped=5),
        Window(b"\x00agent", [2**48 - 1, 0], 3),
        Handles([b"\x00", b""]),
        Done(7, b"\x00\xff", 10, 3, 0.25, 12.5, [[1, 0], [2**32 - 1]]),
        Done(7, b"", 0, 1, 0.0),
        Progress(7, 2**40),
    ],
)
def test_a_frame_comes_back_as_it_went(message: Grant | Done) -> None:
    frame = encode(message)
    header, body = frame[: HEADER.size], frame[HEADER.size :]
    assert body_bytes(header, len(body)) == len(body)
    assert decode(body) == message


def test_another_version_is_refused_with_the_remedy() -> None:
    with pytest.raises(LinkError, match=r"protocol 9, this machine 5: run the same release"):
        body_bytes(HEADER.pack(9, 10), 100)


def test_a_frame_over_the_limit_is_refused() -> None:
    with pytest.raises(LinkError, match="101 bytes where at most 100"):
        body_bytes(HEADER.pack(PROTOCOL_VERSION, 101), 100)


@given(st.binary(max_size=200))
def test_any_bytes_give_a_message_or_a_link_error(body: bytes) -> None:
    try:
        message = decode(body)
    except LinkError as error:
        assert "bad frame" in str(error)
    else:
        assert decode(encode(message)[HEADER.size :]) == message
