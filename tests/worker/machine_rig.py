"""A machine with a real, tiny engine and real transfers, driven step by step in this process."""

import queue
import time
from collections.abc import Callable
from pathlib import Path

import msgspec
import torch
from transfer_machines import ends_of_one_rank
from transformers import LlamaConfig, LlamaForCausalLM

from splitwise.engine.model_files import ModelFolder
from splitwise.engine.torch.engine import TorchEngine
from splitwise.protocol.generation import FinishReason
from splitwise.protocol.messages import Outputs
from splitwise.transfer import ReceiverAddress
from splitwise.worker.machine import Machine, MachineLimits

VOCABULARY = 128
WAIT_S = 20.0
KEY = "a key for the test"
LIMITS = MachineLimits(one_piece_below_tokens=8)


def tiny_folder(path: Path) -> ModelFolder:
    """A model of random weights."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        eos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return ModelFolder(path, "tiny")


class Rig:
    """A machine with its inbox, driven step by step."""

    def __init__(
        self,
        folder: ModelFolder,
        name: str,
        blocks: int,
        limits: MachineLimits = LIMITS,
    ) -> None:
        block_bytes = 3 * 2 * 16 * 2 * 8 * 4  # layers, K and V, tokens, KV heads, dims, float32
        self.engine = TorchEngine(folder, blocks * block_bytes)
        self.inbox: queue.SimpleQueue[object] = queue.SimpleQueue()
        self.said: list[msgspec.Struct] = []
        self.receiver, self.sender = ends_of_one_rank(
            self.engine.memory, self.engine.layout, name, KEY, self.inbox.put
        )
        self.machine = Machine(self.engine, self.sender, self.receiver, self.said.append, limits)

    @property
    def addresses(self) -> list[ReceiverAddress]:
        return self.receiver.addresses

    def turn(self) -> None:
        """Take in what has come, and run one iteration."""
        while not self.inbox.empty():
            self.machine.handle(self.inbox.get())  # type: ignore[arg-type]
        self.machine.iterate()

    def tokens(self, task: int) -> list[int]:
        return [
            item.sample.token
            for message in self.said
            if isinstance(message, Outputs)
            for item in message.items
            if item.task == task
        ]

    def finish(self, task: int) -> FinishReason | None:
        items = [i for m in self.said if isinstance(m, Outputs) for i in m.items if i.task == task]
        return items[-1].finish if items else None

    def heard(self, kind: type[msgspec.Struct]) -> list[msgspec.Struct]:
        return [message for message in self.said if isinstance(message, kind)]

    @property
    def is_empty(self) -> bool:
        status = self.machine.status()
        return not (status.used_blocks or status.running_requests or status.waiting_requests)

    def close(self) -> None:
        self.sender.close()
        self.receiver.close()
        self.engine.close()


def run_until(done: Callable[[], bool], *rigs: Rig) -> None:
    deadline = time.monotonic() + WAIT_S
    while not done():
        assert time.monotonic() < deadline, [rig.said for rig in rigs]
        for rig in rigs:
            rig.turn()
