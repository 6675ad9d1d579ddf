"""A paged KV cache's way from the machine that runs a prompt to the one that runs its tokens.

The life of a transfer, with who acts (T the token machine, P the prompt machine):

1. T: ``KVReceiver.expect`` reserves blocks; P learns them over a link of its own, whenever that
   is. P: ``KVSender.begin`` names the request's blocks and the receiver. Either may come first.
   Where T holds the beginning of the cache already it says how many blocks to skip.
2. P: ``layer_ready`` after each layer of the prompt. The sender's thread puts the layer into T's
   blocks while the next layer computes: through shared memory, CUDA IPC, NIXL or TCP, whichever
   both ends can do. Layers that are ready before T's blocks are known are put when they are.
   A prompt in chunks: ``layer_ready`` comes with each chunk again and says up to which block, and
   ``extend`` names blocks that were not known at the beginning. What P held before, of other
   prompts, is ``held``, and goes first.
3. P: ``finish`` once the first token is sampled. After the last put one signal goes to T.
4. T: ``Arrived``. P: ``Sent``. Both own their blocks again, and only now.
5. Or it ends another way: ``cancel`` at either end, a lost peer, a deadline (counted from the last
   progress), a checksum. Each end still gets exactly one event, and gets it when its blocks may be
   used again, not before.

A machine of several ranks has a sender and a receiver a rank (``KVSender``, ``KVReceiver``), each
over the heads that it holds of every block; ``MachineSender`` and ``MachineReceiver`` are all of
them as one.

Knows bytes, block tables and sockets; nothing of models, engines or schedulers.
"""

from splitwise.transfer.address import ReceiverAddress
from splitwise.transfer.deadlines import Deadlines
from splitwise.transfer.events import (
    Arrived,
    Cancelled,
    Failed,
    ReceiverEvent,
    Released,
    SenderEvent,
    Sent,
    TransferStats,
)
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.machine_ends import MachineReceiver, MachineSender
from splitwise.transfer.memory import CacheMemory, HostMemory
from splitwise.transfer.receiver import KVReceiver
from splitwise.transfer.sender import KVSender

__all__ = [
    "Arrived",
    "CacheLayout",
    "CacheMemory",
    "Cancelled",
    "Deadlines",
    "Failed",
    "HostMemory",
    "KVReceiver",
    "KVSender",
    "MachineReceiver",
    "MachineSender",
    "ReceiverAddress",
    "ReceiverEvent",
    "Released",
    "SenderEvent",
    "Sent",
    "TransferStats",
]
