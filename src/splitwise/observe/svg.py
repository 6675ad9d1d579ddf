"""Plots as SVG elements, to be set into a page. Needs matplotlib.

Text stays text, so that it can be searched and read out. The ids of elements are dropped or
salted with the plot's name: many plots share one page.
"""

import io
import re
from collections.abc import Callable, Sequence
from typing import Final

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

_SIZE_INCHES: Final = (5.6, 3.2)


def plot(
    name: str, draw: Callable[[Axes], None], size_inches: tuple[float, float] = _SIZE_INCHES
) -> str:
    """An SVG element with what ``draw`` puts on its axes; equal input gives equal text."""
    return panels(name, 1, lambda axes: draw(axes[0]), size_inches)


def panels(
    name: str,
    columns: int,
    draw: Callable[[Sequence[Axes]], None],
    size_inches: tuple[float, float],
) -> str:
    """Like ``plot``, with so many axes side by side."""
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name, "font.size": 9}):
        figure = Figure(figsize=size_inches, layout="constrained")
        all_axes = [figure.add_subplot(1, columns, i + 1) for i in range(columns)]
        draw(all_axes)
        for axes in all_axes:
            _finish(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()
    return re.sub(r'<g id="[^"]*">', "<g>", svg[svg.index("<svg") :])


def _finish(axes: Axes) -> None:
    """A faint grid, no frame, and the legend above."""
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    if axes.get_legend_handles_labels()[1]:
        axes.legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=3)
