"""How fast a prompt's KV cache gets from one process to another, beside what the machine can do.

Two processes, each on a core of its own: the prompt machine in a child, the token machine here.
The caches are those of the default model (30 layers, 24,576 bytes a block of 16 tokens). In the
same run a plain memcpy and a plain socket loop move the same bytes as yardsticks.

- bulk: all layers ready at once; bytes over the time from ``finish`` to the signal.
- paced: a layer every few milliseconds, as a prompt computes them; what of the transfer is left
  to see after ``finish``, and the share of bytes put before it.
"""

import argparse
import multiprocessing
import multiprocessing.connection
import os
import queue
import socket
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass

import numpy as np
from rich.console import Console
from rich.table import Table

from common import environment, write_result
from splitwise.protocol.handshake.tls import ClusterTls, TlsFiles
from splitwise.transfer import (
    Arrived,
    CacheLayout,
    HostMemory,
    KVReceiver,
    KVSender,
    ReceiverAddress,
    TransferStats,
)

LAYOUT = CacheLayout.flat(layers=30, blocks=256, block_tokens=16, block_bytes=24_576)
KEY = "benchmark"
LONG_TOKENS = 1504
SHORT_TOKENS = 64
WAIT_S = 60.0


@dataclass(frozen=True)
class Case:
    name: str
    transport: str
    tokens: int
    scattered: bool = False
    one_piece: bool = False
    checksum: bool = False
    layer_s: float = 0.0
    """Between two layers; 0 is bulk."""
    tls: bool = False

    @property
    def sender_id(self) -> str:
        return f"prompt-{self.transport}-{self.checksum}-{self.tls}"


@dataclass(frozen=True)
class Result:
    """Medians over the repeats."""

    case: Case
    visible_ms: float
    gigabytes_a_second: float
    early_share: float
    puts: int
    layer_ready_us: float


def cases(transports: list[str], layer_s: float, with_tls: bool) -> list[Case]:
    made = []
    for transport in transports:
        made += [
            Case("bulk", transport, LONG_TOKENS),
            Case("bulk, scattered blocks", transport, LONG_TOKENS, scattered=True),
            Case("bulk, checksum", transport, LONG_TOKENS, checksum=True),
            Case("paced", transport, LONG_TOKENS, layer_s=layer_s),
            Case("paced, one piece", transport, LONG_TOKENS, one_piece=True, layer_s=layer_s),
            Case("short", transport, SHORT_TOKENS),
            Case("short, one piece", transport, SHORT_TOKENS, one_piece=True),
        ]
    if with_tls and "tcp" in transports:
        made += [
            Case("bulk, TLS", "tcp", LONG_TOKENS, tls=True),
            Case("paced, TLS", "tcp", LONG_TOKENS, layer_s=layer_s, tls=True),
            Case("short, TLS", "tcp", SHORT_TOKENS, tls=True),
        ]
    return made


def block_tables(case: Case) -> tuple[list[int], list[int]]:
    """Source and target."""
    count = LAYOUT.blocks_for(case.tokens)
    if not case.scattered:
        return list(range(count)), list(range(LAYOUT.blocks - count, LAYOUT.blocks))
    rng = np.random.default_rng(0)
    source, target = (rng.permutation(LAYOUT.blocks)[:count].tolist() for _ in range(2))
    return source, target


def filled_cache() -> HostMemory:
    """Its pages are all there, as after some time of service."""
    memory = HostMemory(LAYOUT.total_bytes)
    np.frombuffer(memory.buffer, np.uint8)[:] = 1
    return memory


def prompt_machine(
    calls: multiprocessing.connection.Connection, core: int, tls: TlsFiles | None
) -> None:
    """The child: sends what it is told to, until the pipe closes."""
    os.sched_setaffinity(0, {core})
    memory = filled_cache()
    events: queue.Queue[object] = queue.Queue()
    with ExitStack() as on_exit:
        on_exit.callback(memory.close)
        senders: dict[str, KVSender] = {}
        while True:
            try:
                case, address, transfer_id = calls.recv()
            except EOFError:
                return
            if case.sender_id not in senders:
                senders[case.sender_id] = sender = KVSender(
                    memory,
                    LAYOUT,
                    case.sender_id,
                    KEY,
                    events.put,
                    transport=case.transport,
                    checksum=case.checksum,
                    tls=ClusterTls(tls) if tls is not None and case.tls else None,
                )
                on_exit.callback(sender.close)
            call_s = compute(senders[case.sender_id], case, address, transfer_id)
            events.get(timeout=WAIT_S)
            calls.send(call_s)


def compute(sender: KVSender, case: Case, address: ReceiverAddress, transfer_id: str) -> float:
    """The engine's part of one transfer. Returns how long the call after a layer took, seconds."""
    blocks = block_tables(case)[0]
    if not case.one_piece:
        sender.begin(transfer_id, address, blocks)
    calls_s = []
    for layer in range(LAYOUT.layers):
        if case.layer_s:
            time.sleep(case.layer_s)
        start_s = time.perf_counter()
        if not case.one_piece:
            sender.layer_ready([transfer_id], layer)
        elif layer == LAYOUT.layers - 1:
            sender.begin(transfer_id, address, blocks, all_ready=True)
        calls_s.append(time.perf_counter() - start_s)
    sender.finish(transfer_id, b"")
    return statistics.median(calls_s)


class TokenMachine:
    """This process: expects, and takes the figures down."""

    def __init__(
        self, calls: multiprocessing.connection.Connection, tls: TlsFiles | None = None
    ) -> None:
        self._calls = calls
        self._events: queue.Queue[object] = queue.Queue()
        self._memory = filled_cache()
        self._receiver = KVReceiver(
            self._memory,
            LAYOUT,
            "token",
            KEY,
            self._events.put,
            tls=None if tls is None else ClusterTls(tls),
        )
        self._serial = 0

    def measure(self, case: Case, repeats: int) -> Result:
        runs = [self._run(case) for _ in range(repeats + 2)][2:]  # the first dials and maps
        stats = [run[0] for run in runs]
        visible_s = statistics.median(each.visible_s for each in stats)
        return Result(
            case,
            visible_ms=visible_s * 1e3,
            gigabytes_a_second=stats[0].bytes / visible_s / 1e9,
            early_share=statistics.median(each.early_bytes / each.bytes for each in stats),
            puts=stats[0].puts,
            layer_ready_us=statistics.median(run[1] for run in runs) * 1e6,
        )

    def close(self) -> None:
        self._receiver.close()
        self._memory.close()

    def _run(self, case: Case) -> tuple[TransferStats, float]:
        self._serial += 1
        transfer_id = f"t{self._serial}"
        self._receiver.expect(transfer_id, case.sender_id, block_tables(case)[1])
        self._calls.send((case, self._receiver.address, transfer_id))
        arrived = self._events.get(timeout=WAIT_S)
        assert isinstance(arrived, Arrived), arrived
        return arrived.stats, self._calls.recv()


def memcpy_gigabytes_a_second(nbytes: int, repeats: int) -> float:
    """One copy of ``nbytes`` from one cache to another in this process."""
    source, target = filled_cache(), filled_cache()
    here, there = (np.frombuffer(memory.buffer, np.uint8)[:nbytes] for memory in (source, target))
    taken_s = []
    for _ in range(repeats):
        start_s = time.perf_counter()
        np.copyto(there, here)
        taken_s.append(time.perf_counter() - start_s)
    del here, there
    source.close()
    target.close()
    return nbytes / statistics.median(taken_s) / 1e9


def plain_send(port: int, nbytes: int, repeats: int, core: int) -> None:
    """A process that only sends."""
    os.sched_setaffinity(0, {core})
    data = memoryview(bytearray(nbytes))
    with socket.create_connection(("127.0.0.1", port)) as sock:
        for _ in range(repeats):
            sock.recv(1)
            sock.sendall(data)


def socket_gigabytes_a_second(nbytes: int, repeats: int, core: int) -> float:
    """``sendall`` and ``recv_into`` of the same bytes over one connection between two processes."""
    view = memoryview(bytearray(nbytes))
    taken_s = []
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        context = multiprocessing.get_context("spawn")
        child = context.Process(target=plain_send, args=(port, nbytes, repeats + 2, core))
        child.start()
        sock, _ = listener.accept()
        with sock:
            for _ in range(repeats + 2):
                start_s = time.perf_counter()
                sock.sendall(b"1")
                received = 0
                while received < nbytes:
                    received += sock.recv_into(view[received:])
                taken_s.append(time.perf_counter() - start_s)
        child.join()
    return nbytes / statistics.median(taken_s[2:]) / 1e9


def table(results: list[Result], memcpy: float, plain_socket: float) -> Table:
    made = Table(
        title="KV transfer between two processes",
        caption=f"yardsticks: memcpy {memcpy:.1f} GB/s, plain socket loop {plain_socket:.1f} GB/s",
    )
    for heading in ("transport", "case", "MB", "visible ms", "GB/s", "early", "puts", "call us"):
        made.add_column(heading, justify="left" if heading in ("transport", "case") else "right")
    for result in results:
        case = result.case
        megabytes = LAYOUT.blocks_for(case.tokens) * LAYOUT.block_bytes(0) * LAYOUT.layers / 1e6
        made.add_row(
            case.transport,
            case.name,
            f"{megabytes:.1f}",
            f"{result.visible_ms:.2f}",
            "" if case.layer_s else f"{result.gigabytes_a_second:.1f}",
            f"{result.early_share:.0%}",
            str(result.puts),
            f"{result.layer_ready_us:.1f}",
        )
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--layer-ms", type=float, default=3.0, help="paced: between two layers")
    parser.add_argument("--transports", default="shared_memory,tcp", help="by commas")
    parser.add_argument("--tls-cert", default="", help="with --tls-key: TCP under TLS, too")
    parser.add_argument("--tls-key", default="")
    args = parser.parse_args()
    tls = TlsFiles(args.tls_cert, args.tls_key) if args.tls_cert else None

    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[0]})
    long_bytes = LAYOUT.blocks_for(LONG_TOKENS) * LAYOUT.block_bytes(0) * LAYOUT.layers
    memcpy = memcpy_gigabytes_a_second(long_bytes, args.repeats)
    plain_socket = socket_gigabytes_a_second(long_bytes, args.repeats, cores[-1])

    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    child = multiprocessing.get_context("spawn").Process(
        target=prompt_machine, args=(theirs, cores[-1], tls)
    )
    child.start()
    theirs.close()
    token, under_tls = TokenMachine(ours), TokenMachine(ours, tls)
    try:
        all_cases = cases(args.transports.split(","), args.layer_ms / 1e3, tls is not None)
        results = [
            (under_tls if case.tls else token).measure(case, args.repeats) for case in all_cases
        ]
    finally:
        ours.close()
        child.join(WAIT_S)
        token.close()
        under_tls.close()
    Console().print(table(results, memcpy, plain_socket))
    write_result(
        "transfer",
        {
            "environment": environment(),
            "arguments": vars(args),
            "memcpy_gigabytes_a_second": memcpy,
            "plain_socket_gigabytes_a_second": plain_socket,
            "results": [asdict(result) for result in results],
        },
    )


if __name__ == "__main__":
    main()
