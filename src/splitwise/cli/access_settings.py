"""Options of ``splitwise serve`` that say who may use it, and how."""

from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta


class AccessSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Keys, priorities and TLS of the HTTP API. Each field is an option (``settings``)."""

    api_keys: Annotated[
        Path | None,
        Meta(
            description="File of API keys, one a line: KEY [name=NAME] [min_priority=N]; "
            "SPLITWISE_API_KEY holds more, by commas."
        ),
    ] = None
    min_priority: Annotated[
        int | None,
        Meta(
            description="Most urgent (lowest) priority that a request may ask for, where its key's "
            "line says nothing else; 0 where there are keys, any where there are none."
        ),
    ] = None
    open_metrics: Annotated[bool, Meta(description="Answer /metrics without an API key.")] = False
    tls_cert: Annotated[
        Path | None, Meta(description="PEM file of the certificate (chain), for HTTPS.")
    ] = None
    tls_key: Annotated[Path | None, Meta(description="PEM file of its key, not encrypted.")] = None
