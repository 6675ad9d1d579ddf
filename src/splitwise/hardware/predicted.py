"""Times of today's engines, predicted by the optional library ``aiconfigurator-core``.

The library holds kernel times measured on many GPUs. It is asked for prompts, and for decodes at
two contexts, which gives what a token of context adds; memory, power, links and price are those
of the roofline. It knows Hugging Face models of usual kinds, but not BLOOM.
"""

import importlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from splitwise.hardware.errors import HardwareError
from splitwise.hardware.gpus import parse_machine
from splitwise.hardware.iteration_times import MAX_DECODES, TINY_S, Floats, IterationTimes
from splitwise.hardware.model_shape import read_model_shape
from splitwise.hardware.roofline import roofline_times

MODULES: Final = ("aiconfigurator_core.sdk", "aisimulate_core.sdk")
"""The library's name, and the one it is to have later."""
SYSTEMS: Final = {name: f"{name}_sxm" for name in ("a100", "h100", "h200", "b200")}
BACKEND: Final = "vllm"
PROMPTS: Final = (32, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
BATCHES: Final = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
CONTEXTS: Final = (512, 4096)


def predicted_times(machine: str, model: Path) -> IterationTimes:
    """Times of a machine such as ``8xh100`` with the model of that config.json, or its folder.

    Raises:
        HardwareError: the library is missing, or knows no such GPU or model.
    """
    wanted = parse_machine(machine)
    base = roofline_times(read_model_shape(model), wanted)
    folder = model if model.is_dir() else model.parent
    handle_kind = _library().EngineHandle
    try:
        handle = handle_kind.compile(
            str(folder), SYSTEMS[wanted.kind], BACKEND, tp_size=wanted.gpus
        )
        prompt_s, decode_s, slope = _curves(handle)
    # Another's library documents no errors: each becomes ours, with its words.
    except Exception as error:
        raise HardwareError(
            f"{machine} with {folder}: aiconfigurator-core says {error}; use profile roofline"
        ) from error
    return replace(
        base,
        prompt_tokens=np.array(PROMPTS, dtype=np.float64),
        prompt_s=prompt_s,
        decode_s=decode_s,
        decode_s_per_context_token=slope,
    )


def _curves(handle: Any) -> tuple[Floats, Floats, Floats]:
    """Prompt seconds at ``PROMPTS``; decode seconds and seconds a context token, [513] each."""
    prompt_s = np.array([handle.predict_prefill_latency(1, tokens) for tokens in PROMPTS]) / 1e3
    near, far = (
        np.array([handle.predict_decode_latency(batch, context, 2) for batch in BATCHES]) / 1e3
        for context in CONTEXTS
    )
    batches = np.array(BATCHES, dtype=np.float64)
    slope = np.maximum(far - near, 0.0) / (batches * (CONTEXTS[1] - CONTEXTS[0]))
    bare = np.maximum(near - slope * batches * CONTEXTS[0], TINY_S)
    decodes = np.arange(MAX_DECODES + 1)
    # The predictions jump between kernels; more requests never take less time.
    decode_s = np.interp(decodes, batches, np.maximum.accumulate(bare))
    decode_s[0] = 0.0
    return prompt_s, decode_s, np.interp(decodes, batches, slope)


def _library() -> Any:
    for name in MODULES:
        try:
            return importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    raise HardwareError(
        "profile aiconfigurator: the library is missing; pip install 'splitwise-llm[predict]', "
        "or use profile roofline"
    )
