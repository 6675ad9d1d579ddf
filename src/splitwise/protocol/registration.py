"""How a machine comes into a cluster: the handshake, in which it claims what it is.

Both ends wait without a limit of their own: the caller sets it.
"""

from typing import Final

import msgspec

from splitwise.protocol.handshake.conversation import Party, initiate, respond
from splitwise.protocol.handshake.proofs import Purpose
from splitwise.protocol.messages import Refused, Register, ToScheduler, ToWorker
from splitwise.protocol.wire import Wire, WireError

SCHEDULER_ID: Final = "cluster scheduler"
"""What it is called in the handshake; a machine has an id of its own choice."""
CLAIMS_LIMIT_BYTES: Final = 64 * 1024


async def register(wire: Wire[ToWorker], cluster_key: str, machine: Register) -> ToWorker:
    """The worker's side; returns what the scheduler says to ``machine``.

    Raises:
        HandshakeError: see ``initiate``.
        OSError, EOFError, WireError: the connection broke.
    """
    party = Party(Purpose.CONTROL, machine.machine_id, cluster_key, wire.binding)
    await initiate(wire, party, SCHEDULER_ID, msgspec.msgpack.encode(machine))
    wire.trust()
    return await wire.receive()


async def admit(wire: Wire[ToScheduler], cluster_key: str) -> Register:
    """The scheduler's side, which has yet to answer.

    Raises:
        HandshakeError: see ``respond``.
        OSError, EOFError: the connection broke.
        WireError: a machine with the key claims what it should not; it has been told.
    """
    party = Party(Purpose.CONTROL, SCHEDULER_ID, cluster_key, wire.binding)
    introduced = await respond(wire, party, CLAIMS_LIMIT_BYTES)
    wire.trust()
    try:
        machine = msgspec.msgpack.decode(introduced.claims, type=Register)
        if machine.machine_id != introduced.id:
            raise ValueError(f"it registers as {machine.machine_id!r}")
    except (ValueError, RecursionError) as error:  # msgspec's and Unicode's errors are such
        reason = f"malformed registration: {error}"
        wire.send(Refused(reason))
        raise WireError(f"{introduced.id!r}: {reason}") from error
    return machine
