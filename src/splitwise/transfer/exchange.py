"""The sender's links: dialled when first needed, and what comes back over them handed on.

Grants may come before ``begin`` and ends before grants, so what arrives early is kept by
transfer id until the other half comes, or no longer can.
"""

import asyncio
import logging
import time

from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.errors import LinkError
from splitwise.transfer.events import Failed, SenderEvent
from splitwise.transfer.frames import (
    Answer,
    AnyMessage,
    Grant,
    Progress,
    Refused,
    Revoke,
    Stopped,
)
from splitwise.transfer.outgoing import Answered, Granted, Outgoing, Stop
from splitwise.transfer.peer import Peer, SenderConfig
from splitwise.transfer.thread import LoopThread

logger = logging.getLogger(__name__)


class Exchange:
    """Lives on the sender's thread. ``transfers`` are the sender's, by id."""

    def __init__(
        self, config: SenderConfig, thread: LoopThread, transfers: dict[str, Outgoing]
    ) -> None:
        self._config = config
        self._thread = thread
        self._transfers = transfers
        self._peers: dict[ReceiverAddress, Peer] = {}
        self._granted: dict[tuple[Peer, int], Outgoing] = {}
        """The transfers that a receiver has granted, by their numbers there, until they end."""
        self._early_grants: dict[str, tuple[Peer, Grant]] = {}
        self._early_ends: dict[str, str] = {}
        """Why a transfer is over that one of the two ends has yet to ask for."""

    def reach(self, transfer: Outgoing) -> None:
        """``begin``: have its grant, or its end, put into its mailbox when, or if, it comes."""
        reason = self._early_ends.pop(transfer.transfer_id, None)
        if reason is not None:
            self._fail(transfer, reason, settled=True)
            return
        address = transfer.address
        if address not in self._peers:
            self._close_idle(address.machine_id)
            self._peers[address] = Peer(self._config, address)
            self._thread.spawn(self._serve(self._peers[address]), f"link to {address.machine_id}")
        early = self._early_grants.get(transfer.transfer_id)
        if early is not None and early[0].address == address:
            del self._early_grants[transfer.transfer_id]
            self._on_grant(*early)

    def _close_idle(self, machine_id: str) -> None:
        """Links to where the machine was reached before: each would be kept for good."""
        in_use = {transfer.address for transfer in list(self._transfers.values())}
        for peer in self._peers.values():
            if peer.address.machine_id == machine_id and peer.address not in in_use:
                peer.fail(LinkError("it is reached at another address now"))

    def settle(self, transfer: Outgoing, outcome: SenderEvent) -> None:
        """The end: unless it knows, the receiver must hear that no put will touch its blocks."""
        if transfer.grant is not None:
            del self._granted[transfer.grant.peer, transfer.grant.number]
        if transfer.settled:
            return
        reason = outcome.reason if isinstance(outcome, Failed) else "cancelled by the sender"
        if transfer.grant is None:
            self._remember_end(transfer.transfer_id, reason)
        else:
            transfer.grant.peer.send(Stopped(transfer.grant.number, reason))

    async def flush(self) -> None:
        """Wait until the kernel has all frames."""
        for peer in list(self._peers.values()):
            await peer.flush()

    async def _serve(self, peer: Peer) -> None:
        """A link's task."""
        reason = "closed"
        try:
            await peer.run(self._on_frame)
        except LinkError as error:
            reason = str(error)
            concerned = any(t.address == peer.address for t in list(self._transfers.values()))
            level = logging.WARNING if concerned else logging.INFO
            logger.log(level, "link to %s ended: %s", peer.address.machine_id, reason)
        except Exception as error:
            reason = f"{type(error).__name__}: {error}"
            logger.exception("link to %s broke", peer.address.machine_id)
        finally:
            self._forget(peer, f"link to {peer.address.machine_id}: {reason}")

    def _forget(self, peer: Peer, reason: str) -> None:
        del self._peers[peer.address]
        self._early_grants = {
            key: early for key, early in self._early_grants.items() if early[0] is not peer
        }
        for transfer in list(self._transfers.values()):  # others' threads add to it
            if transfer.address == peer.address:
                self._fail(transfer, reason)

    def _on_frame(self, peer: Peer, message: AnyMessage) -> None:
        match message:
            case Grant():
                self._on_grant(peer, message)
            case Revoke():
                self._on_revoke(peer, message)
            case Answer():
                self._on_answer(peer, message)
            case Progress():
                transfer = self._granted.get((peer, message.number))
                if transfer is not None:
                    transfer.hear(message.moved_bytes)
            case Refused():
                raise LinkError(f"refused: {message.reason}")
            case _:
                raise LinkError(f"{type(message).__name__} is not for a sender")

    def _on_grant(self, peer: Peer, grant: Grant) -> None:
        if (peer, grant.number) in self._granted:
            raise LinkError(f"number {grant.number} was granted twice")
        transfer = self._transfers.get(grant.transfer_id)
        reason = self._early_ends.pop(grant.transfer_id, None)
        if reason is not None:
            peer.send(Stopped(grant.number, reason))
        elif transfer is None or transfer.address != peer.address or transfer.grant is not None:
            self._early_grants[grant.transfer_id] = (peer, grant)
        else:
            self._open_lane(peer, grant, transfer)

    def _open_lane(self, peer: Peer, grant: Grant, transfer: Outgoing) -> None:
        try:
            lane = peer.lane(grant, transfer.table_blocks)
        except LinkError as error:
            peer.send(Stopped(grant.number, str(error)))
            self._fail(transfer, str(error), settled=True)
            return
        # Set here and not by its task: a transfer that ends first must still answer the grant.
        transfer.grant = Granted(peer, grant.number, lane, grant.skipped)
        transfer.told_s = time.monotonic()
        self._granted[peer, grant.number] = transfer
        transfer.post(transfer.grant)

    def _on_revoke(self, peer: Peer, revoke: Revoke) -> None:
        transfer = self._granted.get((peer, revoke.number))
        if transfer is not None:
            self._fail(transfer, revoke.reason)
            return
        for transfer_id, (granter, grant) in self._early_grants.items():
            if granter is peer and grant.number == revoke.number:
                del self._early_grants[transfer_id]
                self._remember_end(transfer_id, revoke.reason)
                peer.send(Stopped(revoke.number, revoke.reason))
                return
        # Else it has ended here, and Done or Stopped is on its way.

    def _on_answer(self, peer: Peer, answer: Answer) -> None:
        transfer = self._granted.get((peer, answer.number))
        if transfer is None:
            return  # it has run out of time meanwhile
        if answer.stats is None:
            self._fail(transfer, answer.error)
        else:
            transfer.post(Answered(answer.stats))

    def _fail(self, transfer: Outgoing, reason: str, settled: bool = False) -> None:
        transfer.settled = transfer.settled or settled
        transfer.post(Stop(Failed(transfer.transfer_id, reason)))

    def _remember_end(self, transfer_id: str, reason: str) -> None:
        self._early_ends[transfer_id] = reason
        asyncio.get_running_loop().call_later(
            self._config.deadlines.idle_s, self._early_ends.pop, transfer_id, None
        )
