"""HTTPS by a certificate and its key."""

import ssl
from pathlib import Path


class TlsError(Exception):
    """The certificate or the key cannot be used; the message names the file."""


def tls_context(certificate: Path, key: Path) -> ssl.SSLContext:
    """TLS 1.2 or newer with the certificate (chain) and its unencrypted key, both PEM.

    Raises:
        TlsError: a file cannot be read, is not PEM, is encrypted, or they do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    load_certificate(context, certificate, key)
    return context


def load_certificate(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Use these from the next connection on.

    Raises:
        TlsError: as above; what the context had before stays.
    """
    for file in (certificate, key):
        try:
            file.read_bytes()
        except OSError as error:  # ssl itself does not say which of the two it is
            raise TlsError(f"cannot read {file}: {error.strerror}") from error
    try:
        # Without a password OpenSSL would ask the terminal for an encrypted key's.
        context.load_cert_chain(certificate, key, password="")
    except (ssl.SSLError, ValueError) as error:
        raise TlsError(
            f"cannot use the certificate {certificate} with the key {key}: {_reason(error)}"
        ) from error


def _reason(error: Exception) -> str:
    reason = getattr(error, "reason", None)
    if reason == "KEY_VALUES_MISMATCH":
        return "they do not belong together"
    return f"is each PEM, and the key not encrypted? ({reason or error})"
