"""One HTML file that carries all it shows: style, tables, plots as SVG. Nothing is fetched."""

from collections.abc import Iterable, Sequence
from html import escape
from importlib import import_module
from typing import Final

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto;
       padding: 0 1rem; color: #1f2937; background: #fff; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .75rem; text-align: right; border-bottom: 1px solid #e5e7eb; }
th:first-child, td:first-child, .text { text-align: left; }
td:first-child { white-space: nowrap; }
.met { color: #15803d; } .missed { color: #b91c1c; font-weight: 600; }
.text { min-width: 12rem; }
.plots { display: grid; gap: 1rem; margin-top: 1rem;
         grid-template-columns: repeat(auto-fill, minmax(min(26rem, 100%), 1fr)); }
.whole { grid-template-columns: 1fr; }
.whole figure { display: flex; flex-direction: column-reverse; }
figure { margin: 0; } figcaption { font-size: .85rem; color: #4b5563; }
svg { width: 100%; height: auto; } .wide { overflow-x: auto; }
pre { padding: .75rem; background: #f3f4f6; white-space: pre-wrap; }
"""


class ReportError(ValueError):
    """The report cannot be made."""


def require_matplotlib() -> None:
    """Raise ReportError, with the remedy, where plots cannot be made."""
    try:
        import_module("matplotlib")
    except ImportError as missing:
        raise ReportError(
            "the report needs matplotlib; pip install 'splitwise-llm[report]'"
        ) from missing


def page(title: str, body: str) -> str:
    """A whole page; ``title`` is plain text, ``body`` is HTML already."""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>"
        f"<h1>{escape(title)}</h1>{body}</body></html>"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]], texts: int = 1) -> str:
    """An HTML table of cells that are HTML already; the first ``texts`` columns hold no numbers."""
    header = _cells("th", head, texts)
    body = "".join(f"<tr>{_cells('td', row, texts)}</tr>" for row in rows)
    return (
        f'<div class="wide"><table><thead><tr>{header}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def _cells(tag: str, cells: Sequence[str], texts: int) -> str:
    """The first column is text by style, the others by class."""
    return "".join(
        f'<{tag} class="text">{cell}</{tag}>' if 0 < i < texts else f"<{tag}>{cell}</{tag}>"
        for i, cell in enumerate(cells)
    )


def figures(plots: Iterable[tuple[str, str]], are_whole_rows: bool = False) -> str:
    """A grid of plots, each a plain caption and an SVG element; one a row where they are wide."""
    kind = "plots whole" if are_whole_rows else "plots"
    each = "".join(
        f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"
        for caption, svg in plots
    )
    return f'<div class="{kind}">{each}</div>'
