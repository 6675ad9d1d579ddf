"""What ``splitwise serve`` was told about access: keys read, and a warning where there are none."""

import ipaddress
import logging
import os
from pathlib import Path

from splitwise.cli.errors import fail
from splitwise.serving.api_keys import API_KEY_VARIABLE, ApiKeyError, read_api_keys
from splitwise.serving.gateway import Access

log = logging.getLogger(__name__)


def read_access(host: str, api_keys: Path | None, open_metrics: bool) -> Access:
    """The access options; ends the program where they cannot be used."""
    try:
        keys = read_api_keys(api_keys, os.environ)
    except ApiKeyError as error:
        fail(error, code=2)
    if not keys and not is_loopback(host):
        log.warning(
            "listening on %s without an API key: whoever reaches the port may use the server; "
            "set --api-keys or %s, or let a proxy check who comes in",
            host,
            API_KEY_VARIABLE,
        )
    return Access(keys, open_metrics)


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server on ``host``."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # another name may lead anywhere
