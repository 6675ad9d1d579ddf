"""What ``splitwise serve`` was told about access: secrets, keys and TLS; a warning without keys."""

import ipaddress
import logging
import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from splitwise.cli.access_settings import AccessSettings
from splitwise.cli.errors import fail
from splitwise.gateway.admin import ADMIN_KEY_VARIABLE
from splitwise.gateway.api_keys import API_KEY_VARIABLE, ApiKeyError, read_api_keys
from splitwise.gateway.http.tls import tls_context
from splitwise.gateway.process import Access
from splitwise.protocol.handshake.tls import TlsError, load_certificate

log = logging.getLogger(__name__)

CLUSTER_KEY_VARIABLE: Final = "SPLITWISE_CLUSTER_KEY"
SECRET_VARIABLES: Final = (API_KEY_VARIABLE, ADMIN_KEY_VARIABLE, CLUSTER_KEY_VARIABLE)


def take_secrets() -> dict[str, str]:
    """The secrets of the environment, out of which they are taken: no process that is started
    from here on inherits them, Ray's own neither. Workers are given the cluster's key."""
    return {name: os.environ.pop(name) for name in SECRET_VARIABLES if name in os.environ}


def read_access(host: str, settings: AccessSettings, secrets: Mapping[str, str]) -> Access:
    """What the settings say; ends the program where they cannot be used."""
    try:
        keys = read_api_keys(settings.api_keys, secrets)
        tls = _tls(settings.tls_cert, settings.tls_key)
    except (ApiKeyError, TlsError) as error:
        fail(error, code=2)

    def reload() -> None:
        keys.become(read_api_keys(settings.api_keys, secrets))
        if tls is not None and settings.tls_cert is not None and settings.tls_key is not None:
            load_certificate(tls, settings.tls_cert, settings.tls_key)

    if not keys and not is_loopback(host):
        log.warning(
            "listening on %s without an API key: whoever reaches the port may use the server; "
            "set --api-keys or %s, or let a proxy check who comes in",
            host,
            API_KEY_VARIABLE,
        )
    return Access(
        keys=keys,
        min_priority=settings.min_priority,
        open_metrics=settings.open_metrics,
        tls=tls,
        reload=reload if settings.api_keys or tls else None,
    )


def _tls(certificate: Path | None, key: Path | None) -> ssl.SSLContext | None:
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise TlsError("give --tls-cert and --tls-key together, or neither")
    return tls_context(certificate, key)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # another name may lead anywhere
