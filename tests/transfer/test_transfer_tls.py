"""Caches over TCP under TLS: they arrive whole, and nobody on the way reads or passes them on."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import numpy as np
import pytest
from certificates import Pair, make_pair, needs_openssl
from transfer_machines import LocalMachine, Settings, machines

from splitwise.protocol.handshake.tls import ClusterTls, TlsFiles
from splitwise.transfer import Arrived, CacheLayout, Failed, ReceiverAddress, Sent

pytestmark = needs_openssl
LAYOUT = CacheLayout.flat(layers=4, blocks=64, block_tokens=16, block_bytes=64 * 1024)
BLOCKS = list(range(40))
"""Of several stripes a layer, each longer than what TLS takes in one call."""


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> ClusterTls:
    return tls_of(make_pair(tmp_path_factory.mktemp("tls") / "ours"))


def tls_of(pair: Pair, ca: Path | str = "") -> ClusterTls:
    return ClusterTls(TlsFiles(str(pair.certificate), str(pair.key), str(ca)))


def settings(name: str, seed: int, tls: ClusterTls | None, transport: str = "tcp") -> Settings:
    return Settings(name, LAYOUT, seed, transport=transport, checksum=True, tls=tls)


class Tap:
    """Passes on what comes to a receiver, and keeps it."""

    def __init__(self, address: ReceiverAddress) -> None:
        self._address = address
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.seen = bytearray()
        self._sockets = [self.listener]
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self.listener.accept()
                far = socket.create_connection((self._address.host, self._address.port))
                self._sockets += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._pass, args=(source, target), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self.seen += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()


@contextmanager
def tapped(token: LocalMachine) -> Iterator[tuple[Tap, ReceiverAddress]]:
    tap = Tap(token.address)
    port = tap.listener.getsockname()[1]
    yield tap, msgspec.structs.replace(token.address, port=port)
    tap.close()


def send(prompt: LocalMachine, token: LocalMachine, address: ReceiverAddress) -> None:
    token.receiver.expect("t", "prompt", BLOCKS[::-1])
    prompt.sender.begin("t", address, BLOCKS)
    for layer in range(LAYOUT.layers):
        prompt.sender.layer_ready(["t"], layer)
    prompt.sender.finish("t", b"first token")


@pytest.mark.parametrize("encrypted", [True, False])
def test_a_cache_arrives_whole_and_is_not_seen_on_the_way(encrypted: bool, tls: ClusterTls) -> None:
    used = tls if encrypted else None
    with (
        machines(settings("prompt", 1, used), settings("token", 2, used)) as (prompt, token),
        tapped(token) as (tap, address),
    ):
        send(prompt, token, address)
        arrived = token.event()
        assert isinstance(arrived, Arrived) and arrived.payload == b"first token"
        assert isinstance(prompt.event(), Sent)
        np.testing.assert_array_equal(token.cache[:, BLOCKS[::-1]], prompt.cache[:, BLOCKS])
        assert len(tap.seen) > LAYOUT.layers * len(BLOCKS) * LAYOUT.block_bytes(0)
        secrets = [prompt.cache[layer, 7, :64].tobytes() for layer in range(LAYOUT.layers)]
        secrets.append(b"first token")
        assert [secret in tap.seen for secret in secrets] == [not encrypted] * len(secrets)


@pytest.mark.parametrize("prompts", [True, False])
def test_one_end_in_the_clear_is_refused_by_name(prompts: bool, tls: ClusterTls) -> None:
    prompt_tls, token_tls = (tls, None) if prompts else (None, tls)
    with machines(settings("prompt", 1, prompt_tls), settings("token", 2, token_tls)) as (
        prompt,
        token,
    ):
        prompt.sender.begin("t", token.address, BLOCKS)
        event = prompt.event()
        assert isinstance(event, Failed) and "--cluster-tls-cert" in event.reason


def test_a_receiver_that_says_it_speaks_tls_and_does_not(tls: ClusterTls) -> None:
    with machines(settings("prompt", 1, tls), settings("token", 2, None)) as (prompt, token):
        prompt.sender.begin("t", msgspec.structs.replace(token.address, tls=True), BLOCKS)
        event = prompt.event()
        assert isinstance(event, Failed) and "no TLS with the other end" in event.reason


def test_within_a_host_nothing_is_encrypted_and_all_works(tls: ClusterTls) -> None:
    shared = "shared_memory"
    with machines(settings("prompt", 1, tls, shared), settings("token", 2, tls, shared)) as (
        prompt,
        token,
    ):
        send(prompt, token, token.address)
        assert isinstance(token.event(), Arrived)
        np.testing.assert_array_equal(token.cache[:, BLOCKS[::-1]], prompt.cache[:, BLOCKS])


def test_a_certificate_of_another_ca_is_refused(tmp_path: Path, tls: ClusterTls) -> None:
    other = make_pair(tmp_path / "other")
    strict = tls_of(other, ca=other.certificate)
    with machines(settings("prompt", 1, strict), settings("token", 2, tls)) as (prompt, token):
        prompt.sender.begin("t", token.address, BLOCKS)
        event = prompt.event()
        assert isinstance(event, Failed) and "verify failed" in event.reason


def test_a_man_in_the_middle_with_a_certificate_of_his_own_is_found_out(
    tmp_path: Path, tls: ClusterTls
) -> None:
    his = tls_of(make_pair(tmp_path / "his"))
    ready: list[int] = []
    done = threading.Event()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while data := await reader.read(4096):
                writer.write(data)
            writer.close()

    async def stand_between(address: ReceiverAddress) -> None:
        async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            onward = await asyncio.open_connection(address.host, address.port, ssl=his.client)
            await asyncio.gather(relay(reader, onward[1]), relay(onward[0], writer))

        async with await asyncio.start_server(meet, "127.0.0.1", 0, ssl=his.server) as server:
            ready.append(server.sockets[0].getsockname()[1])
            await asyncio.to_thread(done.wait)

    with machines(settings("prompt", 1, tls), settings("token", 2, tls)) as (prompt, token):
        middle = threading.Thread(target=lambda: asyncio.run(stand_between(token.address)))
        middle.start()
        while not ready:
            done.wait(0.01)
        token.receiver.expect("t", "prompt", BLOCKS)
        prompt.sender.begin("t", msgspec.structs.replace(token.address, port=ready[0]), BLOCKS)
        event = prompt.event()
        assert isinstance(event, Failed) and "certificate of their own" in event.reason
        assert not token.receiver._links
        done.set()
        middle.join()


def test_a_receiver_that_goes_away_in_mid_transfer_fails_it(tls: ClusterTls) -> None:
    with machines(settings("prompt", 1, tls), settings("token", 2, tls)) as (prompt, token):
        token.receiver.expect("t", "prompt", BLOCKS)
        prompt.sender.begin("t", token.address, BLOCKS)
        prompt.sender.layer_ready(["t"], 0)
        token.receiver.close()
        assert isinstance(prompt.event(), Failed)
        assert isinstance(token.event(), Failed)
