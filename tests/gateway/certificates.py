"""Self-signed certificates, made on the spot by openssl."""

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

needs_openssl = pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl program")


@dataclass
class Pair:
    certificate: Path
    key: Path


def make_pair(folder: Path, *options: str) -> Pair:
    """A self-signed certificate for 127.0.0.1."""
    folder.mkdir(exist_ok=True)
    pair = Pair(folder / "cert.pem", folder / "key.pem")
    subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256"),
            *("-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=IP:127.0.0.1"),
            *("-out", str(pair.certificate), "-keyout", str(pair.key), *(options or ("-nodes",))),
        ],
        check=True,
        capture_output=True,
        timeout=60,
    )
    return pair
