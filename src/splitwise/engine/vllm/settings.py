"""What a machine that runs vLLM is told, and what of it vLLM reads from a command line."""

import shlex
from typing import Final

import msgspec

from splitwise.engine.errors import ModelError

BATCH_FLAGS: Final = ("--max-num-batched-tokens", "--max-num-seqs")
"""Each bounds the other, so that who sets one by hand sets both, or leaves the other to vLLM."""


class VllmSettings(msgspec.Struct, frozen=True):
    """One machine's settings."""

    device: str
    """cpu or cuda:0, the first that this process sees; its other ranks take those that follow."""
    dtype: str = "auto"
    """vLLM's auto: float32 weights are computed in a 16-bit type."""
    kv_cache_gib: float | None = None
    """None: vLLM's own choice (``--gpu-memory-utilization``)."""
    threads: int = 1
    cores: list[int] = []
    load_format: str = "auto"
    arguments: str = ""
    """More of ``vllm serve``'s, as a shell would read them; what they say wins."""
    layerwise: bool = True
    """Whether layers are pushed one by one, as prompt and mixed machines do."""
    batch_tokens: int = 2048
    batch_requests: int = 512

    def engine_arguments(self) -> list[str]:
        """The command line for vLLM's parser of engine arguments, but for the model.

        Raises:
            ModelError: ``arguments`` are no words of a shell.
        """
        own = [f"--dtype={self.dtype}", f"--load-format={self.load_format}"]
        if self.kv_cache_gib is not None:
            own.append(f"--kv-cache-memory-bytes={int(self.kv_cache_gib * 2**30)}")
        given = split_arguments(self.arguments)
        if not any(_flag(word) in BATCH_FLAGS for word in given):
            limits = (self.batch_tokens, min(self.batch_requests, self.batch_tokens))
            own += [f"{flag}={limit}" for flag, limit in zip(BATCH_FLAGS, limits, strict=True)]
        return own + given


def split_arguments(arguments: str) -> list[str]:
    """The words of ``--vllm-args``.

    Raises:
        ModelError: a quotation mark is not closed.
    """
    try:
        return shlex.split(arguments)
    except ValueError as error:
        raise ModelError(
            f"--vllm-args {arguments!r}: not the words of a command line ({error}); quote them as "
            "for a shell"
        ) from error


def _flag(word: str) -> str:
    """vLLM takes underscores for dashes."""
    return word.partition("=")[0].replace("_", "-")
