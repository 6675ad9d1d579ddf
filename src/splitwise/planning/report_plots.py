"""The plan's plots, each a caption and an SVG element to be set into a page. Needs matplotlib."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator
from numpy.typing import NDArray

from splitwise.observe.svg import panels, plot
from splitwise.planning.curves import LatencyCurve, Neighbourhood
from splitwise.planning.plan import Plan
from splitwise.planning.question import Objective
from splitwise.planning.sensitivity import Case

Figure = tuple[str, str]
"""A caption in plain text, and an SVG element."""

OWN: Final = "#b91c1c"
"""The plan's best, wherever it is seen."""
ASKED: Final = "#111827"
PERCENTILES: Final = (("p50", "#1d4ed8"), ("p90", "#0f766e"), ("p99", "#c2410c"))
METRICS: Final = (("ttft", "TTFT, ms", 1000), ("tbt", "TBT, ms", 1000), ("e2e", "E2E, s", 1))
"""A metric, its axis, and how many of the axis's units a second has."""
DARK_SHARE: Final = 0.6


def split_map(seen: Neighbourhood, rate_per_s: float | None) -> Figure:
    """The highest rate by counts; ``rate_per_s`` is the asked one."""
    caption = (
        f"Highest rate carried (requests/s, first seed) by clusters around the best, "
        f"{seen.best.name}, all else being equal."
    )
    if seen.best.family.is_split:
        size = (7.0, 5.4)
        return caption, plot("split", lambda axes: _heat(axes, seen, rate_per_s), size)
    return caption, plot("split", lambda axes: _line(axes, seen, rate_per_s), (7.0, 4.0))


def _heat(axes: Axes, seen: Neighbourhood, rate_per_s: float | None) -> None:
    """Prompt machines to the right, token machines up; a cell a cluster, with its rate."""
    rates = seen.rates_per_s.T
    dark_from = rates.min() + DARK_SHARE * np.ptp(rates)
    axes.pcolormesh(rates, cmap="Blues", edgecolors="white", linewidth=0.5)
    for (row, column), rate in np.ndenumerate(rates):
        colour = "white" if rate > dark_from else "black"
        axes.text(column + 0.5, row + 0.5, f"{rate:g}", ha="center", va="center", color=colour)
    _hatch_forbidden(axes, ~seen.is_allowed.T)
    if rate_per_s is not None:
        lines = LineCollection(boundary(rates >= rate_per_s), colors=ASKED, linewidths=2)
        lines.set_label(f"edge of what carries {rate_per_s:g}/s")
        axes.add_collection(lines)
    column, row = seen.place_of_best
    axes.add_patch(
        Rectangle(
            (column, row), 1, 1, fill=False, edgecolor=OWN, linewidth=3, zorder=5, label="best"
        )
    )
    for set_ticks, set_label, which in (
        (axes.set_xticks, axes.set_xlabel, 0),
        (axes.set_yticks, axes.set_ylabel, 1),
    ):
        family, counts = seen.best.family, seen.axes[which]
        set_ticks(np.arange(len(counts)) + 0.5, labels=[str(count) for count in counts])
        set_label(f"{family.pools[which].name.lower()} machines, {family.offers[which].name}")
    axes.set_axisbelow(True)


def _hatch_forbidden(axes: Axes, is_forbidden: NDArray[np.bool_]) -> None:
    for number, (row, column) in enumerate(np.argwhere(is_forbidden)):
        label = "over a limit or the stock" if number == 0 else None
        axes.add_patch(
            Rectangle(
                (column, row), 1, 1, fill=False, hatch="//", edgecolor="#9ca3af", lw=0, label=label
            )
        )


def boundary(inside: NDArray[np.bool_]) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """The cell edges between True and False, in (column, row)."""
    across = np.argwhere(inside[1:] != inside[:-1]).tolist()
    along = np.argwhere(inside[:, 1:] != inside[:, :-1]).tolist()
    return [
        *(((column, row + 1), (column + 1, row + 1)) for row, column in across),
        *(((column + 1, row), (column + 1, row + 1)) for row, column in along),
    ]


def _line(axes: Axes, seen: Neighbourhood, rate_per_s: float | None) -> None:
    """A baseline has one count only."""
    counts, rates, allowed = np.array(seen.axes[0]), seen.rates_per_s, seen.is_allowed
    axes.plot(counts, rates, "o-", color=PERCENTILES[0][1])
    if not allowed.all():
        axes.plot(
            *(counts[~allowed], rates[~allowed], "x"),
            color="#6b7280",
            markersize=10,
            label="over a limit or the stock",
        )
    if rate_per_s is not None:
        axes.axhline(rate_per_s, color=ASKED, label=f"asked for, {rate_per_s:g}/s")
    (where,) = seen.place_of_best
    axes.plot(counts[where], rates[where], "s", color=OWN, markersize=10, label="best")
    axes.set_xlabel(f"mixed machines, {seen.best.family.offers[0].name}")
    axes.set_ylabel("requests/s carried")


def latency_rows(curves: Sequence[LatencyCurve]) -> list[Figure]:
    """A row of three panels a cluster; all rows have the same axes."""
    limits = [_limits(curves, metric, scale) for metric, _, scale in METRICS]
    most = max(point.rate_per_s for curve in curves for point in curve.points)

    def row(number: int, curve: LatencyCurve) -> Figure:
        def draw(all_axes: Sequence[Axes]) -> None:
            for axes, (metric, label, scale), limit in zip(all_axes, METRICS, limits, strict=True):
                _latencies(axes, curve, metric, scale, has_legend=axes is all_axes[0])
                axes.set(ylabel=label, ylim=limit, xlim=(0, most * 1.02), xlabel="requests/s")

        caption = (
            f"{curve.design.name}: percentiles of the latencies over the rate; it carries "
            f"{curve.highest_per_s:g}/s (dashed)."
        )
        return caption, panels(f"latency{number}", len(METRICS), draw, (13.0, 2.8))

    return [row(number, curve) for number, curve in enumerate(curves)]


def _latencies(
    axes: Axes, curve: LatencyCurve, metric: str, scale: float, has_legend: bool
) -> None:
    """One metric's percentiles; what never came (infinite) is left out."""
    rates = [point.rate_per_s for point in curve.points]
    for percentile, colour in PERCENTILES:
        label = percentile.upper() if has_legend else None
        values = _values(curve, metric, percentile) * scale
        axes.plot(rates, values, "o-", markersize=3, color=colour, label=label)
    axes.axvline(curve.highest_per_s, color=OWN, linestyle="--", linewidth=1)
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, place: f"{value:g}"))


def _values(curve: LatencyCurve, metric: str, percentile: str) -> NDArray[np.float64]:
    """Seconds at each point; nan where infinite."""
    percentiles = [getattr(point.outcome, f"{metric}_s") for point in curve.points]
    values = np.array([getattr(one, percentile) for one in percentiles], dtype=float)
    return np.where(np.isfinite(values), values, np.nan)


def _limits(curves: Sequence[LatencyCurve], metric: str, scale: float) -> tuple[float, float]:
    """Of an axis that all curves fit on."""
    values = np.array(
        [_values(curve, metric, percentile) for curve in curves for percentile, _ in PERCENTILES]
    )
    return float(np.nanmin(values)) * scale / 1.3, float(np.nanmax(values)) * scale * 1.3


def pareto(plan: Plan) -> Figure:
    """Cost against power of all that was found; the front has its table's numbers."""

    def draw(axes: Axes) -> None:
        found = [one for answer in plan.answers for one in answer.improvements]
        rates = [one.rate_per_s for one in (*found, *plan.front)]
        colours: dict[str, Any] = {"cmap": "viridis", "vmin": min(rates), "vmax": max(rates)}
        faint: dict[str, Any] = {"s": 18, "alpha": 0.35, "label": "found"}
        bold: dict[str, Any] = {"s": 60, "edgecolors": "black", "label": "on the front"}
        for clusters, looks in ((found, faint), (plan.front, bold)):
            dollars = [one.design.dollars_per_hour for one in clusters]
            kilowatts = [one.design.watts / 1000 for one in clusters]
            speeds = [one.rate_per_s for one in clusters]
            points = axes.scatter(dollars, kilowatts, c=speeds, **colours, **looks)
        for place, numbers in front_places(plan).items():
            axes.annotate(numbers, place, (5, 5), textcoords="offset points")
        if min(rates) < max(rates):
            axes.figure.colorbar(points, ax=axes, label="requests/s carried")
        axes.set_xlabel("dollars an hour")
        axes.set_ylabel("kW provisioned")

    caption = (
        "Cost against power of every cluster that the search found to beat another; the numbers "
        "are those of the table, on the Pareto front of cost, power and rate."
    )
    return caption, plot("pareto", draw, (7.0, 4.2))


def front_places(plan: Plan) -> dict[tuple[float, float], str]:
    """The front's numbers by dollars an hour and kW; clusters in one place share a label."""
    places: dict[tuple[float, float], str] = {}
    for number, one in enumerate(plan.front, 1):
        place = (round(one.design.dollars_per_hour, 6), round(one.design.watts / 1000, 6))
        places[place] = f"{places[place]}, {number}" if place in places else str(number)
    return places


def what_if(plan: Plan) -> Figure:
    """Each case's spending and rate as a distance from the plan's own."""
    is_power = plan.question.objective is Objective.POWER
    own = plan.best.design
    spent = own.watts / 1000 if is_power else own.dollars_per_hour
    cases = plan.sensitivity

    def draw(all_axes: Sequence[Axes]) -> None:
        spending = [case.watts / 1000 if is_power else case.dollars_per_hour for case in cases]
        unit = "kW provisioned" if is_power else "dollars an hour"
        _dots(all_axes[0], cases, spending, spent, unit)
        _dots(
            *(all_axes[1], cases, [case.rate_per_s for case in cases]),
            *(plan.best.rate_per_s, "requests/s"),
        )
        all_axes[1].set_yticklabels([])

    caption = (
        "What if: the best cluster's spending and rate after each change, against the plan's own "
        "(red line)."
    )
    return caption, panels("what-if", 2, draw, (13.0, 0.9 + 0.3 * len(cases)))


def _dots(
    axes: Axes, cases: Sequence[Case], values: Sequence[float], own: float, unit: str
) -> None:
    """A case a line, the first on top."""
    places = np.arange(len(cases))[::-1]
    axes.axvline(own, color=OWN, linewidth=1)
    axes.hlines(places, own, values, color="#9ca3af")
    axes.plot(values, places, "o", color=PERCENTILES[0][1])
    for place, value in zip(places, values, strict=True):
        to_left = value < own
        axes.annotate(
            _change(value, own),
            (value if np.isfinite(value) else own, place),
            (-7 if to_left else 7, 0),
            textcoords="offset points",
            va="center",
            ha="right" if to_left else "left",
        )
    axes.set_ylim(-0.7, len(cases) - 0.3)
    axes.set_yticks(places, labels=[case.change for case in cases])
    axes.margins(x=0.2)
    axes.set_xlabel(unit)


def _change(value: float, own: float) -> str:
    """A share of the plan's own, which may be free; none where there is no cluster."""
    if not np.isfinite(value):
        return "none"
    return f"{value / own - 1:+.0%}" if own > 0 else f"{value:+g}"
