"""The caches that leave a machine: the transfers of its prompts.

The life of a transfer here:

1. ``enter``, as its prompt gets a place in an iteration: one that is long enough begins at once.
2. ``hand_over``, called after each layer of that iteration: layers that are done go out, several
   together where they are small. A short one begins, in one piece, after the last layer.
3. ``finish`` signals the first token; or ``cancel``. The transfer has the last word either way
   (``machine`` takes it in).

Prompts without a target stay, and are passed over.
"""

from collections.abc import Callable, Sequence

import msgspec

from splitwise.transfer import MachineSender
from splitwise.transfer.layout import CacheLayout
from splitwise.worker.task import Task, TaskState


class Departures:
    """Begins transfers, and feeds them as layers are done."""

    def __init__(
        self,
        sender: MachineSender,
        layout: CacheLayout,
        one_piece_below_tokens: int,
        put_bytes: int,
    ) -> None:
        """``put_bytes``: layers go out together until they make up this much."""
        self._sender = sender
        self._last_layer = layout.layers - 1
        self._block_bytes = max(map(layout.block_bytes, range(layout.layers)))
        """Of a block in one layer."""
        self._one_piece_below_tokens = one_piece_below_tokens
        self._put_bytes = put_bytes

    def enter(self, task: Task) -> None:
        """A prompt has blocks, and a place in the next iteration."""
        if len(task.history) >= self._one_piece_below_tokens:
            self._begin(task)

    def hand_over(self, batch: Sequence[Task]) -> Callable[[int], None]:
        """What is to be called with each layer that is done of an iteration of these tasks."""
        layered = [task for task in batch if task.is_sending]
        whole = [t for t in batch if t.state is TaskState.PROMPT and not t.is_sending]
        transfer_ids = [task.transfer_id for task in layered]
        layer_bytes = self._block_bytes * sum(len(task.blocks) for task in layered)
        together = max(1, self._put_bytes // max(1, layer_bytes))

        def on_layer(layer: int) -> None:
            is_last = layer == self._last_layer
            if transfer_ids and (is_last or (layer + 1) % together == 0):
                for ready in range(layer - layer % together, layer + 1):
                    self._sender.layer_ready(transfer_ids, ready)
            if is_last:
                for task in whole:
                    self._begin(task, all_ready=True)

        return on_layer

    def finish(self, task: Task) -> None:
        """The last layer is done, and the first token is known."""
        self._sender.finish(task.transfer_id, msgspec.msgpack.encode(task.history[-1]))

    def cancel(self, task: Task) -> None:
        """A transfer that was begun is wanted no more."""
        self._sender.cancel(task.transfer_id)

    def _begin(self, task: Task, all_ready: bool = False) -> None:
        if task.target is not None:
            task.is_sending = True
            self._sender.begin(task.transfer_id, task.target, task.blocks, all_ready)
