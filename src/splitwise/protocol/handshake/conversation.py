"""Who says what when; see the package for the order and the reasons.

A caller sets the deadline of the whole, and closes the connection when an exception is raised.
"""

import hmac
import secrets
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, Protocol

from splitwise.protocol.handshake.proofs import (
    ID_BYTES,
    KEY_DIFFERS,
    NO_BINDING,
    NONCE_BYTES,
    PREAMBLE_BYTES,
    PROOF_BYTES,
    HandshakeError,
    KeyDiffersError,
    Purpose,
    Role,
    Transcript,
    check_preamble,
    id_field,
    id_of,
    preamble,
)

_HELLO: Final = struct.Struct(f"!{NONCE_BYTES}s{ID_BYTES + 1}s")
_INITIATORS_PROOF: Final = struct.Struct(f"!B{PROOF_BYTES}sI")
"""Verdict, proof, bytes of the claims that follow."""


class Stream(Protocol):
    """The bytes of a connection. Both raise EOFError or OSError, or an error of the stream's own
    kind, where it ends."""

    async def read(self, nbytes: int) -> bytes:
        """Exactly so many, and no byte further."""

    async def write(self, data: bytes) -> None: ...


class Verdict(IntEnum):
    """On what the other end has said."""

    GOOD = 0
    KEY_DIFFERS = 1
    ANOTHER_ID = 2


@dataclass(frozen=True)
class Party:
    """One end of a connection, as it takes part."""

    purpose: Purpose
    id: str
    cluster_key: str
    binding: bytes = NO_BINDING


@dataclass(frozen=True)
class Introduced:
    """Who dialled, and what it claims: both proved."""

    id: str
    claims: bytes


async def initiate(stream: Stream, party: Party, responder_id: str, claims: bytes) -> None:
    """The side that dials. Returns once both ends have proved themselves.

    Raises:
        KeyDiffersError: one of them knows another cluster key.
        HandshakeError: another version or purpose, or the answer of another than ``responder_id``.
    """
    nonce = secrets.token_bytes(NONCE_BYTES)
    await stream.write(preamble(party.purpose) + _HELLO.pack(nonce, id_field(party.id)))
    check_preamble(await stream.read(PREAMBLE_BYTES), party.purpose)
    their_nonce, field = _HELLO.unpack(await stream.read(_HELLO.size))
    if (answered := id_of(field)) != responder_id:
        await stream.write(_give_up(Verdict.ANOTHER_ID))
        raise HandshakeError(f"{answered!r} answered in the place of {responder_id!r}")
    seen = Transcript(party.purpose, party.id, answered, nonce, their_nonce, party.binding)
    their_proof = await stream.read(PROOF_BYTES)
    if not hmac.compare_digest(their_proof, seen.proof(party.cluster_key, Role.RESPONDER)):
        await stream.write(_give_up(Verdict.KEY_DIFFERS))
        raise KeyDiffersError(_key_differs(party))
    proof = seen.proof(party.cluster_key, Role.INITIATOR, claims)
    await stream.write(_INITIATORS_PROOF.pack(Verdict.GOOD, proof, len(claims)) + claims)
    (verdict,) = await stream.read(1)
    if verdict != Verdict.GOOD:
        raise KeyDiffersError(_key_differs(party))


async def respond(stream: Stream, party: Party, claims_limit_bytes: int) -> Introduced:
    """The side that listens.

    Raises:
        KeyDiffersError: one of them knows another cluster key.
        HandshakeError: another version or purpose, or what is no handshake; or the initiator
            looked for another.
    """
    await stream.write(preamble(party.purpose))
    check_preamble(await stream.read(PREAMBLE_BYTES), party.purpose)
    their_nonce, field = _HELLO.unpack(await stream.read(_HELLO.size))
    their_id, nonce = id_of(field), secrets.token_bytes(NONCE_BYTES)
    seen = Transcript(party.purpose, their_id, party.id, their_nonce, nonce, party.binding)
    proof = seen.proof(party.cluster_key, Role.RESPONDER)
    await stream.write(_HELLO.pack(nonce, id_field(party.id)) + proof)
    step = await stream.read(_INITIATORS_PROOF.size)
    verdict, their_proof, claims_bytes = _INITIATORS_PROOF.unpack(step)
    _check_verdict(verdict, their_id, party)
    if claims_bytes > claims_limit_bytes:
        raise HandshakeError(
            f"claims of {claims_bytes} bytes; at most {claims_limit_bytes} are read"
        )
    claims = await stream.read(claims_bytes)
    expected = seen.proof(party.cluster_key, Role.INITIATOR, claims)
    if not hmac.compare_digest(their_proof, expected):
        await stream.write(bytes([Verdict.KEY_DIFFERS]))
        raise KeyDiffersError(f"{their_id!r}: {_key_differs(party)}")
    await stream.write(bytes([Verdict.GOOD]))
    return Introduced(their_id, claims)


def _key_differs(party: Party) -> str:
    if party.binding == NO_BINDING:
        return KEY_DIFFERS
    return f"{KEY_DIFFERS}; where it is, someone in between shows a certificate of their own"


def _give_up(verdict: Verdict) -> bytes:
    return _INITIATORS_PROOF.pack(verdict, bytes(PROOF_BYTES), 0)


def _check_verdict(verdict: int, their_id: str, party: Party) -> None:
    if verdict == Verdict.KEY_DIFFERS:
        raise KeyDiffersError(f"{their_id!r} finds that {_key_differs(party)}")
    if verdict == Verdict.ANOTHER_ID:
        raise HandshakeError(f"{their_id!r} was looking for another machine at this address")
    if verdict != Verdict.GOOD:
        raise HandshakeError(f"verdict {verdict} of {their_id!r} is none of this protocol's")
