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
    """From ``finish`` to the receiver's answer: the grant, the puts still due, the signal."""
    stop_s: float = 10.0
    """From a cancel to the sender's word that it has stopped."""
    transfer_s: float = 600.0
    """A whole transfer, from ``expect`` or ``begin`` on, the prompt's time in the queue included."""
