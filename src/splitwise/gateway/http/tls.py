"""HTTPS by a certificate and its key."""

import ssl
from pathlib import Path

from splitwise.protocol.handshake.tls import load_certificate


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
