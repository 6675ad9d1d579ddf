"""Which GPUs a machine of vLLM has, which takes the first that its process sees."""

import argparse
from collections.abc import Sequence


def gpus_a_machine(arguments: Sequence[str]) -> int:
    """How many GPUs ``vllm serve`` would take by these arguments: one a tensor-parallel rank."""
    parser = argparse.ArgumentParser(add_help=False, exit_on_error=False, allow_abbrev=False)
    parser.add_argument("--tensor-parallel-size", "-tp", type=int, default=1)
    dashed = [
        "=".join([word.partition("=")[0].replace("_", "-"), *word.split("=", 1)[1:]])
        if word.startswith("--")
        else word
        for word in arguments
    ]
    try:
        known, _ = parser.parse_known_args(dashed)
    except argparse.ArgumentError:
        return 1  # vLLM will say what is wrong
    return max(1, int(known.tensor_parallel_size))


def own_first(first: int, count: int, visible: Sequence[str]) -> str:
    """``CUDA_VISIBLE_DEVICES`` for the machine that is dealt ``count`` of the GPUs ``visible``,
    from ``first`` on. The others stay visible: caches are put into them by CUDA IPC."""
    own = visible[first : first + count]
    return ",".join([*own, *visible[:first], *visible[first + count :]])
