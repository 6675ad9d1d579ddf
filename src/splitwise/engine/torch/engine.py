"""The embedded engine: transformers' model code and weights over our paged cache.

Life cycle of an iteration (``step``):
1. The work of all requests is laid out in one row of tokens, without padding (``batch.py``).
2. transformers runs the model over that row; in each layer its attention call is ours
   (``attention.py``), which fills the cache and reports the layer.
3. The output head runs on the rows that need a token, and no others.
4. The sampler chooses the tokens (``sampler.py``).
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from splitwise.engine.base import Engine, LayerCallback, Work
from splitwise.engine.model_files import ModelFolder, read_model_info
from splitwise.engine.sampling import Sample
from splitwise.engine.torch.batch import make_batch
from splitwise.engine.torch.loading import load_model
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
    ) -> None:
        """Load the weights and set the cache aside.

        ``dtype`` defaults to float32 on the CPU and bfloat16 elsewhere. ``threads`` sets torch's
        threads for this process.

        Raises:
            ModelError: the model cannot be served.
            ValueError: ``cache_memory_bytes`` does not hold one block.
        """
        torch.set_num_threads(threads)
        self._device = torch.device(device)
        if dtype is None:
            dtype = torch.float32 if self._device.type == "cpu" else torch.bfloat16
        self.model = replace(read_model_info(folder), dtype=str(dtype).removeprefix("torch."))
        self._cache = PagedCache(
            layers=self.model.layers,
            block_tokens=block_tokens,
            kv_heads=self.model.kv_heads,
            head_dim=self.model.head_dim,
            dtype=dtype,
            device=self._device,
            memory_bytes=cache_memory_bytes,
        )
        self.layout = self._cache.layout
        self.memory = self._cache.memory
        self._network = load_model(folder, self._device, dtype)

    @torch.inference_mode()
    def step(
        self, work: Sequence[Work], on_layer: LayerCallback | None = None
    ) -> list[Sample | None]:
        samples: list[Sample | None] = [None] * len(work)
        batch = make_batch(work, self._cache, self._device, on_layer)
        inputs = {"input_ids": batch.tokens, "position_ids": batch.positions, "use_cache": False}
        if not batch.sampled:
            self._network.base_model(**inputs, batch=batch)
            return samples
        logits = self._network(**inputs, batch=batch, logits_to_keep=batch.sample_rows).logits[0]
        chosen = sample(logits, [work[i] for i in batch.sampled])
        for i, token in zip(batch.sampled, chosen, strict=True):
            samples[i] = token
        return samples

    def close(self) -> None:
        self._cache.close()
