"""``--engine``: what each is started with. What any of them needs is imported when it is chosen."""

import logging
import os
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING, Final

from splitwise.cli.worker_settings import USUAL_CACHE_GIB, WorkerSettings
from splitwise.scheduling.pool import Pool

if TYPE_CHECKING:
    import torch

    from splitwise.engine.base import Engine
    from splitwise.engine.model_files import ModelFolder
    from splitwise.engine.vllm.settings import VllmSettings
    from splitwise.worker.options import WorkerOptions

log = logging.getLogger(__name__)

START_LIMITS_S: Final = {"torch": 600.0, "null": 600.0, "vllm": 1800.0}
"""From a worker's start to the cluster, with a large model to load; vLLM compiles it, too."""


def model_folder(model: str | None, engine: str) -> "ModelFolder":
    """The model that the user names, or the default one of ``engine``.

    Raises:
        ModelError: there is no such model.
    """
    from splitwise.engine.model_files import resolve_model
    from splitwise.engine.null.engine import null_model

    return null_model() if engine == "null" and model is None else resolve_model(model)


def check_engine(settings: WorkerSettings, folder: "ModelFolder", is_here: bool) -> None:
    """A first look, before any process is started, at whether the engine can serve the model;
    ``is_here``: whether it is to run in this environment.

    Raises:
        ModelError: it cannot.
    """
    from splitwise.engine.model_files import read_model_info
    from splitwise.engine.vllm.settings import split_arguments
    from splitwise.engine.vllm.versions import check_version

    if settings.engine != "vllm":
        read_model_info(folder)
        return
    split_arguments(settings.vllm_args)
    if is_here:
        check_version(settings.device)  # Which models it takes is for vLLM itself to say.


def run_engine(
    folder: "ModelFolder", rank: int, settings: WorkerSettings, options: "WorkerOptions"
) -> None:
    """Run a worker over the engine of ``settings`` until it is told to stop.

    Raises:
        ModelError: the engine is not installed, or cannot serve the model.
        ValueError: the engine cannot work with a setting.
        WorkerError, TlsError: see ``run_machine``.
    """
    if settings.engine == "vllm":
        _run_vllm(folder, rank, settings, options)
        return
    from splitwise.worker.worker import run_worker

    run_worker(_engine(folder, rank, settings), options)


def _run_vllm(
    folder: "ModelFolder", rank: int, settings: WorkerSettings, options: "WorkerOptions"
) -> None:
    from splitwise.engine.vllm.versions import check_version

    version = check_version(settings.device)
    told = vllm_settings(rank, settings, options)
    log.info("vLLM %s is starting, which may take minutes", version)
    os.environ.setdefault("VLLM_LOGGING_PREFIX", f"[{options.machine_id}] ")
    from splitwise.engine.faulty import switch_of
    from splitwise.engine.vllm.core import VllmCore
    from splitwise.engine.vllm.faulty_core import FaultyCore
    from splitwise.worker.vllm_machine import opens_vllm
    from splitwise.worker.worker import run_machine

    switch = switch_of(options.machine_id)
    new_core = VllmCore if switch is None else partial(FaultyCore, switch=switch)
    with closing(new_core(folder, told)) as core:
        log.info("vLLM is ready")
        run_machine(opens_vllm(core, options), options)


def vllm_settings(rank: int, settings: WorkerSettings, options: "WorkerOptions") -> "VllmSettings":
    """Its GPUs are put first among those that this process sees.

    Raises:
        ModelError: ``--vllm-args`` are no words of a shell.
        ValueError: this machine has no such device.
    """
    from splitwise.engine.vllm.gpus import own_first
    from splitwise.engine.vllm.settings import VllmSettings

    gpus = gpus_of(settings)
    device = device_of(settings.device, rank, gpus)
    if gpus:
        first = int(device.partition(":")[2])
        os.environ["CUDA_VISIBLE_DEVICES"] = own_first(first, gpus, visible_gpus())
    return VllmSettings(
        device="cuda:0" if gpus else device,
        dtype=settings.dtype,
        kv_cache_gib=settings.cache_gib,
        threads=settings.threads,
        cores=options.cores,
        load_format=settings.load_format,
        arguments=settings.vllm_args,
        layerwise=options.pool is not Pool.TOKEN,
        batch_tokens=settings.prompt_batch_tokens,
        batch_requests=settings.batch_requests,
    )


def gpus_of(settings: WorkerSettings) -> int:
    """GPUs a worker.

    Raises:
        ModelError: ``--vllm-args`` are no words of a shell.
    """
    from splitwise.engine.vllm.gpus import gpus_a_machine
    from splitwise.engine.vllm.settings import split_arguments

    if settings.device == "cpu":
        return 0
    return gpus_a_machine(split_arguments(settings.vllm_args)) if settings.engine == "vllm" else 1


def visible_gpus() -> list[str]:
    """As ``CUDA_VISIBLE_DEVICES`` names them."""
    import torch

    if named := os.environ.get("CUDA_VISIBLE_DEVICES"):
        return named.split(",")
    return [str(number) for number in range(torch.cuda.device_count())]


def _engine(folder: "ModelFolder", rank: int, settings: WorkerSettings) -> "Engine":
    """
    Raises:
        ModelError: the model cannot be served.
        ValueError: the engine cannot work with a setting.
    """
    from splitwise.engine.null.engine import NullEngine

    cache_memory_bytes = int((settings.cache_gib or USUAL_CACHE_GIB) * 2**30)
    if settings.engine == "null":
        return NullEngine(
            folder, cache_memory_bytes, settings.null_prompt_token_s, settings.null_iteration_s
        )
    from splitwise.engine.torch.engine import TorchEngine

    return TorchEngine(
        folder,
        cache_memory_bytes,
        device=device_of(settings.device, rank),
        dtype=dtype_of(settings.dtype),
        threads=settings.threads,
        random_weights=settings.load_format == "dummy",
    )


def device_of(name: str, rank: int, gpus: int = 1) -> str:
    """The torch device of worker ``rank``, the first of as many ``gpus``: plain ``cuda`` deals the
    GPUs out in turn.

    Raises:
        ValueError: this machine has no such device, or not so many.
    """
    import torch

    if name == "cpu":
        return name
    available = torch.cuda.device_count()
    kind, _, index = name.partition(":")
    if kind != "cuda" or not (index or "0").isdigit():
        raise ValueError(f"--device {name!r}: choose cpu, cuda or cuda:N")
    number = int(index) if index else rank % max(1, available // gpus) * gpus
    if number + gpus > available:
        raise ValueError(
            f"--device {name!r}: {gpus} from number {number} on are needed, and torch finds "
            f"{available} CUDA devices here; use cpu, or a smaller --tensor-parallel-size"
        )
    return f"cuda:{number}"


def dtype_of(name: str) -> "torch.dtype | None":
    """The torch type of that name; None, the device's usual one, for ``auto``."""
    import torch

    dtype: torch.dtype | None = None if name == "auto" else getattr(torch, name)
    return dtype
