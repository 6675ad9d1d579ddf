"""The parts of ``splitwise reproduce``, by name."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from splitwise.planning.errors import PlanningError
from splitwise.planning.reproduce import iso
from splitwise.planning.reproduce.characterization import characterization
from splitwise.planning.reproduce.claims import claims
from splitwise.planning.reproduce.poster import poster
from splitwise.planning.reproduce.robustness import robustness
from splitwise.planning.reproduce.section import Section
from splitwise.planning.reproduce.setting import MEASURED, PUBLISHED, Setting
from splitwise.planning.workers import Crew

BOTH_RULES: Final = (PUBLISHED, MEASURED)
WORKLOADS: Final = ("conversation", "coding")
ALL: Final = "all"


@dataclass(frozen=True)
class Ground:
    """What all parts stand on: a model, the public traces that are at hand, and seeds."""

    model: str = "bloom-176b"
    traces: dict[str, Path] = field(default_factory=dict)
    seeds: tuple[int, ...] = (1, 2, 3)

    def setting(self, rules: tuple[str, str], prices: str, workload: str) -> Setting:
        """Sizes come from the public trace where it is at hand."""
        trace = self.traces.get(workload)
        return Setting(rules, prices, self.model, workload, trace, self.seeds)


Part = Callable[[Crew, Ground], list[Section]]


def make_poster(crew: Crew, ground: Ground) -> list[Section]:
    """With the built-in workload, and with the public trace where it is at hand."""
    built_in = Setting(PUBLISHED, "plots", "bloom-176b", "conversation", None, ground.seeds)
    sections = poster(crew, built_in)
    trace = ground.traces.get("conversation")
    if trace is not None:
        with_trace = Setting(PUBLISHED, "plots", "bloom-176b", "conversation", trace, ground.seeds)
        sections += poster(crew, with_trace)
    return sections


def each_workload(make: Callable[[Crew, Setting], list[Section]]) -> Part:
    """``make`` for two workloads under both rules."""

    def part(crew: Crew, ground: Ground) -> list[Section]:
        return [
            section
            for rules in BOTH_RULES
            for workload in WORKLOADS
            for section in make(crew, ground.setting(rules, "paper", workload))
        ]

    return part


def both_workloads(make: Callable[[Crew, Setting, Setting], list[Section]]) -> Part:
    """``make`` for the two workloads together, under both rules."""

    def part(crew: Crew, ground: Ground) -> list[Section]:
        return [
            section
            for rules in BOTH_RULES
            for section in make(
                crew, *(ground.setting(rules, "paper", workload) for workload in WORKLOADS)
            )
        ]

    return part


def make_iso_throughput(crew: Crew, ground: Ground) -> list[Section]:
    """Conversation under both rules, and the paper's example of a search."""
    sections = []
    for rules in BOTH_RULES:
        sections += iso.same_throughput(crew, ground.setting(rules, "paper", "conversation"))
        sections.append(iso.example(crew, ground.setting(rules, "paper", "coding")))
    return sections


def make_characterization(crew: Crew, ground: Ground) -> list[Section]:
    """One machine and one pair."""
    del crew  # a few simulations, done here
    return characterization("paper", {name: str(path) for name, path in ground.traces.items()})


PARTS: Final[dict[str, Part]] = {
    "poster": make_poster,
    "iso-power": each_workload(iso.same_power),
    "iso-cost": each_workload(iso.same_cost),
    "iso-throughput": make_iso_throughput,
    "robustness": both_workloads(robustness),
    "characterization": make_characterization,
    "claims": both_workloads(claims),
}


def make(names: list[str], crew: Crew, ground: Ground) -> list[Section]:
    """The sections of these parts; ``all`` stands for every part.

    Raises:
        PlanningError: no such part.
    """
    wanted = list(PARTS) if ALL in names else names
    unknown = [name for name in wanted if name not in PARTS]
    if unknown:
        raise PlanningError(f"part {unknown[0]!r}: choose from {', '.join([*PARTS, ALL])}")
    return [section for name in wanted for section in PARTS[name](crew, ground)]
