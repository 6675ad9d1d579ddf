"""What holds of every page that is written, whatever it reports."""

import re


def drawings(html: str) -> list[str]:
    """The plots."""
    return re.findall(r"<svg.*?</svg>", html, re.DOTALL)


def check_fetches_nothing(html: str) -> None:
    links = re.findall(r'(?:src|href)="([^"]*)"', html)
    assert all(link.startswith("#") for link in links)
    assert "<script" not in html and "url(http" not in html


def check_ids_differ(html: str) -> None:
    ids = re.findall(r' id="([^"]*)"', html)
    assert len(ids) == len(set(ids))
