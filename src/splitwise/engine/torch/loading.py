"""Loads a transformers model for the engine, or says why it cannot be served.

1. The architecture is looked at before any weight is read.
2. The weights are loaded, and the model answers a short probe with its own attention.
3. Our attention takes the place of its own; on the CPU, faster modules that of other modules.
4. The probe runs again through the paged cache: a prompt, a chunk, a decode. A model that keeps a
   state beside the cache, or bends its scores, shows here, at start, not in a user's text.
"""

import sys
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils.logging import disable_progress_bar

from splitwise.engine.base import Work
from splitwise.engine.errors import ModelError
from splitwise.engine.model_files import ModelFolder
from splitwise.engine.sampling import SamplingParams
from splitwise.engine.torch import attention
from splitwise.engine.torch.batch import make_batch
from splitwise.engine.torch.cpu_layer import speed_up_rows
from splitwise.engine.torch.cpu_modules import swap_modules
from splitwise.engine.torch.memory import PagedCache
from splitwise.engine.torch.rotation import Rotation, refuse_unknown
from splitwise.engine.torch.weights import load_weights

_PROBE = [2, 3, 5, 7, 11, 13, 17, 19]
_ALLOWED_ERROR = {2: 5e-2, 4: 1e-3, 8: 1e-6}  # by the bytes of a number


def load_network(
    folder: ModelFolder, device: torch.device, dtype: torch.dtype, random_weights: bool = False
) -> Any:
    """The model as transformers has it, on ``device``.

    ``random_weights`` reads no weights but draws them on the device, the same ones every time
    (vLLM's load format ``dummy``): for measuring models whose weights are not at hand.

    Raises:
        ModelError: its architecture cannot work with our attention, or its weights are not whole.
    """
    config = _check_architecture(folder)
    if random_weights:
        torch.manual_seed(0)
        with device:
            return AutoModelForCausalLM.from_config(config, dtype=dtype)
    if not sys.stderr.isatty():
        disable_progress_bar()
    return load_weights(folder, dtype).to(device)


@torch.inference_mode()
def put_on_cache(network: Any, cache: PagedCache, name: str) -> tuple[Any, Rotation]:
    """Make ``network`` compute over ``cache``; whoever held it as it was holds it no more.

    Raises:
        ModelError: it does not compute the same over the cache, or no numbers at all.
    """
    network.eval().requires_grad_(False)
    on, allowed = network.device, _ALLOWED_ERROR[network.dtype.itemsize]
    tokens = torch.tensor([_PROBE], device=on) % network.config.vocab_size
    expected = network(tokens, use_cache=False).logits[0, -1]
    if bool(expected.isnan().any()):
        raise ModelError(
            f"model {name!r} computes no numbers in {network.dtype}; download its weights again, "
            "or choose another --dtype"
        )
    depends_on_others = _error(_beside_a_far_token(network, tokens), expected) > allowed
    network.set_attn_implementation(attention.NAME)
    rotation = Rotation(network)
    if depends_on_others and not rotation.modules:
        raise ModelError(
            f"model {name!r} computes something else for a text beside a longer one, in a way that "
            "is not known here; choose a model with a rope_type of transformers' own (default, "
            "linear, dynamic, yarn, longrope, llama3)"
        )
    if on.type == "cpu" and network.dtype == torch.float32:
        whole = make_batch([_work(_PROBE, 0, cache)], cache, on, None)
        swap_modules(network, whole, torch.get_num_threads())
        speed_up_rows(network, make_batch([_work(_PROBE[7:], 7, cache)], cache, on, None))
    for piece, start in ((_PROBE[:4], 0), (_PROBE[4:7], 4), (_PROBE[7:], 7)):
        batch = make_batch([_work(piece, start, cache)], cache, on, None)
        ids = batch.tokens % network.config.vocab_size
        inputs = {"input_ids": ids, "position_ids": batch.positions, "use_cache": False}
        with rotation.of(batch):
            logits = network(**inputs, batch=batch).logits[0, -1]
    error = _error(logits, expected)
    if not error <= allowed:
        raise ModelError(
            f"model {name!r} computes something else with a paged cache (relative error "
            f"{error:.1e}); its attention is not plain causal attention. Choose another model"
        )
    return network, rotation


def _beside_a_far_token(network: Any, tokens: torch.Tensor) -> torch.Tensor:
    """The last logits of a text, with a token behind it that stands as far away as can be.

    That token is seen by none of the text. Only a rotation by the longest position can let it
    change what is computed.
    """
    count = tokens.shape[1]
    far = getattr(network.config, "max_position_embeddings", count + 1) - 1
    positions = torch.tensor([[*range(count), far]], device=tokens.device)
    both = torch.cat([tokens, tokens[:, :1]], dim=1)
    out = network(both, position_ids=positions, use_cache=False).logits
    last: torch.Tensor = out[0, count - 1]
    return last


def _error(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return float((logits - expected).float().norm() / expected.float().norm())


def _check_architecture(folder: ModelFolder) -> Any:
    try:
        config = AutoConfig.from_pretrained(folder.path)
    except Exception as error:
        # Each kind of model checks its own settings in its own way.
        raise ModelError(
            f"model {folder.name!r}: transformers does not take its config.json "
            f"({type(error).__name__}: {error}); correct it, or choose another model"
        ) from error
    model_class = AutoModelForCausalLM._model_mapping.get(type(config), None)
    if model_class is None or not model_class._supports_attention_backend:
        raise ModelError(
            f"model {folder.name!r}: transformers' code for {config.model_type!r} does not use its "
            "attention interface; choose another architecture (Llama, Qwen, Mistral, Phi, ...)"
        )
    refuse_unknown(config, folder.name)
    return config


def _work(tokens: list[int], start: int, cache: PagedCache) -> Work:
    blocks = range(cache.layout.blocks_for(len(_PROBE)))
    return Work(tokens, start, blocks, SamplingParams(), _PROBE, len(_PROBE))
