"""Whether a machine can run a task at all: asked once, as the task comes in.

An iteration with a task that cannot run would cost the others in it, too.
"""

from splitwise.engine.base import ModelInfo
from splitwise.protocol.messages import TaskSpec
from splitwise.transfer.layout import CacheLayout
from splitwise.transfer.ranks import parts_of


def unfit_reason(
    spec: TaskSpec, other_ranks: int, model: ModelInfo, layout: CacheLayout
) -> str | None:
    """Why a machine of that model and cache cannot run a task; None if it can. ``other_ranks`` is
    how many ranks the other machine of the task has."""
    tokens = len(spec.history)
    if not 0 < spec.prompt_tokens <= tokens < spec.max_history_tokens:
        return (
            f"{spec.prompt_tokens} tokens of prompt in {tokens} of history, "
            f"which may grow to {spec.max_history_tokens}"
        )
    if spec.max_history_tokens > model.max_context_tokens:
        return f"{spec.max_history_tokens} tokens in a context of {model.max_context_tokens}"
    if layout.blocks_for(tokens) > layout.blocks:
        return f"{tokens} tokens in a cache of {layout.blocks} blocks"
    if min(spec.history) < 0 or max(spec.history) >= model.vocab_size:
        return f"token ids outside 0 to {model.vocab_size - 1}"
    try:
        parts_of(layout.all_heads, 1, other_ranks)
    except ValueError as error:
        return f"the other machine: {error}"
    return None
