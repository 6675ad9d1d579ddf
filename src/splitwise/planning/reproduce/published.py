"""What was published: counts, claims and the poster's table.

Source: Patel et al., "Splitwise: Efficient Generative LLM Inference Using Phase Splitting", ISCA
2024 (arXiv 2311.18677v2), its poster, and the values in the plots of its public simulator.
"""

from typing import Final

KINDS: Final = {
    "A100": ("dgx-a100", "dgx-a100"),
    "H100": ("dgx-h100", "dgx-h100"),
    "AA": ("dgx-a100", "dgx-a100"),
    "HH": ("dgx-h100", "dgx-h100"),
    "HA": ("dgx-h100", "dgx-a100"),
    "HHcap": ("dgx-h100", "dgx-h100-capped"),
}
"""The prompt and the token kind of each design; a baseline runs both phases on every machine."""
BASELINES: Final = ("A100", "H100")

Counts = dict[str, tuple[int, ...]]

SAME_POWER: Final[dict[str, Counts]] = {
    "conversation": {
        "A100": (70,),
        "H100": (40,),
        "AA": (45, 25),
        "HH": (25, 15),
        "HA": (25, 26),
        "HHcap": (25, 21),
    },
    "coding": {
        "A100": (70,),
        "H100": (40,),
        "AA": (55, 15),
        "HH": (35, 5),
        "HA": (35, 8),
        "HHcap": (35, 7),
    },
}
SAME_COST: Final[dict[str, Counts]] = {
    "conversation": {
        "A100": (86,),
        "H100": (40,),
        "AA": (51, 35),
        "HH": (25, 15),
        "HA": (30, 21),
        "HHcap": (30, 10),
    },
    "coding": {
        "A100": (86,),
        "H100": (40,),
        "AA": (66, 20),
        "HH": (35, 5),
        "HA": (35, 10),
        "HHcap": (35, 7),
    },
}
LEAST_POWER: Final[Counts] = {
    "A100": (88,),
    "H100": (24,),
    "AA": (25, 16),
    "HH": (5, 17),
    "HA": (21, 1),
    "HHcap": (8, 16),
}
LEAST_COST: Final[Counts] = {
    "A100": (88,),
    "H100": (24,),
    "AA": (25, 16),
    "HH": (5, 17),
    "HA": (11, 19),
    "HHcap": (19, 3),
}
EXAMPLE: Final = (27, 3)
"""HH, coding, 70 requests/s, two minutes: said to be the cheapest."""

POSTER_SERVERS: Final = {"AA": 1.0, "HA": 0.73}
POSTER_COST: Final = {"AA": 1.0, "HA": 1.14}
POSTER_POWER: Final = {"AA": 1.0, "HA": 1.0}
POSTER_THROUGHPUT: Final = {"AA": 2.4, "HA": 2.6}
TRANSFER_SHARE: Final = 0.008
"""Of the end-to-end time, on average: "less than about"."""
