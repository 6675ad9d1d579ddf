"""What a sender and a receiver say on a new connection before anything else.

1. The cluster's handshake (``splitwise.protocol.handshake``): both prove that they know the key.
   The sender claims its Hello: its cache's layout, the transport it wants, the link that it joins.
2. The receiver checks layout and transport, and answers Welcome, or Refused with the reason.

Without TLS what follows is neither encrypted nor signed: machines of a cluster share a network that
others cannot write to.
"""

from collections.abc import Callable

import msgspec

from splitwise.protocol.handshake.conversation import Introduced, Party, initiate, respond
from splitwise.protocol.handshake.proofs import HandshakeError, Purpose
from splitwise.transfer.channel import Channel
from splitwise.transfer.errors import LinkError
from splitwise.transfer.frames import FRAME_LIMIT_BYTES, Hello, Refused, Welcome
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.pairing import LayoutPair

CLAIMS_LIMIT_BYTES = 64 * 2**10
"""Of a Hello, from a peer that has not yet proved itself; a layout may list many regions."""


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
    hello = Hello(machine_id, layout, transport, link)
    party = Party(Purpose.TRANSFER, machine_id, key, channel.binding)
    try:
        await initiate(channel, party, receiver_id, msgspec.msgpack.encode(hello))
    except HandshakeError as error:
        raise LinkError(str(error)) from error
    message = await channel.receive_message(FRAME_LIMIT_BYTES)
    if isinstance(message, Refused):
        raise LinkError(f"refused: {message.reason}")
    if not isinstance(message, Welcome):
        raise LinkError(f"{type(message).__name__} where Welcome was due")
    return message


async def admit(
    channel: Channel,
    machine_id: str,
    key: str,
    check: Callable[[Hello], None],
    welcome: Callable[[Hello], Welcome],
) -> tuple[Hello, Welcome]:
    """The receiver's side. ``check`` raises LinkError to refuse a sender that has the key.

    Raises:
        LinkError: refused; a sender that has the key has been told why.
    """
    try:
        party = Party(Purpose.TRANSFER, machine_id, key, channel.binding)
        introduced = await respond(channel, party, CLAIMS_LIMIT_BYTES)
    except HandshakeError as error:
        raise LinkError(str(error)) from error
    try:
        hello = _claimed(introduced)
        check(hello)
    except LinkError as refusal:
        await channel.send_message(Refused(str(refusal)))
        raise
    welcomed = welcome(hello)
    await channel.send_message(welcomed)
    return hello, welcomed


def _claimed(introduced: Introduced) -> Hello:
    """
    Raises:
        LinkError: it is no Hello, or another machine's.
    """
    try:
        hello = msgspec.msgpack.decode(introduced.claims, type=Hello)
    except (ValueError, RecursionError) as error:  # msgspec's and Unicode's errors are such
        raise LinkError(f"bad claims: {error}") from error
    if hello.machine_id != introduced.id:
        raise LinkError(f"{introduced.id!r} says that it is {hello.machine_id!r}")
    return hello


def check_layout(mine: CacheLayout, theirs: CacheLayout) -> None:
    """
    Raises:
        LinkError: blocks of one cache do not fit into the other.
    """
    try:
        LayoutPair(theirs, mine)
    except ValueError as error:
        raise LinkError(str(error)) from error
