"""How long each wait of a transfer may last."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Deadlines:
    """Seconds. A wait that runs out fails the transfer, or drops the link, with a reason."""

    connect_s: float = 10.0
    """Dial and handshake."""
    write_s: float = 10.0
    """A frame or a piece of data that the peer's kernel does not take."""
    answer_s: float = 30.0
    """From ``finish``, or the grant where that is later, to the receiver's answer. A grant itself
    may take longer: the token machine may have to wait for memory."""
    stop_s: float = 10.0
    """From a cancel to the sender's word that it has stopped."""
    transfer_s: float = 600.0
    """A whole transfer, from ``expect`` or ``begin`` on, with the prompt's time in the queue."""
