"""A cluster designed for one workload under the other.

Claim (Splitwise, section VI.E): a conversation load on the clusters designed for coding costs AA
and HH nothing, HA and HHcap 7 % of the throughput.
"""

from typing import Final

from splitwise.planning.design import Design
from splitwise.planning.question import Limits
from splitwise.planning.report_tables import divided
from splitwise.planning.reproduce.iso import sure
from splitwise.planning.reproduce.published import SAME_POWER
from splitwise.planning.reproduce.section import Figure, Section
from splitwise.planning.reproduce.setting import Setting
from splitwise.planning.search import search_family
from splitwise.planning.trial import Judge
from splitwise.planning.workers import Crew

LOSS: Final = {"AA": 0.0, "HH": 0.0, "HA": 0.07, "HHcap": 0.07}


def robustness(crew: Crew, conversation: Setting, coding: Setting) -> list[Section]:
    """With the published counts, then with the best counts of each workload at that power."""
    own = {name: conversation.design(name, SAME_POWER["conversation"][name]) for name in LOSS}
    foreign = {name: conversation.design(name, SAME_POWER["coding"][name]) for name in LOSS}
    sections = [section(crew, conversation, "published counts", own, foreign)]
    limits = [Limits(watts=max(own[name].watts, foreign[name].watts)) for name in LOSS]
    best = []
    for setting in (conversation, coding):
        asked = [
            (setting.question(limits=limit), setting.family(name))
            for name, limit in zip(LOSS, limits, strict=True)
        ]
        best.append(crew.map_each(f"best for {setting.workload}", search_family, asked))
    found = {
        name: (ours.best.design, theirs.best.design)
        for name, ours, theirs in zip(LOSS, *best, strict=True)
        if ours.best is not None and theirs.best is not None
    }
    own = {name: pair[0] for name, pair in found.items()}
    foreign = {name: conversation.design(name, pair[1].counts) for name, pair in found.items()}
    return [*sections, section(crew, conversation, "best counts", own, foreign)]


def section(
    crew: Crew, setting: Setting, counts: str, own: dict[str, Design], foreign: dict[str, Design]
) -> Section:
    """The share of the throughput that is lost, and both rates."""
    asked = [*own.values(), *foreign.values()]
    rates = [sure(each) for each in crew.map(counts, setting.question(), Judge.most_by_seed, asked)]
    figures = []
    for i, name in enumerate(own):
        ours, theirs = rates[i], rates[i + len(own)]
        figures += [
            Figure(f"{name} for conversation, {own[name].name}", ours, None, "1/s"),
            Figure(f"{name} for coding, {foreign[name].name}", theirs, None, "1/s"),
            Figure(f"{name}: lost", 100 * (1 - divided(theirs, ours)), 100 * LOSS[name], "%"),
        ]
    title = f"Conversation on clusters for coding, {counts}"
    return Section(title, setting.describe(), tuple(figures), REMARKS)


REMARKS: Final = (
    "A negative loss means that the cluster for coding carries more of the conversation load.",
)
