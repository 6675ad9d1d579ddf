"""Options of a worker that ``serve`` has too, and passes on."""

from typing import Annotated

import typer

Device = Annotated[str, typer.Option(help="cpu, cuda or cuda:N.")]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
LoadFormat = Annotated[
    str, typer.Option(help="auto, or dummy: random weights, to measure without any.")
]
EngineName = Annotated[
    str, typer.Option(help="torch, or null: fixed times and no model, to measure the rest.")
]
NullPromptTokenS = Annotated[
    float,
    typer.Option(min=0, help="Null engine: seconds a prompt token, and a token beside prompts."),
]
NullIterationS = Annotated[
    float, typer.Option(min=0, help="Null engine: seconds an iteration without prompts.")
]
Threads = Annotated[int, typer.Option(min=1, help="CPU threads a worker.")]
KVCacheGib = Annotated[
    float, typer.Option(min=1e-6, help="KV cache memory a worker, taken when first used.")
]
Transport = Annotated[str, typer.Option(help="auto, shared_memory, tcp, cuda_ipc or nixl.")]
Checksum = Annotated[bool, typer.Option(help="Verify every transferred cache.")]
OnePieceBelow = Annotated[
    int, typer.Option(min=0, help="Transfer prompts of fewer tokens in one piece, not by layer.")
]
PromptBatchTokens = Annotated[
    int, typer.Option(min=1, help="Tokens a batch: of prompts, and decodes beside them.")
]
BatchRequests = Annotated[
    int, typer.Option("--batch-requests", "--max-num-seqs", min=1, help="Requests a batch.")
]
