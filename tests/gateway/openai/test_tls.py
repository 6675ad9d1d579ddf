"""HTTPS with a certificate made on the spot."""

import socket
import ssl
from contextlib import closing
from pathlib import Path

import httpx
import msgspec
import openai
import pytest
from api_server import LIMITS, MODEL, Running, Serve
from certificates import Pair, make_pair, needs_openssl

from splitwise.gateway.api_keys import ApiKeys
from splitwise.gateway.http.tls import tls_context
from splitwise.gateway.openai.gate import Gate
from splitwise.protocol.handshake.tls import TlsError

pytestmark = needs_openssl


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls") / "pair")


@pytest.fixture
def trust(pair: Pair) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=pair.certificate)


@pytest.fixture
def server(serve: Serve, pair: Pair) -> Running:
    limits = msgspec.structs.replace(LIMITS, header_timeout_s=0.5)
    tls = tls_context(pair.certificate, pair.key)
    return serve(limits, gate=Gate(ApiKeys(["sk-tls"])), tls=tls)


def test_the_official_client(server: Running, trust: ssl.SSLContext) -> None:
    with openai.OpenAI(
        base_url=f"https://127.0.0.1:{server.port}/v1",
        api_key="sk-tls",
        max_retries=0,
        http_client=httpx.Client(verify=trust),
    ) as client:
        prompt = "one two three"
        whole = client.completions.create(model=MODEL, prompt=prompt, max_tokens=3)
        parts = client.completions.create(model=MODEL, prompt=prompt, max_tokens=3, stream=True)
        assert whole.choices[0].text == "".join(c.choices[0].text for c in parts) == prompt


def test_a_client_that_does_not_trust_it_is_not_served(server: Running) -> None:
    with pytest.raises(httpx.ConnectError, match="certificate verify failed"):
        httpx.get(f"https://127.0.0.1:{server.port}/health")


@pytest.mark.parametrize(
    ("version", "served"),
    [
        (ssl.TLSVersion.TLSv1_1, False),
        (ssl.TLSVersion.TLSv1_2, True),
        (ssl.TLSVersion.TLSv1_3, True),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_versions(
    server: Running, trust: ssl.SSLContext, version: ssl.TLSVersion, served: bool
) -> None:
    trust.set_ciphers("DEFAULT:@SECLEVEL=0")  # else the client itself refuses the old version
    trust.minimum_version = trust.maximum_version = version
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as plain:
        if not served:
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                trust.wrap_socket(plain, server_hostname="127.0.0.1")
            return
        with trust.wrap_socket(plain, server_hostname="127.0.0.1") as client:
            assert client.version() == version.name.replace("_", ".")


def test_plain_http_and_silence_do_not_keep_a_connection(server: Running) -> None:
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        assert not client.recv(65536).startswith(b"HTTP")
    with closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as client:
        assert client.recv(1) == b""  # the handshake has a deadline


def test_slow_headers(server: Running, trust: ssl.SSLContext) -> None:
    with (
        closing(socket.create_connection(("127.0.0.1", server.port), timeout=10)) as plain,
        trust.wrap_socket(plain, server_hostname="127.0.0.1") as client,
    ):
        client.sendall(b"GET /health HTTP/1.1\r\nX: ")
        assert client.recv(65536).startswith(b"HTTP/1.1 408 ")


def test_files_that_cannot_be_used(pair: Pair, tmp_path: Path) -> None:
    other = make_pair(tmp_path / "other")
    encrypted = make_pair(tmp_path / "encrypted", "-passout", "pass:secret")
    bad = tmp_path / "bad.pem"
    bad.write_text("no certificate")
    for certificate, key, words in [
        (tmp_path / "none.pem", pair.key, "none.pem"),
        (pair.certificate, tmp_path / "none.pem", "none.pem"),
        (pair.certificate, tmp_path, str(tmp_path)),
        (bad, pair.key, "bad.pem"),
        (pair.certificate, bad, "bad.pem"),
        (pair.certificate, other.key, "belong together"),
        (encrypted.certificate, encrypted.key, "not encrypted"),
    ]:
        with pytest.raises(TlsError, match=words):
            tls_context(certificate, key)
