"""Figures beside the published ones: what every part of ``reproduce`` gives."""

from dataclasses import dataclass

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Figure:
    """A number of ours, and the published one if there is one; ``unit`` such as x, ms or 1/s."""

    what: str
    ours: float
    published: float | None = None
    unit: str = "x"

    @property
    def difference(self) -> float | None:
        """Ours against the published one, as a share of it."""
        if self.published is None or self.published == 0:
            return None
        return self.ours / self.published - 1

    def cells(self) -> tuple[str, str, str, str]:
        """What, ours, published, difference."""
        difference = self.difference
        return (
            self.what,
            f"{self.ours:.4g} {self.unit}",
            "" if self.published is None else f"{self.published:.4g} {self.unit}",
            "" if difference is None else f"{difference:+.1%}",
        )


@dataclass(frozen=True)
class Section:
    """Figures of one setting. ``remarks`` say where and why they disagree with the published."""

    title: str
    setting: str
    figures: tuple[Figure, ...]
    remarks: tuple[str, ...] = ()


HEAD = ("figure", "ours", "published", "difference")


def print_section(section: Section, console: Console) -> None:
    """A title, the setting, a table, the remarks."""
    console.print(f"\n[bold]{section.title}[/]\n{section.setting}", highlight=False)
    table = Table(box=SIMPLE)
    for column in HEAD:
        table.add_column(column, justify="left" if column == "figure" else "right")
    for figure in section.figures:
        table.add_row(*figure.cells())
    console.print(table)
    for remark in section.remarks:
        console.print(remark, highlight=False)
