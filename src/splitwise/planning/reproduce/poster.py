"""The poster's table: 70 A100 against Splitwise clusters of the same power.

Four times: the published rules with the published counts and with the best counts, and the same
under the measured batch curve, where the published counts miss their SLOs at those rates. The last
table is the one that a buyer needs.
"""

from typing import Final

from splitwise.planning.confidence import sureness
from splitwise.planning.design import Design
from splitwise.planning.question import Limits
from splitwise.planning.reproduce.published import (
    POSTER_COST,
    POSTER_POWER,
    POSTER_SERVERS,
    POSTER_THROUGHPUT,
    SAME_POWER,
)
from splitwise.planning.reproduce.section import Figure, Section
from splitwise.planning.reproduce.setting import MEASURED, PUBLISHED, Setting
from splitwise.planning.search import search_family
from splitwise.planning.trial import Judge
from splitwise.planning.workers import Crew

COUNTS: Final = SAME_POWER["conversation"]
NAMES: Final = {"AA": "homogeneous", "HA": "heterogeneous"}
BASELINE: Final = "A100"


def poster(crew: Crew, setting: Setting) -> list[Section]:
    """All four tables."""
    sections = []
    for rules in (PUBLISHED, MEASURED):
        here = setting.under(rules)
        published = {name: here.design(name, COUNTS[name]) for name in (BASELINE, *NAMES)}
        sections.append(table(crew, here, "published counts", published))
        best = {BASELINE: published[BASELINE], **best_counts(crew, here, published)}
        sections.append(table(crew, here, "best counts at the same power", best))
    return sections


def best_counts(crew: Crew, setting: Setting, published: dict[str, Design]) -> dict[str, Design]:
    """The counts of each design that carry most with the power of the published counts."""
    asked = [
        (setting.question(limits=Limits(watts=published[name].watts)), published[name].family)
        for name in NAMES
    ]
    answers = crew.map_each(f"poster, {setting.rules[0]}", search_family, asked)
    return {
        name: answer.best.design if answer.best else published[name]
        for name, answer in zip(NAMES, answers, strict=True)
    }


def table(crew: Crew, setting: Setting, counts: str, designs: dict[str, Design]) -> Section:
    """Servers, cost, power and throughput of each design against the baseline."""
    rates = crew.map(
        f"poster, {counts}", setting.question(), Judge.most_by_seed, list(designs.values())
    )
    sure = dict(zip(designs, (sureness(each) for each in rates), strict=True))
    base, base_rate = designs[BASELINE], sure[BASELINE].mean
    figures = [rate_figure(base, base_rate)]
    for name, label in NAMES.items():
        design, rate = designs[name], sure[name]
        figures += [
            rate_figure(design, rate.mean),
            Figure(f"{label}: servers", design.machines / base.machines, POSTER_SERVERS[name]),
            Figure(
                f"{label}: cost",
                design.dollars_per_hour / base.dollars_per_hour,
                POSTER_COST[name],
            ),
            Figure(f"{label}: power", design.watts / base.watts, POSTER_POWER[name]),
            Figure(f"{label}: throughput", rate.mean / base_rate, POSTER_THROUGHPUT[name]),
        ]
    intervals = "; ".join(
        f"{designs[name].name}: {one.low:.1f} to {one.high:.1f}/s" for name, one in sure.items()
    )
    remarks = [f"95 % confidence of the mean highest rate, {intervals}."]
    if setting.rules == MEASURED:
        remarks.append(MEASURED_REMARK)
    elif counts.startswith("published"):
        remarks.append(PUBLISHED_REMARK)
    return Section(f"Poster, {counts}", setting.describe(), tuple(figures), tuple(remarks))


def rate_figure(design: Design, rate_per_s: float) -> Figure:
    """The highest rate of a cluster."""
    return Figure(f"{design.name}: highest rate", rate_per_s, None, "1/s")


PUBLISHED_REMARK: Final = (
    "The published ratios come from a grid of 10 requests/s: 120/50 and 130/50, where 130 is the "
    "last rate of the grid and still carried by the heterogeneous cluster; a step of 1 and no such "
    "end give the ratios above. They also rest on a decode table that the published rules read by "
    "the number of decodes where it was measured by prompt tokens, so that a batch of 64 takes "
    "hardly longer than one request."
)
MEASURED_REMARK: Final = (
    "Under the measured batch curve decodes in large batches miss the TBT SLOs (1.25 times alone "
    "at the median) long before prompts queue. The published counts have few token machines with "
    "large batches, and then carry less than the baseline; with more token machines the split "
    "carries more than the baseline, but by less than published."
)
