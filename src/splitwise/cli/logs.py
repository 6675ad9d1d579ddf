"""Logs: to standard error, one line a fact, warnings and what a machine says at its start."""

import logging
import sys


def set_up_logging(who: str = "") -> None:
    """Send our own INFO and everybody's warnings to standard error, marked with ``who``."""
    mark = f"[{who}] " if who else ""
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.WARNING,
        format=f"%(asctime)s %(levelname)s {mark}%(message)s",
        datefmt="%H:%M:%S",
    )
    logging.getLogger("splitwise").setLevel(logging.INFO)
