"""How two ends of a new connection make sure of each other before anything else is said.

1. The sender says Hello: who it is, its cache layout, the transport it wants, a nonce.
2. The receiver answers with a Challenge: who it is, a nonce.
3. The sender's Proof is an HMAC-SHA256 with the cluster key over its role, Hello and Challenge.
4. The receiver checks proof, layout and transport, and answers Welcome with a proof of its own,
   or Refused with the reason.

The key never travels. What follows the handshake is neither encrypted nor signed: machines of a
cluster share a network that others cannot write to.
"""

import hmac
import secrets
from collections.abc import Callable
from typing import TypeVar

from splitwise.transfer.channel import Channel
from splitwise.transfer.errors import LinkError, LinkLost
from splitwise.transfer.frames import (
    HANDSHAKE_LIMIT_BYTES,
    Challenge,
    Hello,
    Message,
    Proof,
    Refused,
    Welcome,
    encode,
)
from splitwise.transfer.layout import CacheLayout

NONCE_BYTES = 32
M = TypeVar("M", bound=Message)
KEY_DIFFERS = "the cluster key differs: start all machines of a cluster with the same one"


async def introduce(
    channel: Channel,
    machine_id: str,
    receiver_id: str,
    key: str,
    layout: CacheLayout,
    transport: str,
    link: int | None = None,
) -> Welcome:
    """The sender's side.

    Raises:
        LinkError: refused, or the other end is not ``receiver_id`` or does not know the key.
    """
    hello = Hello(machine_id, secrets.token_bytes(NONCE_BYTES), layout, transport, link)
    await channel.send_message(hello)
    challenge = await _receive(channel, Challenge)
    if challenge.machine_id != receiver_id:
        raise LinkError(f"{challenge.machine_id!r} answered in the place of {receiver_id!r}")
    await channel.send_message(Proof(_mac(key, "sender", hello, challenge)))
    welcome = await _receive(channel, Welcome)
    if not hmac.compare_digest(welcome.mac, _mac(key, "receiver", hello, challenge)):
        raise LinkError(KEY_DIFFERS)
    return welcome


async def admit(
    channel: Channel,
    machine_id: str,
    key: str,
    check: Callable[[Hello], None],
    welcome: Callable[[Hello, bytes], Welcome],
) -> tuple[Hello, Welcome]:
    """The receiver's side. ``check`` raises LinkError to refuse a sender that has the key.

    Raises:
        LinkError: refused; the sender has been told why.
    """
    try:
        hello = await _receive(channel, Hello)
        challenge = Challenge(machine_id, secrets.token_bytes(NONCE_BYTES))
        await channel.send_message(challenge)
        proof = await _receive(channel, Proof)
        if not hmac.compare_digest(proof.mac, _mac(key, "sender", hello, challenge)):
            raise LinkError(KEY_DIFFERS)
        check(hello)
    except LinkLost:
        raise
    except LinkError as refusal:
        await channel.send_message(Refused(str(refusal)))
        raise
    welcomed = welcome(hello, _mac(key, "receiver", hello, challenge))
    await channel.send_message(welcomed)
    return hello, welcomed


def check_layout(mine: CacheLayout, theirs: CacheLayout) -> None:
    """
    Raises:
        LinkError: blocks of one cache do not fit into the other.
    """
    if mine.accepts(theirs):
        return
    raise LinkError(
        f"cache layouts differ, receiver {mine}, sender {theirs}: "
        "run the same model, dtype and block size on both machines"
    )


def _mac(key: str, role: str, hello: Hello, challenge: Challenge) -> bytes:
    said = role.encode() + b"\0" + encode(hello) + encode(challenge)
    return hmac.digest(key.encode(), said, "sha256")


async def _receive(channel: Channel, kind: type[M]) -> M:
    message = await channel.receive_message(HANDSHAKE_LIMIT_BYTES)
    if isinstance(message, Refused):
        raise LinkError(f"refused: {message.reason}")
    if not isinstance(message, kind):
        raise LinkError(f"{type(message).__name__} where {kind.__name__} was due")
    return message
