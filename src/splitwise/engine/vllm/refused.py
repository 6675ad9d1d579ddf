"""Arguments and models that vLLM would take, but with which a machine cannot keep its promises."""

import reprlib
from typing import TYPE_CHECKING, Final

from splitwise.engine.errors import ModelError

if TYPE_CHECKING:
    from vllm.config import VllmConfig

REFUSED: Final = {
    "model": "name it where vLLM's arguments are not",
    "kv_transfer_config": "the cache is moved by Splitwise's own connector",
    "kv_offloading_size": "it would put another connector in the place of Splitwise's",
    "logits_processors": "draws are made by Splitwise's own",
    "scheduling_policy": "requests have priorities",
    "async_scheduling": "what a step says is heard before the next one",
    "speculative_config": "a machine of Splitwise says one token at a time",
    "pipeline_parallel_size": "layers of one cache on several ranks are not moved yet",
    "decode_context_parallel_size": "tokens of one block on several ranks are not moved yet",
    "prefill_context_parallel_size": "tokens of one block on several ranks are not moved yet",
    "data_parallel_size": "start more machines instead",
    "disable_hybrid_kv_cache_manager": "blocks of several kinds are not moved yet",
    "enable_lora": "a request cannot name an adapter yet",
}
"""By vLLM's names, and why."""


def refuse_arguments(given: object, usual: object) -> None:
    """Compare what vLLM has read with what it would have read without the user's arguments: so it
    does not matter how an argument was spelled, or whether a file of vLLM's names it.

    Raises:
        ModelError: one is set that is not to be.
    """
    for name, reason in REFUSED.items():
        value = getattr(given, name, None)  # an older or newer vLLM need not have all of them
        if value != getattr(usual, name, None):
            flag = "--" + name.replace("_", "-")
            raise ModelError(
                f"--vllm-args: {flag} is {reprlib.repr(value)}: {reason}; leave it out"
            )


def refuse_model(config: "VllmConfig") -> None:
    """
    Raises:
        ModelError: the model does not go on with a text.
    """
    model = config.model_config
    if model.runner_type != "generate" or model.is_encoder_decoder:
        kind = "encoder-decoder" if model.is_encoder_decoder else model.runner_type
        raise ModelError(
            f"it is {', '.join(model.architectures)}, a model for {kind}, and only decoder-only "
            "models that go on with a text are served: serve it with plain vLLM"
        )
