"""What ``serve`` and ``worker`` are told alike: ``serve`` passes it on to the workers it starts."""

from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from splitwise.cli.policy import POLICY_HELP
from splitwise.protocol.handshake.tls import TlsFiles
from splitwise.scheduling.policies.policy import DEFAULT

USUAL_CACHE_GIB: Final = 2.0


class WorkerSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One machine's settings. A field added here is an option of both commands and passed on
    (``settings``)."""

    device: Annotated[str, Meta(description="cpu, cuda or cuda:N.")] = "cpu"
    dtype: Annotated[
        Literal["auto", "float32", "bfloat16", "float16"],
        Meta(description="Of the weights; auto: the engine's own choice."),
    ] = "auto"
    load_format: Annotated[
        Literal["auto", "dummy"],
        Meta(description="dummy: random weights, to measure without any."),
    ] = "auto"
    engine: Annotated[
        Literal["torch", "vllm", "null"],
        Meta(
            description="torch: our own; vllm: docs/vllm.md; null: fixed times and no model, to "
            "measure the rest."
        ),
    ] = "torch"
    vllm_args: Annotated[
        str,
        Meta(
            description="More arguments, of `vllm serve`, for --engine vllm, in one string: "
            "'--quantization fp8 --max-model-len 8192'."
        ),
    ] = ""
    null_prompt_token_s: Annotated[
        float,
        Meta(ge=0, description="Null engine: seconds a prompt token, and a token beside prompts."),
    ] = 0.0
    null_iteration_s: Annotated[
        float, Meta(ge=0, description="Null engine: seconds an iteration without prompts.")
    ] = 0.0
    threads: Annotated[int, Meta(ge=1, description="CPU threads a worker.")] = 1
    kv_cache_gib: Annotated[
        float | None,
        Meta(
            ge=1e-6,
            description="KV cache memory a worker, taken when first used; default 2, but vLLM on "
            "a GPU takes what its --gpu-memory-utilization leaves.",
        ),
    ] = None
    transport: Annotated[
        Literal["auto", "shared_memory", "tcp", "cuda_ipc", "nixl"],
        Meta(description="How caches travel; auto: as both ends can."),
    ] = "auto"
    cluster_tls_cert: Annotated[
        str,
        Meta(
            description="PEM file of the certificate (chain) for TLS between machines, on each of "
            "them or on none; --tls-cert's will do."
        ),
    ] = ""
    cluster_tls_key: Annotated[
        str, Meta(description="PEM file of that certificate's key, not encrypted.")
    ] = ""
    cluster_tls_ca: Annotated[
        str,
        Meta(
            description="PEM file of the CA that the other machines' certificates must be signed "
            "by; without one the cluster key alone vouches for them."
        ),
    ] = ""
    checksum: Annotated[bool, Meta(description="Verify every transferred cache.")] = False
    transfer_connect_s: Annotated[
        float,
        Meta(ge=0.01, description="Dial and handshake of a connection that carries caches."),
    ] = 10.0
    transfer_write_s: Annotated[
        float, Meta(ge=0.01, description="How long a peer may take nothing of a cache.")
    ] = 10.0
    transfer_answer_s: Annotated[
        float,
        Meta(ge=0.01, description="How long nothing is heard of a cache that is sent."),
    ] = 30.0
    transfer_stop_s: Annotated[
        float,
        Meta(ge=0.01, description="How long a sender that is to stop keeps silent."),
    ] = 10.0
    transfer_idle_s: Annotated[
        float,
        Meta(
            ge=0.01,
            description="How long a transfer stands still for any other reason, as in a queue.",
        ),
    ] = 600.0
    one_piece_below: Annotated[
        int,
        Meta(ge=0, description="Transfer prompts of fewer tokens in one piece, not by layer."),
    ] = 512
    prompt_batch_tokens: Annotated[
        int, Meta(ge=1, description="Tokens a batch: of prompts, and decodes beside them.")
    ] = 2048
    batch_requests: Annotated[
        int,
        Meta(
            ge=1,
            description="Requests a batch.",
            extra={"flags": ("--batch-requests", "--max-num-seqs")},
        ),
    ] = 512

    policy: Annotated[str, Meta(description=POLICY_HELP)] = DEFAULT.source
    """Of a machine it has the composition of batches and the choice of victims."""

    @property
    def cache_gib(self) -> float | None:
        """None where the engine measures what its device has left."""
        if self.kv_cache_gib is None and not (self.engine == "vllm" and self.device != "cpu"):
            return USUAL_CACHE_GIB
        return self.kv_cache_gib

    @property
    def cluster_tls(self) -> TlsFiles | None:
        """None where no file is named: in the clear."""
        files = TlsFiles(self.cluster_tls_cert, self.cluster_tls_key, self.cluster_tls_ca)
        return None if files == TlsFiles("", "") else files
