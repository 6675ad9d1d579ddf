"""The embedded engine: transformers' model code and weights over our paged cache.

Life cycle of an iteration (``step``):
0. A request whose text outgrows the keys that it has in the cache gets new ones (``rotation.py``).
1. The work of all requests is laid out in one row of tokens, without padding (``batch.py``).
2. transformers runs the model over that row; in each layer its attention call is ours
   (``attention.py``), which fills the cache and reports the layer.
3. The output head runs on the rows that need a token, and no others.
4. The sampler chooses the tokens (``sampler.py``).
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

import torch

from splitwise.engine.base import Engine, LayerCallback, ModelInfo, Work
from splitwise.engine.model_files import ModelFolder, read_model_info
from splitwise.engine.sampling import Sample
from splitwise.engine.torch.batch import Batch, make_batch
from splitwise.engine.torch.loading import load_network, put_on_cache
from splitwise.engine.torch.memory import PagedCache
from splitwise.engine.torch.sampler import sample

DEFAULT_BLOCK_TOKENS = 16


class TorchEngine(Engine):
    """Runs a Hugging Face model on one device; CPU or CUDA."""

    def __init__(
        self,
        folder: ModelFolder,
        cache_memory_bytes: int,
        device: str = "cpu",
        dtype: torch.dtype | None = None,
        block_tokens: int = DEFAULT_BLOCK_TOKENS,
        threads: int = 1,
        random_weights: bool = False,
    ) -> None:
        """Load the weights and set the cache aside.

        ``dtype`` defaults to float32 on the CPU and bfloat16 elsewhere. ``threads`` sets torch's
        threads for this process. ``random_weights`` loads none (``loading.load_network``).

        Raises:
            ModelError: the model cannot be served.
            ValueError: ``cache_memory_bytes`` does not hold one block.
        """
        torch.set_num_threads(threads)
        on = torch.device(device)
        if dtype is None:
            dtype = torch.float32 if on.type == "cpu" else torch.bfloat16
        info = replace(read_model_info(folder), dtype=str(dtype).removeprefix("torch."))
        cache = PagedCache(info, block_tokens, on, cache_memory_bytes)
        self._start(info, cache, load_network(folder, on, dtype, random_weights))

    @classmethod
    def of_network(
        cls,
        network: Any,
        info: ModelInfo,
        cache_memory_bytes: int,
        block_tokens: int = DEFAULT_BLOCK_TOKENS,
    ) -> Self:
        """An engine of a transformers model that is loaded already; it takes the model over."""
        engine = cls.__new__(cls)
        cache = PagedCache(info, block_tokens, network.device, cache_memory_bytes)
        engine._start(info, cache, network)
        return engine

    def _start(self, info: ModelInfo, cache: PagedCache, network: Any) -> None:
        self.model = info
        self.layout = cache.layout
        self.memory = cache.memory
        self._cache = cache
        self._device = network.device
        self._network, self._rotation = put_on_cache(network, cache, info.name)

    @torch.inference_mode()
    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        samples: list[Sample | None] = [None] * len(work)
        for entry in self._rotation.crossing(work):
            before = replace(entry, tokens=entry.history[: entry.start], start=0, sample=False)
            self._run(make_batch([before], self._cache, self._device, None))
        batch = make_batch(work, self._cache, self._device, on_layer)
        logits = self._run(batch)
        if logits is None:
            self.synchronise()  # else drawing the tokens has waited
            return samples
        chosen = sample(logits, [work[i] for i in batch.sampled])
        for i, token in zip(batch.sampled, chosen, strict=True):
            samples[i] = token
        return samples

    def synchronise(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def _run(self, batch: Batch) -> torch.Tensor | None:
        """The model over a batch: logits of the rows that want a token, ``[rows, vocabulary]``."""
        inputs = {"input_ids": batch.tokens, "position_ids": batch.positions, "use_cache": False}
        with self._rotation.of(batch):
            if not batch.sampled:
                self._network.base_model(**inputs, batch=batch)
                return None
            out = self._network(**inputs, batch=batch, logits_to_keep=batch.sample_rows)
        logits: torch.Tensor = out.logits[0]
        return logits

    def close(self) -> None:
        self._cache.close()
