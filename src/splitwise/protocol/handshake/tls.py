"""TLS between machines, under the handshake: nobody on the way reads or changes what is said.

The end that listens shows a certificate, and its proof covers the hash of that (``binding``): so it
need not be signed by anyone, and a man in the middle who shows another is found out. With a CA the
end that dials asks for one of its certificates before that. Names in certificates are not looked
at: machines are dialled by whatever address they give, and known by their ids.
"""

import hashlib
import ssl
from pathlib import Path

import msgspec


class TlsError(ValueError):
    """A certificate or key cannot be used; the message names the file."""


class TlsFiles(msgspec.Struct, frozen=True):
    """PEM files: this end's certificate (chain), its unencrypted key, and the CA of the others'."""

    certificate: str
    key: str
    ca: str = ""


class ClusterTls:
    """One machine's TLS, for the door that it opens and for those that it dials."""

    def __init__(self, files: TlsFiles) -> None:
        """
        Raises:
            TlsError: a file is missing or cannot be used.
        """
        self._files = files
        self.server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        for context in (self.server, self.client):
            context.minimum_version = ssl.TLSVersion.TLSv1_3  # both ends are of this release
        self.server.num_tickets = 0  # no session is taken up again
        self.client.check_hostname = False
        self.client.verify_mode = ssl.CERT_REQUIRED if files.ca else ssl.CERT_NONE
        if files.ca:
            _load_ca(self.client, Path(files.ca))
        self.load()

    def load(self) -> None:
        """Read certificate and key, anew where they have changed, for the connections to come.

        Raises:
            TlsError: they cannot be used; what was in force stays.
        """
        if not self._files.certificate or not self._files.key:
            raise TlsError("give --cluster-tls-cert and --cluster-tls-key together, or neither")
        certificate = Path(self._files.certificate)
        load_certificate(self.server, certificate, Path(self._files.key))
        # The file may hold a chain, of which the first is this end's.
        first, end, _ = certificate.read_text().partition(ssl.PEM_FOOTER)
        first = first[first.index(ssl.PEM_HEADER) :]
        self.own_binding = hashlib.sha256(ssl.PEM_cert_to_DER_cert(first + end)).digest()


def binding_of(connection: ssl.SSLObject | ssl.SSLSocket) -> bytes:
    """The hash of the certificate that the other end has shown."""
    shown = connection.getpeercert(binary_form=True)
    assert shown is not None, "the end that listens always shows one"
    return hashlib.sha256(shown).digest()


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Use these from the next connection on.

    Raises:
        TlsError: a file cannot be read, is not PEM, is encrypted, or they do not belong together;
            what the context had before stays.
    """
    for file in (certificate, key):
        _check_readable(file)
    try:
        # First into one of no use: a pair that fails leaves a context with half of it.
        for each in (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), context):
            # Without a password OpenSSL would ask the terminal for an encrypted key's.
            each.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(
            f"cannot use the certificate {certificate} with the key {key}: {_reason(error)}"
        ) from error


def _load_ca(context: ssl.SSLContext, ca: Path) -> None:
    _check_readable(ca)
    try:
        context.load_verify_locations(ca)
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(f"cannot use the CA {ca}: is it PEM? ({error})") from error


def _check_readable(file: Path) -> None:
    try:
        file.read_bytes()
    except OSError as error:  # ssl itself does not say which file it is
        raise TlsError(f"cannot read {file}: {error.strerror}") from error


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "they do not belong together"
    return f"is each PEM, and the key not encrypted? ({reason or error})"
