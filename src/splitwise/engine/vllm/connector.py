"""The connector that vLLM loads by name: its calls, handed to one of the two sides.

Of vLLM's interface (``distributed/kv_transfer/kv_connector/v1/base.py``, 0.32) what is not here has
nothing to do: no load is synchronous, so that ``start_load_kv`` and ``wait_for_layer_load`` return
at once.
"""

from typing import TYPE_CHECKING, Any

from vllm.distributed.kv_transfer.kv_connector.v1.base import (
    KVConnectorBase_V1,
    KVConnectorMetadata,
    KVConnectorRole,
    KVConnectorTransferResults,
    KVConnectorWorkerMetadata,
)

from splitwise.engine.errors import ModelError
from splitwise.engine.vllm.allocation import ReachableAllocation
from splitwise.engine.vllm.layout import LAYOUT
from splitwise.engine.vllm.orders import RankNews, StepOrders
from splitwise.engine.vllm.rank_side import RankSide
from splitwise.engine.vllm.scheduler_side import SchedulerSide
from splitwise.transfer.events import Failed

if TYPE_CHECKING:
    import torch
    from vllm.config import VllmConfig
    from vllm.forward_context import ForwardContext
    from vllm.v1.attention.backend import AttentionMetadata
    from vllm.v1.core.kv_cache_manager import KVCacheBlocks
    from vllm.v1.core.sched.output import SchedulerOutput
    from vllm.v1.kv_cache_interface import KVCacheConfig
    from vllm.v1.outputs import KVConnectorOutput
    from vllm.v1.request import Request

NAME = "SplitwiseConnector"
LAYERWISE = "layerwise"
"""Key of the extra configuration: whether layers are handed over one by one."""


class SplitwiseConnector(KVConnectorBase_V1):
    """One object where vLLM schedules, and one a rank."""

    def __init__(
        self, vllm_config: "VllmConfig", role: KVConnectorRole, kv_cache_config: "KVCacheConfig"
    ) -> None:
        """
        Raises:
            ModelError: the model's layers keep something else than keys and values of all tokens.
        """
        super().__init__(vllm_config, role, kv_cache_config)
        _refuse_other_caches(kv_cache_config)
        model, parallel = vllm_config.model_config, vllm_config.parallel_config
        if role is KVConnectorRole.SCHEDULER:
            self.scheduler_side = SchedulerSide(
                vllm_config.cache_config.block_size,
                model.get_vocab_size(),
                parallel.tensor_parallel_size,
            )
        else:
            self._allocation = ReachableAllocation()
            self.rank_side = RankSide(
                model.get_total_num_kv_heads(), parallel.rank, parallel.tensor_parallel_size
            )
            self._ended: set[str] = set()
            self._let_go: set[str] = set()
            """Requests that vLLM is done with, and whose blocks it keeps for us."""

    @classmethod
    def get_required_kvcache_layout(cls, vllm_config: "VllmConfig") -> str:
        return LAYOUT

    @classmethod
    def requires_piecewise_for_cudagraph(cls, extra_config: dict[str, Any]) -> bool:
        return bool(extra_config.get(LAYERWISE, True))

    # The rank.

    def get_mem_pool_context(self) -> ReachableAllocation:
        return self._allocation

    def register_kv_caches(self, kv_caches: dict[str, "torch.Tensor"]) -> None:
        if self._allocation.memory is None:
            raise ModelError("vLLM did not let us allocate its cache: not with this release")
        self.rank_side.register(kv_caches, self._allocation.memory)

    def handle_preemptions(self, kv_connector_metadata: KVConnectorMetadata) -> None:
        assert isinstance(kv_connector_metadata, StepOrders)
        self.rank_side.halt(kv_connector_metadata)

    def bind_connector_metadata(self, connector_metadata: KVConnectorMetadata) -> None:
        super().bind_connector_metadata(connector_metadata)
        assert isinstance(connector_metadata, StepOrders)
        orders = connector_metadata
        self._let_go |= orders.finishes.keys() | (orders.stops - orders.preempted)
        self.rank_side.bind(connector_metadata)

    def start_load_kv(self, forward_context: "ForwardContext", **kwargs: Any) -> None:
        return

    def wait_for_layer_load(self, layer_name: str) -> None:
        return

    def save_kv_layer(
        self,
        layer_name: str,
        kv_layer: "torch.Tensor",
        attn_metadata: "AttentionMetadata",
        **kwargs: Any,
    ) -> None:
        self.rank_side.layer_done(layer_name)

    def wait_for_save(self) -> None:
        self.rank_side.step_done()

    def get_transfer_results(self, finished_req_ids: set[str]) -> KVConnectorTransferResults:
        self._news = news = self.rank_side.take()
        self._ended |= news.sent.keys()
        self._ended -= finished_req_ids - self._let_go
        done = self._ended & self._let_go
        self._ended -= done
        self._let_go -= done
        failed = {
            request_id
            for request_id, events in news.received.items()
            if any(isinstance(event, Failed) for event in events)
        }
        return KVConnectorTransferResults(done, set(news.received), failed)

    def build_connector_worker_meta(self) -> KVConnectorWorkerMetadata | None:
        news, self._news = self._news, RankNews()
        return news if news.sent or news.received else None

    # The scheduler.

    def get_loaded_kv_cache_group_ids(self, request: "Request") -> tuple[int, ...]:
        return (0,)

    def get_num_new_matched_tokens(
        self, request: "Request", num_computed_tokens: int
    ) -> tuple[int, bool]:
        return self.scheduler_side.matched(request, num_computed_tokens)

    def update_state_after_alloc(
        self, request: "Request", blocks: "KVCacheBlocks", num_external_tokens: int
    ) -> None:
        if num_external_tokens:
            table = blocks.get_block_ids()[0]
            self.scheduler_side.allocated(request, table, num_external_tokens)

    def build_connector_meta(self, scheduler_output: "SchedulerOutput") -> KVConnectorMetadata:
        return self.scheduler_side.orders(scheduler_output)

    def update_connector_output(self, connector_output: "KVConnectorOutput") -> None:
        news = connector_output.kv_connector_worker_meta
        if isinstance(news, RankNews):
            self.scheduler_side.news(news)

    def request_finished(
        self, request: "Request", block_ids: list[int]
    ) -> tuple[bool, dict[str, Any] | None]:
        return self.scheduler_side.finished(request), None


def _refuse_other_caches(config: "KVCacheConfig") -> None:
    """
    Raises:
        ModelError: some layer does not keep keys and values of every token until a request ends.
    """
    from vllm.v1.kv_cache_interface import FullAttentionSpec

    kinds = {
        type(group.kv_cache_spec).__name__
        for group in config.kv_cache_groups
        if not isinstance(group.kv_cache_spec, FullAttentionSpec)
    }
    if kinds or len(config.kv_cache_groups) != 1:
        raise ModelError(
            f"its layers keep {', '.join(sorted(kinds)) or 'caches of several sizes'}, and only "
            "keys and values that stay for every token of a request are transferred yet (where "
            "some layers attend to all tokens vLLM keeps all for the others, too): serve it with "
            "plain vLLM"
        )
