"""vLLM's engine core in this process: built, given requests, stepped.

No second process and no front of vLLM's: requests come as tokens and go as tokens, and the thread
that steps the core is the one that owns its scheduler.
"""

import argparse
import os
import queue
import shlex
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, NoReturn, cast

from splitwise.engine.base import ModelInfo
from splitwise.engine.errors import ModelError
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.sampling import SamplingParams
from splitwise.engine.vllm.gpus import gpus_a_machine
from splitwise.engine.vllm.ranks import Ranks
from splitwise.engine.vllm.refused import refuse_arguments, refuse_model
from splitwise.engine.vllm.settings import VllmSettings
from splitwise.transfer.layout import CacheLayout

if TYPE_CHECKING:
    from vllm import EngineArgs
    from vllm.v1.engine import EngineCoreOutput

    from splitwise.engine.vllm.scheduler_side import SchedulerSide

MOST_LOGPROBS = 1000
NO_TOKEN_YET = 0
"""Stands in a request for the first token, which comes with its cache."""


class VllmCore:
    """One machine's vLLM. All but the constructor is called on the thread that steps it."""

    def __init__(self, folder: ModelFolder, settings: VllmSettings) -> None:
        """
        Raises:
            ModelError: vLLM cannot serve the model, or not with these arguments.
        """
        _set_environment(settings)
        from vllm.v1.engine.core import EngineCore
        from vllm.v1.executor import Executor

        try:
            config = _engine_args(folder, settings).create_engine_config()
            refuse_model(config)
            self._core = EngineCore(config, Executor.get_class(config), log_stats=True)
        except ModelError as error:
            raise ModelError(f"model {folder.name!r}: {error}") from error
        except Exception as error:
            raise ModelError(f"vLLM does not start with model {folder.name!r}: {error}") from error
        self._scheduler = cast(Any, self._core.scheduler)
        self._config = config
        self.prefix_queries_tokens = 0
        """Prompt tokens looked up in vLLM's prefix cache so far."""
        self.prefix_hits_tokens = 0
        """Those of them that were there."""
        self.max_decodes = int(config.scheduler_config.max_num_seqs)
        self.scheduler_side: SchedulerSide = self._scheduler.connector.scheduler_side
        self.ranks = Ranks(self._core.collective_rpc, config.parallel_config.tensor_parallel_size)
        self.model = self._read_model(folder.name)

    @property
    def layout(self) -> CacheLayout:
        """Of the machine. vLLM keeps one of its blocks for itself."""
        return self.ranks.layout

    @property
    def total_blocks(self) -> int:
        return int(self._scheduler.kv_cache_manager.block_pool.num_gpu_blocks) - 1

    @property
    def free_blocks(self) -> int:
        """Blocks that a request may be given; those that only the prefix cache knows are among
        them."""
        return int(self._scheduler.kv_cache_manager.block_pool.get_num_free_blocks())

    @property
    def has_requests(self) -> bool:
        """Whether a step has anything to do or to tell."""
        return bool(self._scheduler.has_requests())

    @property
    def counts(self) -> tuple[int, int]:
        """How many requests run, and how many wait."""
        return cast("tuple[int, int]", self._scheduler.get_request_counts())

    def add(
        self,
        request_id: str,
        tokens: Sequence[int],
        prompt_tokens: int,
        most_new_tokens: int,
        sampling: SamplingParams,
        stop_token_ids: Sequence[int],
        priority: int,
        age: int,
    ) -> None:
        """Enter a request; the first ``prompt_tokens`` of ``tokens`` are its prompt. Of the same
        priority those of lower ``age`` come first."""
        from vllm.v1.request import Request

        params = _params(sampling, prompt_tokens, most_new_tokens, stop_token_ids)
        request = Request(
            request_id,
            list(tokens),
            params,
            pooling_params=None,
            arrival_time=float(age),
            priority=priority,
            block_hasher=self._core.request_block_hasher,
        )
        self._core.add_request(request)

    def abort(self, request_ids: Sequence[str]) -> None:
        """Drop requests; those that have ended are passed over."""
        self._core.abort_requests(list(request_ids))

    def note_abort(self, request_id: str) -> None:
        """Any thread: drop it at the end of the step that runs, too."""
        self._core.aborts_queue.put_nowait([request_id])

    def forget_aborts(self) -> None:
        """What was noted of requests that are gone."""
        with suppress(queue.Empty):
            while True:
                self._core.aborts_queue.get_nowait()

    def step(self) -> "tuple[Sequence[EngineCoreOutput], bool]":
        """Schedule and compute one step; what came of it, and whether anything was computed."""
        outputs, computed = self._core.step_fn()
        self._core.post_step(computed)
        ours = (outputs or {}).get(0)
        if ours is None:
            return (), computed
        if ours.scheduler_stats is not None:
            looked_up = ours.scheduler_stats.prefix_cache_stats
            self.prefix_queries_tokens += looked_up.queries
            self.prefix_hits_tokens += looked_up.hits
        return ours.outputs, computed

    def close(self) -> None:
        """End vLLM and give the memory back."""
        self._core.shutdown()

    def _read_model(self, name: str) -> ModelInfo:
        model = self._config.model_config
        return ModelInfo(
            name=name,
            layers=self.layout.layers,
            kv_heads=self.layout.all_heads,
            head_dim=model.get_head_size(),
            dtype=str(model.dtype).removeprefix("torch."),
            vocab_size=model.get_vocab_size(),
            max_context_tokens=model.max_model_len,
        )


def _set_environment(settings: VllmSettings) -> None:
    """What vLLM reads from there, before it is imported."""
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_USE_V2_MODEL_RUNNER"] = "0"  # our draws are not made in the other one
    for name, value in (  # what the user has set stays
        ("VLLM_NO_USAGE_STATS", "1"),
        ("VLLM_CPU_OMP_THREADS_BIND", _cores_of_ranks(settings)),
        ("OMP_NUM_THREADS", str(settings.threads)),
    ):
        os.environ.setdefault(name, value)


def _cores_of_ranks(settings: VllmSettings) -> str:
    """As vLLM has them: one list a rank. Where there are fewer than ranks they share all."""
    ranks = gpus_a_machine(settings.engine_arguments())
    share = len(settings.cores) // ranks
    if not share:
        return "nobind"
    lists = [settings.cores[rank * share : (rank + 1) * share] for rank in range(ranks)]
    return "|".join(",".join(map(str, cores)) for cores in lists)


def _engine_args(folder: ModelFolder, settings: VllmSettings) -> "EngineArgs":
    """
    Raises:
        ModelError: an argument that vLLM does not know, or that is not to be given.
    """
    from vllm import EngineArgs
    from vllm.config import KVTransferConfig
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    from splitwise.engine.vllm.connector import LAYERWISE, NAME

    parser = EngineArgs.add_cli_args(FlexibleArgumentParser())
    parser.set_defaults(
        model=str(folder.path),
        scheduling_policy="priority",
        max_logprobs=MOST_LOGPROBS,
        async_scheduling=False,
        skip_tokenizer_init=True,
        disable_hybrid_kv_cache_manager=True,
    )
    usual = EngineArgs.from_cli_args(parser.parse_args([]))
    arguments = EngineArgs.from_cli_args(_parse(parser, settings.engine_arguments()))
    refuse_arguments(arguments, usual)
    arguments.logits_processors = ["splitwise.engine.vllm.draws:Draws"]
    arguments.kv_transfer_config = KVTransferConfig(
        kv_connector=NAME,
        kv_connector_module_path="splitwise.engine.vllm.connector",
        kv_role="kv_both",
        kv_connector_extra_config={LAYERWISE: settings.layerwise},
    )
    return arguments


def _parse(parser: argparse.ArgumentParser, given: list[str]) -> argparse.Namespace:
    """
    Raises:
        ModelError: vLLM does not know an argument, or not its value.
    """

    def refuse_all(message: str) -> NoReturn:
        raise ModelError(
            f"--vllm-args: {message}; give what `vllm serve --help` lists (vLLM is told "
            f"{shlex.join(given)})"
        )

    parser.error = refuse_all  # type: ignore[method-assign]
    return parser.parse_args(given)


def _params(
    sampling: SamplingParams, prompt_tokens: int, most_new_tokens: int, stop_ids: Sequence[int]
) -> Any:
    """vLLM's own settings. Where our sampler draws (``draws``) it is to take what is left."""
    from vllm import SamplingParams as VllmSamplingParams

    from splitwise.engine.vllm.draws import KEY, Draw

    is_ours = sampling.has_penalties or not sampling.is_greedy
    return VllmSamplingParams(
        temperature=0.0,
        max_tokens=most_new_tokens,
        stop_token_ids=list(stop_ids),
        ignore_eos=True,
        detokenize=False,
        logprobs=sampling.logprobs,
        extra_args={KEY: Draw(sampling, prompt_tokens)} if is_ours else None,
    )
