"""What two ends prove to each other, and the keys that they do it with."""

import hmac
import struct
from dataclasses import dataclass
from enum import IntEnum
from typing import Final

PROTOCOL_VERSION: Final = 5
"""Of the handshake and of all that is said behind it, at either door."""
NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
BINDING_BYTES: Final = 32
ID_BYTES: Final = 255
"""An id's UTF-8 is no longer; it travels in a field of one byte more, which says how long it is."""
NO_BINDING: Final = bytes(BINDING_BYTES)
"""In the place of a certificate's hash on a connection without TLS."""

_MAGIC: Final = b"splitws\n"
_PREAMBLE: Final = struct.Struct("!8sHB")
PREAMBLE_BYTES: Final = _PREAMBLE.size
KEY_DIFFERS: Final = (
    "the cluster key differs: set the same SPLITWISE_CLUSTER_KEY on all machines of a cluster"
)


class HandshakeError(Exception):
    """The two ends do not go together, or one breaks the protocol; says why and what to do."""


class KeyDiffersError(HandshakeError):
    """They know different cluster keys."""


class Purpose(IntEnum):
    """What a connection is for; each has a door and keys of its own."""

    CONTROL = 1
    """A worker's words with the cluster scheduler."""
    TRANSFER = 2
    """A cache's way from machine to machine."""


class Role(IntEnum):
    INITIATOR = 1
    RESPONDER = 2


def preamble(purpose: Purpose) -> bytes:
    """The first that either end says. Its form outlives all versions."""
    return _PREAMBLE.pack(_MAGIC, PROTOCOL_VERSION, purpose)


def check_preamble(theirs: bytes, purpose: Purpose) -> None:
    """
    Raises:
        HandshakeError: theirs is of another protocol, version or purpose.
    """
    magic, version, number = _PREAMBLE.unpack(theirs)
    if magic != _MAGIC:
        raise HandshakeError(
            f"the peer begins with {theirs!r}, which is no handshake of splitwise: is the address "
            "right, and the same release (and the same choice of TLS) on both sides?"
        )
    if version != PROTOCOL_VERSION:
        raise HandshakeError(
            f"the peer speaks protocol version {version}, this side {PROTOCOL_VERSION}: install "
            "the same release of splitwise everywhere"
        )
    if number != purpose:
        named = {kind.value: kind.name.lower() for kind in Purpose}
        raise HandshakeError(
            f"the peer's connection is for {named.get(number, number)}, this one for "
            f"{purpose.name.lower()}: is that the right port?"
        )


def id_field(name: str) -> bytes:
    """An id in its field of fixed length.

    Raises:
        HandshakeError: it is empty or too long, or no text.
    """
    try:
        encoded = name.encode()
    except UnicodeEncodeError as error:
        raise HandshakeError(f"id {name[:40]!r} is no text ({error})") from error
    if not 0 < len(encoded) <= ID_BYTES:
        raise HandshakeError(
            f"id {name[:40]!r} has {len(encoded)} bytes: a machine's has 1 to {ID_BYTES}"
        )
    return bytes([len(encoded)]) + encoded.ljust(ID_BYTES, b"\0")


def id_of(field: bytes) -> str:
    """
    Raises:
        HandshakeError: no id is written so.
    """
    length = field[0]
    try:
        name = field[1 : 1 + length].decode()
    except UnicodeDecodeError as error:
        raise HandshakeError(f"the peer's id is no text ({error})") from error
    if not name or any(field[1 + length :]):
        raise HandshakeError("the peer's id is empty, or more follows it in its field")
    return name


@dataclass(frozen=True)
class Transcript:
    """What both ends have seen when they prove themselves."""

    purpose: Purpose
    initiator_id: str
    responder_id: str
    initiator_nonce: bytes
    responder_nonce: bytes
    binding: bytes
    """SHA-256 of the certificate that the responder shows, or ``NO_BINDING``."""

    def proof(self, cluster_key: str, role: Role, claims: bytes = b"") -> bytes:
        """That ``role`` knows the key, saw all of this, and claims ``claims``."""
        said = (
            preamble(self.purpose)
            + bytes([role])
            + id_field(self.initiator_id)
            + id_field(self.responder_id)
            + self.initiator_nonce
            + self.responder_nonce
            + self.binding
            + claims  # alone of variable length, and last
        )
        return hmac.digest(_derived_key(cluster_key, self.purpose, role), said, "sha256")


def _derived_key(cluster_key: str, purpose: Purpose, role: Role) -> bytes:
    """HKDF-SHA256 (RFC 5869) with one block of output."""
    extracted = hmac.digest(b"splitwise cluster key", cluster_key.encode(), "sha256")
    info = f"splitwise {PROTOCOL_VERSION} {purpose.name} {role.name}".encode()
    return hmac.digest(extracted, info + b"\1", "sha256")
