"""What the handshake gives whom: nothing to those without the key, and nothing at another door."""

import asyncio
import hashlib
import hmac
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace

import pytest

from splitwise.protocol.handshake.conversation import Introduced, Party, initiate, respond
from splitwise.protocol.handshake.proofs import (
    PROTOCOL_VERSION,
    HandshakeError,
    KeyDiffersError,
    Purpose,
)

KEY = "the cluster's key"
PROMPT = Party(Purpose.TRANSFER, "prompt", KEY)
TOKEN = Party(Purpose.TRANSFER, "token", KEY)
WORKER = Party(Purpose.CONTROL, "prompt", KEY)
SCHEDULER = Party(Purpose.CONTROL, "scheduler", KEY)
CLAIMS = b"what I am"
LIMIT_BYTES = 100
PREAMBLE, NONCE, ID, PROOF = 11, 32, 256, 32
"""Bytes, in this order on the wire."""
HELLO = PREAMBLE + NONCE + ID


@dataclass
class End:
    """One end of a connection in memory, which keeps what it has said and read."""

    incoming: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    outgoing: asyncio.StreamReader = field(default_factory=asyncio.StreamReader)
    said: bytes = b""
    has_read: bytes = b""

    async def read(self, nbytes: int) -> bytes:
        data = await self.incoming.readexactly(nbytes)
        self.has_read += data
        return data

    async def write(self, data: bytes) -> None:
        self.said += data
        self.outgoing.feed_data(data)

    def hang_up(self) -> None:
        if not self.outgoing.at_eof():
            self.outgoing.feed_eof()

    def other(self) -> "End":
        return End(self.outgoing, self.incoming)


Outcome = Introduced | Exception | None


async def outcome(end: End, work: Awaitable[Introduced | None]) -> Outcome:
    try:
        return await asyncio.wait_for(work, 10)
    except (HandshakeError, EOFError) as error:
        return error
    finally:
        end.hang_up()


def dialling(end: End, party: Party, to: str, claims: bytes = CLAIMS) -> Awaitable[Outcome]:
    return outcome(end, initiate(end, party, to, claims))


def listening(end: End, party: Party) -> Awaitable[Outcome]:
    return outcome(end, respond(end, party, LIMIT_BYTES))


async def meet(dials: Party, listens: Party, to: str = "") -> tuple[Outcome, Outcome, End, End]:
    near = End()
    far = near.other()
    ends = dialling(near, dials, to or listens.id), listening(far, listens)
    first, second = await asyncio.gather(*ends)
    return first, second, near, far


async def test_both_ends_know_each_other_and_the_claims() -> None:
    for dials, listens in ((PROMPT, TOKEN), (WORKER, SCHEDULER)):
        first, second, _, _ = await meet(dials, listens)
        assert first is None and second == Introduced("prompt", CLAIMS)


async def test_the_proofs_are_those_that_are_documented() -> None:
    """Computed again with nothing of ours."""
    _, _, near, far = await meet(PROMPT, TOKEN)

    def proof(role_number: int, role: str, claims: bytes) -> bytes:
        extracted = hmac.new(b"splitwise cluster key", KEY.encode(), hashlib.sha256).digest()
        info = f"splitwise {PROTOCOL_VERSION} TRANSFER {role}".encode() + b"\x01"
        key = hmac.new(extracted, info, hashlib.sha256).digest()
        mac = hmac.new(key, b"splitws\n" + PROTOCOL_VERSION.to_bytes(2, "big"), hashlib.sha256)
        mac.update(bytes([2, role_number]))
        mac.update(b"\x06prompt" + bytes(249) + b"\x05token" + bytes(250))
        mac.update(near.said[PREAMBLE : PREAMBLE + NONCE] + far.said[PREAMBLE : PREAMBLE + NONCE])
        mac.update(bytes(32) + claims)
        return mac.digest()

    assert far.said[HELLO : HELLO + PROOF] == proof(2, "RESPONDER", b"")
    assert near.said[HELLO : HELLO + 1 + PROOF] == b"\0" + proof(1, "INITIATOR", CLAIMS)


async def test_another_key_is_told_apart_by_both_and_costs_the_initiator_no_proof() -> None:
    stranger = replace(TOKEN, cluster_key="another")
    first, second, near, _ = await meet(PROMPT, stranger)
    for end in (first, second):
        assert isinstance(end, KeyDiffersError) and "SPLITWISE_CLUSTER_KEY" in str(end)
    assert near.said[HELLO:] == b"\1" + bytes(PROOF + 4)


async def test_another_id_than_the_one_dialled() -> None:
    first, second, near, _ = await meet(PROMPT, TOKEN, to="another")
    assert "'token' answered in the place of 'another'" in str(first)
    assert "was looking for another machine" in str(second)
    assert near.said[HELLO:] == b"\2" + bytes(PROOF + 4)


@pytest.mark.parametrize("changed", [0, 1])
async def test_another_version_is_named_by_both_before_all_else(changed: int) -> None:
    near = End()
    far = near.other()
    old = b"splitws\n" + (4).to_bytes(2, "big") + b"\x09whatever an old release says"
    await (near if changed else far).write(old)
    if changed:
        result = await listening(far, TOKEN)
    else:
        result = await dialling(near, PROMPT, "token")
    assert type(result) is HandshakeError and "version 4, this side 5" in str(result)
    spoken = far if changed else near
    assert spoken.said[:10] == b"splitws\n" + (5).to_bytes(2, "big")


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\x16\x03\x01" + bytes(200)])
async def test_what_is_no_handshake_is_no_matter_of_keys(said: bytes) -> None:
    near = End()
    far = near.other()
    await near.write(said)
    result = await listening(far, TOKEN)
    assert type(result) is HandshakeError and "no handshake of splitwise" in str(result)
    assert len(far.said) == PREAMBLE


async def test_the_wrong_door_is_named_by_both() -> None:
    first, second, near, far = await meet(PROMPT, SCHEDULER)
    assert "connection is for control, this one for transfer" in str(first)
    assert "connection is for transfer, this one for control" in str(second)
    assert len(near.said) == HELLO and len(far.said) == PREAMBLE


# Attacks. The attacker sees and changes all bytes, and does not know the key.


async def carry(source: End, target: End, change: Callable[[int, bytes], bytes]) -> None:
    """Pass on what comes, by a change that is told how many bytes went before."""
    passed = 0
    while data := await source.incoming.read(1):
        await target.write(change(passed, data))
        passed += 1
    target.hang_up()


async def between(
    dials: Party,
    listens: Party,
    forth: Callable[[int, bytes], bytes],
    back: Callable[[int, bytes], bytes],
) -> tuple[Outcome, Outcome]:
    """Both ends, with an attacker in the middle who changes what goes forth and back."""
    near, far = End(), End()
    with_near, with_far = near.other(), far.other()
    first, second, _, _ = await asyncio.gather(
        dialling(near, dials, listens.id),
        listening(far, listens),
        carry(with_near, with_far, forth),
        carry(with_far, with_near, back),
    )
    return first, second


def same(_: int, data: bytes) -> bytes:
    return data


def put(at: int, value: bytes) -> Callable[[int, bytes], bytes]:
    """Replace the bytes at ``at``."""

    def change(passed: int, data: bytes) -> bytes:
        inside = at <= passed < at + len(value)
        return value[passed - at : passed - at + 1] if inside else data

    return change


PURPOSE_AT, ID_AT = PREAMBLE - 1, PREAMBLE + NONCE
TO_CONTROL, TO_TRANSFER = put(PURPOSE_AT, b"\1"), put(PURPOSE_AT, b"\2")


@pytest.mark.parametrize("honest", [same, None])
async def test_a_relay_between_two_doors_opens_neither(
    honest: Callable[[int, bytes], bytes] | None,
) -> None:
    """A transfer's link is led to the control door, and a worker's connection to a transfer's."""
    as_token = replace(SCHEDULER, id="token")
    first, second = await between(PROMPT, as_token, honest or TO_CONTROL, honest or TO_TRANSFER)
    assert isinstance(first, HandshakeError) and isinstance(second, HandshakeError)
    as_scheduler = replace(TOKEN, id="scheduler")
    first, second = await between(WORKER, as_scheduler, honest or TO_TRANSFER, honest or TO_CONTROL)
    assert isinstance(first, HandshakeError) and isinstance(second, HandshakeError)


async def test_no_byte_of_it_may_be_changed_on_the_way() -> None:
    """Whatever is changed, at least the end that reads it gives up, and no claim is believed."""
    _, _, near, far = await meet(PROMPT, TOKEN)
    for at in range(len(near.said)):
        _, second = await between(PROMPT, TOKEN, _flip(at), same)
        assert isinstance(second, HandshakeError | EOFError), at
    for at in range(len(far.said)):
        first, _ = await between(PROMPT, TOKEN, same, _flip(at))
        assert isinstance(first, HandshakeError | EOFError), at


def _flip(at: int) -> Callable[[int, bytes], bytes]:
    return lambda passed, data: bytes([data[0] ^ 0x01]) if passed == at else data


async def test_reflection_of_all_that_an_end_says() -> None:
    echo = asyncio.StreamReader()
    result = await dialling(End(echo, echo), PROMPT, "token")
    assert "'prompt' answered in the place of 'token'" in str(result)
    echo = asyncio.StreamReader()
    reflected = End(echo, echo)
    own = asyncio.create_task(listening(reflected, TOKEN))
    while len(reflected.has_read) < PREAMBLE:
        await asyncio.sleep(0)
    assert not own.done()  # its own first words, which say no more than what they are for
    echo.feed_eof()
    assert isinstance(await own, EOFError)


async def test_a_machine_cannot_be_had_to_prove_itself_to_itself() -> None:
    """It dials another; the attacker leads that to its own door, under either name."""
    own_door = replace(PROMPT, id="prompt")
    near, far = End(), End()
    renamed = put(ID_AT, b"\5token" + bytes(250))
    first, second, _, _ = await asyncio.gather(
        dialling(near, PROMPT, "token"),
        listening(far, own_door),
        carry(near.other(), far.other(), same),
        carry(far.other(), near.other(), renamed),
    )
    assert isinstance(first, KeyDiffersError) and isinstance(second, KeyDiffersError)


async def test_a_listeners_proof_is_none_of_a_dialler() -> None:
    """What the responder has just proved is sent back to it, as the initiator's proof."""
    near = End()
    far = near.other()
    listener = asyncio.create_task(listening(far, TOKEN))
    hello = b"\x05token" + bytes(250)
    await near.write(far_preamble(Purpose.TRANSFER) + bytes(NONCE) + hello)
    answer = await near.read(HELLO + PROOF)
    await near.write(b"\0" + answer[HELLO:] + bytes(4))
    assert isinstance(await listener, KeyDiffersError)


def far_preamble(purpose: Purpose) -> bytes:
    return b"splitws\n" + PROTOCOL_VERSION.to_bytes(2, "big") + bytes([purpose])


async def test_a_scheduler_without_the_key_gets_nothing_of_a_worker() -> None:
    """It poses as the scheduler, with the nonce of a transfer that it wants to get in to."""
    token_end = End()
    door = token_end.other()
    admitting = asyncio.create_task(listening(door, TOKEN))
    await token_end.write(far_preamble(Purpose.TRANSFER) + bytes(NONCE) + b"\6prompt" + bytes(249))
    answer = await token_end.read(HELLO + PROOF)
    wanted = answer[PREAMBLE:ID_AT]

    worker_end = End()
    posing = worker_end.other()
    dialled = asyncio.create_task(dialling(worker_end, WORKER, "scheduler"))
    await posing.write(far_preamble(Purpose.CONTROL) + wanted + b"\x09scheduler" + bytes(246))
    await posing.write(answer[HELLO:])  # any proof it can lay hands on
    assert isinstance(await dialled, KeyDiffersError)
    assert worker_end.said[HELLO:] == b"\1" + bytes(PROOF + 4)

    await token_end.write(b"\0" + worker_end.said[HELLO + 1 : HELLO + 1 + PROOF] + bytes(4))
    assert isinstance(await admitting, KeyDiffersError)


async def test_what_a_scheduler_proves_to_anyone_opens_no_transfer() -> None:
    """A stranger dials the scheduler with the nonce that the token machine has just drawn."""
    token_end, scheduler_end = End(), End()
    admitting = asyncio.create_task(listening(token_end.other(), TOKEN))
    proving = asyncio.create_task(listening(scheduler_end.other(), SCHEDULER))
    prompt = b"\6prompt" + bytes(249)
    await token_end.write(far_preamble(Purpose.TRANSFER) + bytes(NONCE) + prompt)
    nonce = (await token_end.read(HELLO + PROOF))[PREAMBLE:ID_AT]
    await scheduler_end.write(far_preamble(Purpose.CONTROL) + nonce + prompt)
    proof = (await scheduler_end.read(HELLO + PROOF))[HELLO:]
    await token_end.write(b"\0" + proof + bytes(4))
    assert isinstance(await admitting, KeyDiffersError)
    scheduler_end.hang_up()
    assert isinstance(await proving, EOFError)


async def test_replays_of_either_side_are_worth_nothing() -> None:
    _, _, near, far = await meet(PROMPT, TOKEN)
    again = End()
    listener = asyncio.create_task(listening(again.other(), TOKEN))
    await again.write(near.said)
    assert isinstance(await listener, KeyDiffersError)
    again = End()
    dialler = asyncio.create_task(dialling(again, PROMPT, "token"))
    await again.other().write(far.said)
    assert isinstance(await dialler, KeyDiffersError)


async def test_what_is_cut_short_is_never_taken_and_what_follows_is_left_alone() -> None:
    _, _, near, far = await meet(PROMPT, TOKEN)
    for length in range(0, len(near.said), 7):
        cut = End()
        await cut.write(near.said[:length])
        cut.hang_up()
        assert isinstance(await listening(cut.other(), TOKEN), EOFError), length
    for length in range(0, len(far.said) - 1, 7):
        cut = End()
        await cut.write(far.said[:length])
        cut.hang_up()
        result = await dialling(cut.other(), PROMPT, "token")
        assert isinstance(result, EOFError | KeyDiffersError), length
    near = End()
    far = near.other()
    work = dialling(near, PROMPT, "token"), listening(far, TOKEN)
    far.outgoing.feed_data(b"")
    await asyncio.gather(*work)
    assert far.has_read == near.said and near.has_read == far.said


async def test_claims_are_bounded_before_they_are_read() -> None:
    near = End()
    far = near.other()
    oversized = bytes(LIMIT_BYTES + 1)
    ends = dialling(near, PROMPT, "token", oversized), listening(far, TOKEN)
    first, second = await asyncio.gather(*ends)
    assert isinstance(first, EOFError)
    assert type(second) is HandshakeError and "claims of 101 bytes; at most 100" in str(second)
    assert len(far.has_read) == HELLO + 1 + PROOF + 4


@pytest.mark.parametrize(
    ("name", "words"), [("", "0 bytes"), ("x" * 256, "256 bytes"), ("é" * 128, "256 bytes")]
)
async def test_an_id_that_has_no_place_is_refused_by_name(name: str, words: str) -> None:
    result = await dialling(End(), replace(PROMPT, id=name), "token")
    assert type(result) is HandshakeError and words in str(result)


@pytest.mark.parametrize(
    "field_", [bytes(256), b"\xff" + b"x" * 255, b"\2\xff\xfe" + bytes(253), b"\1ab" + bytes(253)]
)
async def test_an_id_is_written_in_one_way_only(field_: bytes) -> None:
    near = End()
    listener = asyncio.create_task(listening(near.other(), TOKEN))
    await near.write(far_preamble(Purpose.TRANSFER) + bytes(NONCE) + field_)
    if field_[:2] == b"\xffx":  # 255 bytes are an id
        near.hang_up()
        assert isinstance(await listener, EOFError)
    else:
        assert type(await listener) is HandshakeError


async def test_another_certificate_in_between_is_noticed_by_both() -> None:
    mine, theirs = bytes(range(32)), bytes(range(1, 33))
    first, second, _, _ = await meet(replace(PROMPT, binding=mine), replace(TOKEN, binding=theirs))
    for end in (first, second):
        assert isinstance(end, KeyDiffersError) and "certificate of their own" in str(end)
    first, second, _, _ = await meet(replace(PROMPT, binding=mine), replace(TOKEN, binding=mine))
    assert first is None and isinstance(second, Introduced)
