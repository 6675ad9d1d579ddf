"""Prompts that are computed in chunks, drawn at random: what is said of them, and what must follow.

A plan is said to a sender step by step; what must lie at the receiver then is told by numpy alone.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitwise.transfer import CacheLayout, KVSender, ReceiverAddress
from waiting import eventually

Regions = list[npt.NDArray[np.uint8]]
"""A cache's regions, each flat."""


@dataclass(frozen=True)
class Extend:
    upto: int


@dataclass(frozen=True)
class Ready:
    """By None the whole table."""

    layer: int
    upto: int | None


@dataclass(frozen=True)
class Held:
    upto: int


Step = Extend | Ready | Held


@dataclass(frozen=True)
class Plan:
    """``target`` is where the source's entries from ``skipped`` on go; ``known`` of them are so
    when the transfer begins. The receiver expects it before step ``expected_at``."""

    source: list[int]
    target: list[int]
    skipped: int
    known: int
    all_ready: bool
    steps: list[Step]
    expected_at: int
    ready: list[int]
    """By layer: so many entries were said to be written before the end."""

    def early_entries(self) -> int:
        """Of all layers: to be put before the end."""
        return sum(max(0, upto - self.skipped) for upto in self.ready)

    def say(
        self, name: str, sender: KVSender, address: ReceiverAddress, expect: Callable[[], None]
    ) -> None:
        """All but ``finish``."""
        sender.begin(name, address, self.source[: self.known], self.all_ready, len(self.source))
        known = self.known
        for number, step in enumerate(self.steps):
            if number == self.expected_at:
                expect()
            match step:
                case Extend():
                    sender.extend(name, self.source[known : step.upto])
                    known = step.upto
                case Ready(layer, upto):
                    sender.layer_ready([name], layer, None if upto is None else [upto])
                case Held():
                    sender.held(name, step.upto)
        if self.expected_at == len(self.steps):
            expect()

    def until_put(self, name: str, sender: KVSender, layout: CacheLayout) -> None:
        """Wait until all that was said to be written has been put. Layers are alike in size."""
        nbytes = self.early_entries() * layout.block_bytes(0)
        transfer = sender._transfers[name]
        eventually(lambda: transfer.grant is not None and transfer.put_bytes == nbytes)

    def moved(self, layout: CacheLayout, before: Regions, after: Regions, blocks: int) -> Regions:
        """What ``after``, of ``blocks`` blocks, becomes."""
        result = []
        for region, source, target in zip(layout.regions, before, after, strict=True):
            rows = source.reshape(region.layers, layout.blocks, -1)
            there = target.copy().reshape(region.layers, blocks, -1)
            there[:, self.target] = rows[:, self.source[self.skipped :]]
            result.append(there.ravel())
        return result


def draw_plan(rng: random.Random, layers: int, source_blocks: int, target_blocks: int) -> Plan:
    entries = rng.randint(1, 14)
    skipped = rng.choice((0, 0, rng.randint(0, entries)))
    source = _table(rng, source_blocks, entries)
    at_begin = known = rng.randint(0, entries)
    all_ready = rng.random() < 0.2
    ready = [known if all_ready else 0] * layers
    steps: list[Step] = []
    for _ in range(rng.randint(1, 6)):
        if known < entries and rng.random() < 0.7:
            known = rng.randint(known + 1, entries)
            steps.append(Extend(known))
        if rng.random() < 0.25:
            upto = rng.randint(0, known)
            steps.append(Held(upto))
            ready = [max(upto, before) for before in ready]
            continue
        upto = rng.randint(0, known)
        for layer in rng.sample(range(layers), rng.randint(0, layers)):
            if ready[layer] < entries:
                is_whole = known == entries and rng.random() < 0.3
                steps.append(Ready(layer, None if is_whole else upto))
                ready[layer] = entries if is_whole else max(upto, ready[layer])
    if known < entries:
        steps.append(Extend(entries))
    return Plan(
        source,
        _table(rng, target_blocks, entries - skipped),
        skipped,
        at_begin,
        all_ready,
        steps,
        rng.randint(0, len(steps)),
        ready,
    )


def _table(rng: random.Random, blocks: int, entries: int) -> list[int]:
    """Runs and single blocks."""
    table: list[int] = []
    free = set(range(blocks))
    while len(table) < entries:
        block = rng.choice(sorted(free))
        for _ in range(rng.randint(1, 5)):
            if block in free and len(table) < entries:
                free.remove(block)
                table.append(block)
                block += 1
    return table


def split(layout: CacheLayout, flat: npt.NDArray[np.uint8]) -> Regions:
    """A cache that lies in one piece, by regions."""
    sizes = [layout.region_bytes(index) for index in range(len(layout.regions))]
    return np.split(flat, np.cumsum(sizes)[:-1])


def assert_same(there: Regions, wanted: Sequence[npt.NDArray[np.uint8]]) -> None:
    for got, expected in zip(there, wanted, strict=True):
        np.testing.assert_array_equal(got, expected)
