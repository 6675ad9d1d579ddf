"""The figures of ``reproduce`` as one HTML file: a table and a plot a section."""

from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Final

from splitwise.observe.page import figures, page, require_matplotlib, table
from splitwise.planning.reproduce.section import HEAD, Figure, Section

TITLE: Final = "Splitwise: the paper's figures, made anew"
INTRODUCTION: Final = (
    "Each figure stands beside the published number. Sections under the profile published-2024 "
    "follow the rules that the published figures were made with, where decode batches are nearly "
    "free of charge; sections under the profile measured take the measured batch curve."
)
_ROW_INCHES: Final = 0.32


def write_html(sections: Sequence[Section], path: Path) -> None:
    """Write the report to ``path``.

    Raises:
        ReportError: matplotlib is missing.
    """
    require_matplotlib()
    body = f"<p>{escape(INTRODUCTION)}</p>" + "".join(part(one) for one in sections)
    path.write_text(page(TITLE, body), encoding="utf-8")


def part(section: Section) -> str:
    """Title, setting, table, plot, remarks."""
    rows = [[escape(cell) for cell in figure.cells()] for figure in section.figures]
    compared = [one for one in section.figures if one.published is not None]
    shown = figures([(CAPTION, bars(section.title, compared))]) if compared else ""
    remarks = "".join(f"<p>{escape(remark)}</p>" for remark in section.remarks)
    return (
        f"<h2>{escape(section.title)}</h2><p>{escape(section.setting)}</p>"
        f"{table(HEAD, rows)}{shown}{remarks}"
    )


CAPTION: Final = "Ours (bars) as a share of the published number (line at 1)"


def bars(name: str, compared: Sequence[Figure]) -> str:
    """A bar a figure that was published: ours divided by it."""
    from matplotlib.axes import Axes

    from splitwise.observe.svg import plot

    known = [one for one in compared if one.difference is not None]

    def draw(axes: Axes) -> None:
        shares = [1 + (one.difference or 0.0) for one in known]
        axes.barh(range(len(known)), shares, color="#1d4ed8", height=0.6)
        axes.set_yticks(range(len(known)), [one.what for one in known])
        axes.invert_yaxis()
        axes.axvline(1.0, color="#c2410c")
        axes.set_xlabel("ours / published")

    return plot(name, draw, (7.5, 0.9 + _ROW_INCHES * len(known)))
