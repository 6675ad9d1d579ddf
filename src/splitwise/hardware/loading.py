"""``load_profile``: from the points of a profile file to ``IterationTimes``.

1. The file is read and validated (``profile_file``).
2. The machine's points, or those of the machine it borrows from, are chosen.
3. A rule turns points into curves (``curves``): ``measured``, or ``published-2024``.
4. Memory, power, links and price of the machine are added.

Two profiles have no file: ``roofline`` is arithmetic on a GPU's data sheet (``roofline``), and
``aiconfigurator`` asks an optional library about today's engines (``predicted``).
"""

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Final, TypeVar

import numpy as np

from splitwise.hardware.curves import RULES, power_fractions
from splitwise.hardware.errors import HardwareError
from splitwise.hardware.gpus import parse_machine
from splitwise.hardware.iteration_times import MIXED_FACTOR, IterationTimes
from splitwise.hardware.model_shape import read_model_shape
from splitwise.hardware.predicted import predicted_times
from splitwise.hardware.profile_file import (
    Knot,
    Machine,
    Model,
    Point,
    Price,
    ProfileFile,
    read_profile_file,
)
from splitwise.hardware.roofline import roofline_times

BUILT_IN: Final = Path(__file__).parent / "profiles" / "splitwise-2024.json"
PUBLISHED: Final = "published-2024"
PUBLISHED_LINK_BYTES_PER_S: Final = 200.0 * 2**30
"""Between any two machines, without latency, in the authors' public simulator."""
ROOFLINE: Final = "roofline"
PREDICTED: Final = "aiconfigurator"
PAPER_REFERENCE: Final = "dgx-a100"

Named = TypeVar("Named")


def load_profile(
    profile: str | Path, machine: str, model: str, prices: str = "paper"
) -> IterationTimes:
    """Times of a machine kind with a model.

    Args:
        profile: ``measured``, ``published-2024``, ``roofline``, ``aiconfigurator``, or a profile
            file.
        machine: A machine kind of the profile, such as ``dgx-a100``; of the profiles without
            a file, GPUs and where wanted dollars an hour: ``8xa100``, ``8xh200@32``.
        model: A model of the profile, such as ``llama2-70b``; of the profiles without a
            file, a Hugging Face config.json, or the folder it is in.
        prices: A set of prices and provisioned power: ``paper`` or ``plots`` in the built-in
            profiles. A machine of a file that has one set only uses that.

    Raises:
        HardwareError: no such profile, machine, model or prices, or too few points.
    """
    if profile == ROOFLINE:
        return roofline_times(read_model_shape(Path(model)), parse_machine(machine))
    if profile == PREDICTED:
        return predicted_times(machine, Path(model))
    content, rule = _open(profile)
    kind = _choose("machine", machine, content.machines)
    sizes = _choose("model", model, content.models)
    points = points_of(content, kind.points_of or machine, model)
    if len({point.prompt_tokens * point.batch for point in points}) < 2:
        raise HardwareError(
            f"profile {profile}: too few points of {machine} with {model}; measure two prompt "
            "sizes or more"
        )
    kv_bytes = sizes.kv_bytes_per_token
    if rule == PUBLISHED:
        kv_bytes = sizes.published_kv_bytes_per_token or kv_bytes
    knots = [
        knot
        for knot in content.knots
        if knot.machine == (kind.points_of or machine) and knot.model == model
    ]
    power = points_of(content, kind.power_points_of or kind.points_of or machine, model)
    return _times(kind, sizes, _price(machine, kind, prices), kv_bytes, rule, points, knots, power)


def usual_reference(profile: str | Path, kinds: Sequence[str]) -> str:
    """What slowdowns are measured against: a DGX-A100 in the built-in profiles, as in the paper.

    Elsewhere the first of the ``kinds`` that are looked at.
    """
    return PAPER_REFERENCE if profile in RULES else kinds[0]


def profile_contents(profile: str | Path) -> ProfileFile:
    """The file behind a profile: names of its machines and models, its points and their source."""
    return _open(profile)[0]


def pairs(content: ProfileFile) -> list[tuple[str, str]]:
    """Machine and model names that the file has points for."""
    return [
        (machine, model)
        for machine, kind in content.machines.items()
        for model in content.models
        if points_of(content, kind.points_of or machine, model)
    ]


def points_of(content: ProfileFile, machine: str, model: str) -> list[Point]:
    """The profile's points of that machine with that model."""
    return [point for point in content.points if point.machine == machine and point.model == model]


def _times(
    kind: Machine,
    sizes: Model,
    price: Price,
    kv_bytes: int,
    rule: str,
    points: list[Point],
    knots: list[Knot],
    power: list[Point],
) -> IterationTimes:
    curves = RULES[rule](points, knots)
    fractions = power_fractions(power)
    gpus_watts = kind.gpus * kind.gpu_watts
    cap_watts = kind.gpus * (kind.gpu_cap_watts or kind.gpu_watts)
    free_bytes = kind.gpus * kind.gpu_memory_bytes - sizes.weights_bytes
    is_published = rule == PUBLISHED
    return IterationTimes(
        prompt_tokens=curves.prompt_tokens,
        prompt_s=curves.prompt_s * kind.prompt_time_factor,
        decode_s=curves.decode_s * kind.token_time_factor,
        decode_s_per_context_token=curves.decode_s_per_context_token * kind.token_time_factor,
        mixed_factor=MIXED_FACTOR,
        kv_capacity_tokens=free_bytes // kv_bytes,
        kv_bytes_per_token=float(kv_bytes),
        layers=sizes.layers,
        power_tokens=fractions.tokens,
        prompt_watts=np.minimum(fractions.prompt * gpus_watts, cap_watts),
        decode_watts=min(fractions.decode * gpus_watts, cap_watts),
        idle_watts=min(kind.idle_power_fraction * gpus_watts, cap_watts),
        provisioned_watts=price.provisioned_watts,
        dollars_per_hour=price.dollars_per_hour,
        gpus=kind.gpus,
        link_bytes_per_s=PUBLISHED_LINK_BYTES_PER_S if is_published else kind.link_bytes_per_s,
        link_latency_s=0.0 if is_published else kind.link_latency_s,
    )


def _open(profile: str | Path) -> tuple[ProfileFile, str]:
    if profile in RULES:
        return _built_in(), str(profile)
    path = Path(profile)
    if not path.exists():
        names = ", ".join([*RULES, ROOFLINE, PREDICTED])
        raise HardwareError(f"profile {str(profile)!r}: neither a file nor one of {names}")
    content = read_profile_file(path)
    if content.rule not in RULES:
        raise HardwareError(f"{path}: rule is {content.rule!r}; choose from {', '.join(RULES)}")
    return content, content.rule


@cache
def _built_in() -> ProfileFile:
    return read_profile_file(BUILT_IN)


def _choose(what: str, name: str, known: dict[str, Named]) -> Named:
    if name not in known:
        raise HardwareError(f"{what} {name!r}: choose from {', '.join(known)}")
    return known[name]


def _price(machine: str, kind: Machine, prices: str) -> Price:
    if len(kind.prices) == 1:
        return next(iter(kind.prices.values()))
    return _choose(f"prices of {machine}:", prices, kind.prices)
