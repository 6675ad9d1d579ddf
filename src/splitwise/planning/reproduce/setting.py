"""Under what a figure is made: profile and rules, prices, model, load, seeds.

Two pairs of profile and rules: ``PUBLISHED`` is what the paper's figures were made with, decode
batches nearly free of charge; ``MEASURED`` takes the measured batch curve and this simulator's own
rules.
"""

from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Final

from splitwise.hardware import load_profile
from splitwise.planning.demand import Demand
from splitwise.planning.design import Design, Family
from splitwise.planning.question import Limits, Objective, Offer, Question
from splitwise.planning.reproduce.published import BASELINES, KINDS
from splitwise.scheduling.pool import Pool
from splitwise.simulation.simulate import rules_named

PUBLISHED: Final = ("published-2024", "published-2024")
MEASURED: Final = ("measured", "default")
DURATION_S: Final = 120.0
STOCK: Final = 400
TRACES: Final = {
    "conversation": "AzureLLMInferenceTrace_conv.csv",
    "coding": "AzureLLMInferenceTrace_code.csv",
}


@dataclass(frozen=True)
class Setting:
    """``rules`` is a pair of profile and rules; ``trace`` the recording that sizes come from.

    As in the paper, two minutes of Poisson arrivals, counted from the first to the last.
    """

    rules: tuple[str, str]
    prices: str
    model: str
    workload: str
    trace: Path | None = None
    seeds: tuple[int, ...] = (1, 2, 3)

    def describe(self) -> str:
        """In words."""
        profile, rules = self.rules
        sizes = "the built-in quantiles" if self.trace is None else "the public trace"
        return (
            f"{self.model}, {self.workload} (sizes from {sizes}), Poisson, {DURATION_S:g} s, "
            f"{len(self.seeds)} seeds; profile {profile}, rules {rules}, prices and power "
            f"'{self.prices}'"
        )

    def question(
        self,
        objective: Objective = Objective.THROUGHPUT,
        rate_per_s: float | None = None,
        limits: Limits | None = None,
    ) -> Question:
        """With the paper's nine SLOs, rates in steps of 1."""
        profile, rules = self.rules
        source = self.workload if self.trace is None else str(self.trace)
        return Question(
            Demand(source, "poisson", DURATION_S, 0.0),
            offers(profile, self.model, self.prices),
            load_profile(profile, "dgx-a100", self.model),
            objective,
            rate_per_s,
            limits or Limits(),
            options=rules_named(rules),
            seeds=self.seeds,
        )

    def family(self, name: str) -> Family:
        """The kinds of a design, such as HA."""
        known = {offer.name: offer for offer in offers(self.rules[0], self.model, self.prices)}
        prompt, token = (known[kind] for kind in KINDS[name])
        if name in BASELINES:
            return Family((prompt,), (Pool.MIXED,))
        return Family((prompt, token), (Pool.PROMPT, Pool.TOKEN))

    def design(self, name: str, counts: tuple[int, ...]) -> Design:
        """So many machines of it."""
        return Design(self.family(name), counts)

    def under(self, rules: tuple[str, str]) -> "Setting":
        """The same under other rules."""
        return replace(self, rules=rules)


@lru_cache(16)
def offers(profile: str, model: str, prices: str) -> tuple[Offer, ...]:
    """Every machine kind of the paper."""
    kinds = dict.fromkeys(kind for pair in KINDS.values() for kind in pair)
    return tuple(Offer(kind, load_profile(profile, kind, model, prices), STOCK) for kind in kinds)


def find_traces(folder: Path | None) -> dict[str, Path]:
    """The public traces in ``folder``, or in its ``azure_llm_2023``, by workload."""
    if folder is None:
        return {}
    found = {}
    for workload, name in TRACES.items():
        for path in (folder / name, folder / "azure_llm_2023" / name):
            if path.exists():
                found[workload] = path
    return found
