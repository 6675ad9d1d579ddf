"""A machine's two ends of its transfers, as the worker's options have them."""

import logging
from functools import partial
from typing import Any

from splitwise.protocol.handshake.tls import ClusterTls
from splitwise.transfer import (
    CacheLayout,
    CacheMemory,
    KVReceiver,
    KVSender,
    MachineReceiver,
    MachineSender,
)
from splitwise.transfer.events import OnReceiverEvent, OnSenderEvent
from splitwise.worker.options import WorkerError, WorkerOptions

log = logging.getLogger(__name__)


def open_ends(
    options: WorkerOptions,
    memory: CacheMemory,
    layout: CacheLayout,
    rank: int,
    ranks: int,
    on_sender_event: OnSenderEvent,
    on_receiver_event: OnReceiverEvent,
) -> tuple[MachineSender, MachineReceiver]:
    """Of one rank of so many. A port that is named is the first one's; the others' follow it.

    Raises:
        WorkerError: caches cannot be taken in at the address that ``options`` give.
        TlsError: a file of ``options.tls`` cannot be used.
    """
    tls = None if options.tls is None else ClusterTls(options.tls)
    make_receiver = partial(_receiver, options, memory, layout, tls)
    make_sender = partial(_sender, options, memory, layout, tls)
    heads, machine_id = layout.all_heads, options.machine_id
    try:
        receiver = MachineReceiver(
            heads, ranks, make_receiver, machine_id, on_receiver_event, own=(rank,)
        )
    except OSError as error:
        raise WorkerError(
            f"--host {options.host}, --transfer-port {options.transfer_port}: cannot listen "
            f"there ({error}); give an address of this machine that the others reach, and a "
            "free port"
        ) from error
    try:
        sender = MachineSender(heads, ranks, make_sender, machine_id, on_sender_event, own=(rank,))
    except BaseException:
        receiver.close()
        raise
    [address] = receiver.addresses
    offered = ", ".join(address.transports)
    log.info("caches are taken in at %s:%d by %s", address.host, address.port, offered)
    return sender, receiver


def _sender(
    options: WorkerOptions,
    memory: CacheMemory,
    layout: CacheLayout,
    tls: Any,
    rank_id: str,
    _: int,
    on_event: OnSenderEvent,
) -> KVSender:
    return KVSender(
        memory,
        layout,
        rank_id,
        options.cluster_key,
        on_event,
        transport=options.transport,
        checksum=options.checksum,
        tls=tls,
        deadlines=options.deadlines,
    )


def _receiver(
    options: WorkerOptions,
    memory: CacheMemory,
    layout: CacheLayout,
    tls: Any,
    rank_id: str,
    rank: int,
    on_event: OnReceiverEvent,
) -> KVReceiver:
    host, port = options.announce or ("", 0)
    return KVReceiver(
        memory,
        layout,
        rank_id,
        options.cluster_key,
        on_event,
        host=options.host,
        port=options.transfer_port and options.transfer_port + rank,
        announce=(host, port + rank) if options.announce else None,
        sends=options.transport,
        tls=tls,
        deadlines=options.deadlines,
    )
