"""Control connections under TLS: who is let in, who is found out, and what strangers can hold."""

import asyncio
import os
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from pathlib import Path

import msgspec
import pytest
import uvloop
from certificates import Pair, make_pair, needs_openssl
from scripted_cluster import MODEL, Counters, Link

from splitwise.cluster.limits import ClusterLimits
from splitwise.cluster.scheduler import ClusterScheduler
from splitwise.cluster.scheduler_server import SchedulerServer
from splitwise.protocol.handshake.proofs import HandshakeError, KeyDiffersError
from splitwise.protocol.handshake.tls import ClusterTls, TlsError, TlsFiles
from splitwise.protocol.messages import Refused, Register, ToWorker, Welcome
from splitwise.protocol.registration import register
from splitwise.protocol.wire import Wire, WireError
from splitwise.scheduling.pool import Pool

pytestmark = needs_openssl
KEY = "the cluster's key"
PLACES = 8


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls") / "ours")


@pytest.fixture(scope="module")
def another(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make_pair(tmp_path_factory.mktemp("tls") / "another")


def tls_of(pair: Pair, ca: Path | str = "") -> ClusterTls:
    return ClusterTls(TlsFiles(str(pair.certificate), str(pair.key), str(ca)))


class Scheduler:
    """One that listens under TLS."""

    def __init__(self, pair: Pair) -> None:
        self.cluster = ClusterScheduler(ClusterLimits(), Counters(), MODEL.name)
        self.tls = tls_of(pair)
        self.server = SchedulerServer(self.cluster, KEY, places=PLACES, tls=self.tls)
        self.address = ("", 0)
        self.wires: list[Wire[ToWorker]] = []

    async def join(
        self,
        name: str,
        tls: ClusterTls | None,
        address: tuple[str, int] | None = None,
        with_tls: bool = True,
    ) -> ToWorker:
        async with asyncio.timeout(10):
            wire: Wire[ToWorker] = await Wire.dial(*(address or self.address), ToWorker, tls)
            self.wires.append(wire)
            machine: Register = Link(name, Pool.MIXED).register
            taken_in = msgspec.structs.replace(machine.addresses[0], tls=with_tls)
            machine = msgspec.structs.replace(machine, addresses=[taken_in])
            return await register(wire, KEY, machine)


@pytest.fixture
async def scheduler(pair: Pair) -> AsyncIterator[Scheduler]:
    scheduler = Scheduler(pair)
    scheduler.address = await scheduler.server.start("127.0.0.1", 0)
    yield scheduler
    for wire in scheduler.wires:
        wire.abort()
    await scheduler.server.close(())


async def test_the_key_vouches_for_a_certificate_that_nobody_signed(
    scheduler: Scheduler, another: Pair
) -> None:
    assert isinstance(await scheduler.join("a", tls_of(another)), Welcome)
    assert scheduler.cluster.roster.names == ["a"]


async def test_with_a_ca_only_its_certificates_do(
    scheduler: Scheduler, pair: Pair, another: Pair
) -> None:
    assert isinstance(await scheduler.join("a", tls_of(another, ca=pair.certificate)), Welcome)
    with pytest.raises(ssl.SSLError, match="verify failed"):
        await scheduler.join("b", tls_of(another, ca=another.certificate))


async def test_who_speaks_no_tls_is_told_so(
    scheduler: Scheduler, pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises((HandshakeError, EOFError, OSError)):
        await scheduler.join("a", None)
    while "before it joined" not in caplog.text:
        await asyncio.sleep(0.01)
    plain = SchedulerServer(scheduler.cluster, KEY)
    address = await plain.start("127.0.0.1", 0)
    with pytest.raises(OSError, match="SSL"):
        await scheduler.join("a", tls_of(pair), address)
    assert scheduler.cluster.roster.names == []
    await plain.close(())


async def test_a_machine_that_takes_caches_in_the_clear_is_refused(
    scheduler: Scheduler, pair: Pair
) -> None:
    answer = await scheduler.join("a", tls_of(pair), with_tls=False)
    assert isinstance(answer, Refused) and "--cluster-tls-cert" in answer.reason
    assert scheduler.cluster.roster.names == []


async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(4096):
            writer.write(data)
        writer.close()


async def test_a_man_in_the_middle_with_a_certificate_of_his_own_is_found_out(
    scheduler: Scheduler, another: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    """He passes on every byte as it is, so the key alone would let him: both ends notice."""
    his = tls_of(another)

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        onward = await asyncio.open_connection(*scheduler.address, ssl=his.client)
        await asyncio.gather(relay(reader, onward[1]), relay(onward[0], writer))

    middle = await asyncio.start_server(meet, "127.0.0.1", 0, ssl=his.server)
    address = middle.sockets[0].getsockname()
    with pytest.raises(KeyDiffersError, match="certificate of their own"):
        await scheduler.join("a", tls_of(another), address)
    while "certificate of their own" not in caplog.text:
        await asyncio.sleep(0.01)
    assert scheduler.cluster.roster.names == []
    middle.close()


async def test_a_renewed_certificate_is_shown_from_the_next_connection_on(
    tmp_path: Path, pair: Pair, another: Pair
) -> None:
    files = Pair(tmp_path / "cert.pem", tmp_path / "key.pem")
    files.certificate.write_bytes(pair.certificate.read_bytes())
    files.key.write_bytes(pair.key.read_bytes())
    scheduler = Scheduler(files)
    scheduler.address = await scheduler.server.start("127.0.0.1", 0)
    files.certificate.write_bytes(another.certificate.read_bytes())
    with pytest.raises(TlsError, match="do not belong together"):
        scheduler.tls.load()
    assert isinstance(await scheduler.join("a", tls_of(another)), Welcome)
    files.key.write_bytes(another.key.read_bytes())
    scheduler.tls.load()
    ca = tls_of(another, ca=another.certificate)
    assert isinstance(await scheduler.join("b", ca), Welcome)
    await scheduler.server.close(())


def test_files_that_will_not_do_are_named(tmp_path: Path, pair: Pair) -> None:
    (tmp_path / "none.pem").write_text("nothing")
    good = str(pair.certificate), str(pair.key)
    for files, words in (
        (TlsFiles(good[0], ""), "--cluster-tls-key together"),
        (TlsFiles("/nowhere.pem", good[1]), "cannot read /nowhere.pem"),
        (TlsFiles(*good, "/nowhere.pem"), "cannot read /nowhere.pem"),
        (TlsFiles(*good, str(tmp_path / "none.pem")), "CA"),
    ):
        with pytest.raises(TlsError, match=words):
            ClusterTls(files)


def sockets() -> int:
    """That this process holds."""
    links = [Path("/proc/self/fd", name) for name in os.listdir("/proc/self/fd")]
    return sum("socket:" in os.readlink(link) for link in links if link.is_symlink())


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_strangers_that_stop_in_tls_keep_nobody_out_and_leave_nothing(
    pair: Pair, new_loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    async def crowd() -> None:
        scheduler = Scheduler(pair)
        scheduler.address = await scheduler.server.start("127.0.0.1", 0)
        before = sockets()
        strangers = [await asyncio.open_connection(*scheduler.address) for _ in range(40)]
        for _, writer in strangers[::2]:
            writer.write(b"\x16\x03\x01\x02\x00\x01")  # the beginning of TLS's first word
        assert isinstance(await scheduler.join("a", scheduler.tls), Welcome)
        assert len(scheduler.server._tasks) <= PLACES + 3
        async with asyncio.timeout(20):
            while sockets() > before + len(strangers) + PLACES + 3:
                await asyncio.sleep(0.05)
        for _, writer in strangers:
            writer.close()
        scheduler.wires[0].abort()
        async with asyncio.timeout(20):
            while sockets() > before:
                await asyncio.sleep(0.05)
        await scheduler.server.close(())

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(crowd())


async def test_what_threads_say_under_tls_comes_whole_and_in_order(
    scheduler: Scheduler, pair: Pair
) -> None:
    from splitwise.protocol.messages import Preempted
    from splitwise.worker.outbox import WireOutbox

    heard: list[int] = []
    scheduler.cluster.receive = lambda _, said: heard.append(said.task)  # type: ignore[method-assign, union-attr, misc]
    await scheduler.join("a", tls_of(pair))
    outbox = WireOutbox(scheduler.wires[0])

    def say(first: int) -> None:
        for number in range(first, first + 2000):
            outbox.send(Preempted(number))

    await asyncio.gather(asyncio.to_thread(say, 0), asyncio.to_thread(say, 10_000))
    async with asyncio.timeout(20):
        while len(heard) < 4000:
            await asyncio.sleep(0.01)
    assert [n for n in heard if n < 10_000] == list(range(2000))
    assert [n for n in heard if n >= 10_000] == list(range(10_000, 12_000))


async def test_a_peer_that_takes_nothing_under_tls_loses_the_connection(
    scheduler: Scheduler, pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from splitwise.protocol.messages import TaskFailed
    from splitwise.worker import outbox as outbox_module

    monkeypatch.setattr(outbox_module, "UNSENT_LIMIT_BYTES", 1 << 20)
    await scheduler.join("a", tls_of(pair))
    (link,) = scheduler.server._links
    link.wire._transport.pause_reading()
    link.wire._is_paused = False
    outbox = outbox_module.WireOutbox(scheduler.wires[0])
    hearing = asyncio.create_task(scheduler.wires[0].receive())
    async with asyncio.timeout(20):
        while not hearing.done():
            outbox.send(TaskFailed(1, "x" * 1_000_000, in_transfer=False))
            await asyncio.sleep(0.005)
    with pytest.raises(WireError, match="takes nothing"):
        await hearing
