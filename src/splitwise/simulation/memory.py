"""Whose cache lies where: room is taken for a whole request, on both its machines at once.

A prompt starts when its own machine has room for it and its token machine for all its cache, and
takes both together. Holding the one while waiting for the other, two machines full of caches meant
for each other would wait for ever.

With ``retry_s``, as in the authors' public simulator, room is taken late instead: the prompt's as
it starts, again on the token machine as the transfer starts, the output's as the token phase does.

Where the cache grows with the output, ``grown`` has other rules.
"""

from typing import Any

from splitwise.simulation.compiled import inlined
from splitwise.simulation.queues import block


@inlined
def has_room(state: Any, machine: int, tokens: int) -> bool:
    """Whether the machine's memory holds ``tokens`` more."""
    used = state.machines[machine].memory_tokens
    return bool(used + tokens <= state.cluster.kv_capacity_tokens[machine])


@inlined
def take_memory(state: Any, machine: int, tokens: int) -> None:
    """Use memory of the machine; less of it, where ``tokens`` is negative."""
    here = state.machines[machine]
    here.memory_tokens += tokens
    if here.memory_tokens > here.peak_memory_tokens:
        here.peak_memory_tokens = here.memory_tokens


@inlined
def hold(state: Any, one: Any, tokens: int) -> None:
    """The request takes memory of its token machine."""
    take_memory(state, one.token_machine, tokens)
    one.held_tokens += tokens


@inlined
def hold_prompt(state: Any, one: Any, tokens: int) -> None:
    """The request takes memory of the machine that computes its prompt, where it may stay."""
    if one.token_machine == one.prompt_machine:
        hold(state, one, tokens)
        return
    take_memory(state, one.prompt_machine, tokens)
    one.prompt_held_tokens += tokens


@inlined
def free_memory(state: Any, machine: int, tokens: int) -> None:
    """So many tokens of a machine's cache are not used any more."""
    here = state.machines[machine]
    here.memory_tokens -= tokens
    here.has_freed = True


@inlined
def leave_prompt_machine(state: Any, one: Any) -> None:
    """The request has nothing more on a prompt machine that is not its token machine too."""
    free_memory(state, one.prompt_machine, one.prompt_held_tokens)
    one.prompt_held_tokens = 0


@inlined
def leave_token_machine(state: Any, one: Any) -> None:
    """The request has nothing more on its token machine."""
    free_memory(state, one.token_machine, one.held_tokens)
    one.held_tokens = 0


@inlined
def early_memory(state: Any, one: Any) -> int:
    """Cache a request holds on its token machine before its token phase."""
    if state.rules.retry_s > 0:
        return int(one.prompt_tokens + 1)
    return int(one.prompt_tokens + one.output_tokens)


@inlined
def prompt_memory(state: Any, one: Any) -> int:
    """Cache a request takes on its prompt machine, where it may stay."""
    if one.token_machine == one.prompt_machine:
        return early_memory(state, one)
    return int(one.prompt_tokens + 1)


@inlined
def try_grow(state: Any, machine: int, one: Any) -> bool:
    """Take what the token phase needs beyond what is held already, if there is room."""
    if state.rules.cache_grows:
        return True  # ``grown.grow`` has done so
    more = one.prompt_tokens + one.output_tokens - one.held_tokens
    if more > 0 and not has_room(state, machine, more):
        return False
    hold(state, one, more)
    return True


@inlined
def reserved_memory(state: Any, one: Any) -> int:
    """Cache that is reserved on the token machine as the prompt starts."""
    if one.token_machine == one.prompt_machine or state.rules.retry_s > 0:
        return 0
    return int(one.prompt_tokens + one.output_tokens)


@inlined
def try_reserve(state: Any, machine: int, one: Any) -> bool:
    """Take room for a prompt on both its machines, or on neither and wait for it."""
    if not has_room(state, machine, prompt_memory(state, one)):
        return False  # looked at again whenever this machine frees something
    reserved = reserved_memory(state, one)
    if reserved > 0:
        if not has_room(state, one.token_machine, reserved):
            block(state, machine, one.token_machine)
            return False
        hold(state, one, reserved)
    hold_prompt(state, one, prompt_memory(state, one))
    return True
