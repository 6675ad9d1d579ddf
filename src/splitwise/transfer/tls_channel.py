"""A channel whose bytes go through TLS: encrypted, and copied once more at either end."""

import socket
import ssl
from collections.abc import Sequence

from splitwise.protocol.handshake.tls import ClusterTls, binding_of
from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.channel import Buffer, Channel
from splitwise.transfer.errors import LinkError
from splitwise.transfer.transports.choice import SAME_HOST

_BYTES_A_CALL = 256 * 2**10
"""What is encrypted in one go, while the loop waits."""


class TlsChannel(Channel):
    """See ``Channel``. Passes no descriptors: those are for transports within a host."""

    sock: ssl.SSLSocket

    def __init__(
        self, sock: socket.socket, write_s: float, tls: ClusterTls, accepted: bool
    ) -> None:
        sock.setblocking(False)
        context = tls.server if accepted else tls.client
        super().__init__(
            context.wrap_socket(sock, server_side=accepted, do_handshake_on_connect=False), write_s
        )
        self._tls = tls
        self._accepted = accepted

    async def secure(self) -> None:
        """TLS's own handshake.

        Raises:
            LinkError: the other end speaks none, or shows a certificate of another CA.
        """
        while True:
            try:
                self.sock.do_handshake()
                break
            except ssl.SSLWantReadError:
                await self.until_readable()
            except ssl.SSLWantWriteError:
                await self.until_writable()
            except OSError as error:
                raise LinkError(f"no TLS with the other end: {error}") from error
        self.binding = self._tls.own_binding if self._accepted else binding_of(self.sock)

    def _send(self, buffers: Sequence[Buffer]) -> int:
        # What TLS has begun with it must be given again, as far as it went: the beginning of the
        # first buffer stays the same until it is taken.
        try:
            return self.sock.send(memoryview(buffers[0])[:_BYTES_A_CALL])
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error

    def _receive_into(self, view: memoryview) -> int:
        try:
            return self.sock.recv_into(view)
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError) as error:
            raise BlockingIOError from error


def accepted_channel(sock: socket.socket, write_s: float, tls: ClusterTls | None) -> Channel:
    """Over a connection that was accepted; those within this host are in the clear."""
    if tls is None or sock.family == socket.AF_UNIX:
        return Channel(sock, write_s)
    return TlsChannel(sock, write_s, tls, accepted=True)


def dialled_channel(sock: socket.socket, write_s: float, tls: ClusterTls | None) -> Channel:
    """The other end of such."""
    if tls is None or sock.family == socket.AF_UNIX:
        return Channel(sock, write_s)
    return TlsChannel(sock, write_s, tls, accepted=False)


def check_tls(address: ReceiverAddress, transport: str, tls: ClusterTls | None) -> None:
    """
    Raises:
        LinkError: one of the two ends would have TLS on the way between them, the other not.
    """
    if transport in SAME_HOST or address.tls == (tls is not None):
        return
    there, here = ("with", "without") if address.tls else ("without", "with")
    raise LinkError(
        f"{address.machine_id} takes caches in {there} TLS, this machine sends them {here}: give "
        "all machines --cluster-tls-cert and --cluster-tls-key, or none"
    )
