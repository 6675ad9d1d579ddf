"""Bounds of admission and placement; options of ``splitwise serve``."""

from typing import Annotated

import msgspec
from msgspec import Meta

from splitwise.scheduling.admission import MAX_WAITING_REQUESTS
from splitwise.scheduling.placement import PROMPT_QUEUE_THRESHOLD_TOKENS


class ClusterLimits(msgspec.Struct, frozen=True):
    """What the cluster scheduler allows. A field with a description is an option."""

    change_roles: Annotated[
        bool, Meta(description="Pull machines of one pool to the other's help while it is short.")
    ] = True
    prompt_queue_threshold_tokens: Annotated[
        int,
        Meta(
            ge=1,
            description="Pending tokens past which a prompt queue counts as long.",
            extra={"flags": ("--queue-threshold",)},
        ),
    ] = PROMPT_QUEUE_THRESHOLD_TOKENS
    max_waiting_requests: Annotated[
        int, Meta(ge=1, description="Requests without a first token beyond which 429 is said.")
    ] = MAX_WAITING_REQUESTS
    max_wait_s: Annotated[
        float, Meta(ge=0, description="Time for a request to find room on a machine, else 503.")
    ] = 600.0
    """Whatever its priority. OpenAI's clients give up by then."""
    max_wait_for_machine_s: Annotated[
        float, Meta(ge=0, description="The same while no machine takes requests.")
    ] = 30.0
    max_failures: Annotated[
        int, Meta(ge=1, description="Failures of a request in a row, without progress, then 500.")
    ] = 8
    """It may be what its machines failed of. Preemptions do not count."""
    max_stall_s: Annotated[
        float,
        Meta(
            ge=1,
            description="Time without a step in which a machine that has work counts as halted.",
        ),
    ] = 300.0
    """Steps are layers where there are prompts, so that it need not be as long as an iteration."""
