"""How long each wait of a transfer may last."""

from dataclasses import dataclass, fields
from functools import cached_property

GRACE_S = 0.25
"""A process that was stopped for a while finds its deadlines past. What came meanwhile still lies
in its sockets: before anything is given up they are read, for this long."""


@dataclass(frozen=True)
class Deadlines:
    """Seconds. A wait that runs out fails the transfer, or drops the link, with a reason.

    All but the first count from the last progress: a layer that was ready, a grant, a byte that was
    put, has landed or was verified, here or, as the peer says, there. So a transfer may take as
    long as its bytes need, and one that stands still is given up soon.
    """

    connect_s: float = 10.0
    """Dial and handshake of one connection: a few small frames. Where a listener must not be held
    up, nothing counts as progress."""
    write_s: float = 10.0
    """The peer's kernel takes none of a frame or of a piece of data."""
    answer_s: float = 30.0
    """Nothing is heard of a transfer whose last byte is sent."""
    stop_s: float = 10.0
    """A sender that was told to stop neither puts on nor says that it has stopped."""
    idle_s: float = 600.0
    """Nothing happens for any other reason: the prompt waits in a queue, or the token machine for
    memory to grant."""

    def __post_init__(self) -> None:
        """
        Raises:
            ValueError: a deadline that has passed before it begins.
        """
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ValueError(
                    f"{field.name} is {getattr(self, field.name)}: give seconds above 0"
                )

    @cached_property
    def tell_period_s(self) -> float:
        """How often one end tells the other of progress that it cannot see by itself."""
        return min(1.0, self.answer_s / 4, self.stop_s / 4, self.idle_s / 4)
