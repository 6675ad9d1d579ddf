"""What a request is charged to its two machines, in the numbers that ``placement`` decides on.

Promised, a token machine is charged the whole request as it is placed. Where the cache grows, it is
charged what is known: prompt, output so far and the next token, in whole blocks, and one of its
decodes if there is a token phase, as the server's ledger does. A prompt machine that sends its
cache away is charged the prompt and a token.
"""

from typing import Any

from splitwise.scheduling.cluster_state import rank
from splitwise.simulation.compiled import inlined
from splitwise.simulation.state import Phase


@inlined
def in_blocks(state: Any, tokens: int) -> int:
    """The cache, in whole blocks, that ``tokens`` tokens take."""
    block = state.rules.block_tokens
    return int((tokens + block - 1) // block * block)


@inlined
def token_charge(state: Any, one: Any, generated: int) -> int:
    """Cache charged to the token machine after ``generated`` tokens of this attempt."""
    if state.rules.cache_grows:
        return in_blocks(state, one.prompt_tokens + generated + 1)
    return int(one.prompt_tokens + one.output_tokens)


@inlined
def prompt_charge(state: Any, one: Any) -> int:
    """Cache charged to a prompt machine that is not the token machine too."""
    return in_blocks(state, one.prompt_tokens + 1)


@inlined
def count_decode(state: Any, one: Any, change: int) -> None:
    """One decode more on its token machine, or one less; only a growing cache bounds them."""
    if state.rules.cache_grows and one.output_tokens > 1:
        state.cluster.decodes[one.token_machine] += change


@inlined
def charge(state: Any, one: Any) -> None:
    """Book what a request brings to its machines."""
    cluster = state.cluster
    prompt, token = one.prompt_machine, one.token_machine
    cluster.pending_tokens[prompt] += one.prompt_tokens
    cluster.pending_tokens[token] += 1
    cluster.kv_tokens[token] += token_charge(state, one, 0)
    count_decode(state, one, 1)
    if prompt != token:
        cluster.kv_tokens[prompt] += prompt_charge(state, one)
        rank(cluster, token)
    rank(cluster, prompt)


@inlined
def uncharge(state: Any, one: Any, generated: int) -> None:
    """Undo of ``charge`` what has not been undone as the request went on."""
    cluster = state.cluster
    prompt, token = one.prompt_machine, one.token_machine
    if one.phase <= Phase.PROMPT:
        cluster.pending_tokens[prompt] -= one.prompt_tokens
    cluster.pending_tokens[token] -= 1
    cluster.kv_tokens[token] -= token_charge(state, one, generated)
    count_decode(state, one, -1)
    if prompt != token and one.phase <= Phase.ARRIVED:
        cluster.kv_tokens[prompt] -= prompt_charge(state, one)
    rank(cluster, prompt)
    rank(cluster, token)
