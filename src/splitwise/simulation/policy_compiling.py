"""A policy's decisions as machine code.

Each is compiled in a second or so, with what it calls of the policy's modules, and kept under the
policy's digest. One that numba cannot compile becomes machine code that calls plain Python, some
microseconds a call, and a warning says so.
"""

import logging
from functools import lru_cache
from typing import Any, Final

import numba
import numpy as np
from numba import objmode, types

from splitwise.scheduling.decision import (
    NextBatch,
    Placement,
    PlacementRequest,
    PlacementRules,
    RunningRequest,
    WaitingRequest,
)
from splitwise.scheduling.policies.policy import Policy
from splitwise.simulation.compiled import compiled, register
from splitwise.simulation.policy_call import CallType, read_only_type

log = logging.getLogger(__name__)

REQUEST: Final = numba.typeof(PlacementRequest(0, 0, 0, 0, 0, False))
RULES: Final = numba.typeof(PlacementRules(0, False, False))
PLACEMENT: Final = numba.typeof(Placement(0, 0, False))
WAITING: Final = numba.typeof(WaitingRequest(0, 0, 0))
BATCH: Final = numba.typeof(NextBatch(0, 0, 0.0, 0, 0, 0, 0, 0, 0))
PROMPT_TOKENS: Final = types.Array(types.int64, 1, "C", readonly=True)
RUNNING: Final = numba.typeof(RunningRequest(0, 0, 0, 0))


@lru_cache(maxsize=64)
def compiled_place(policy: Policy, cluster: Any) -> Any:
    """Machine code for the policy's ``place``; it calls plain Python if need be."""
    function = policy.hooks.place

    def place(call: Any, cluster: Any, request: Any, rules: Any) -> Placement:
        said = function(cluster, request, rules)
        return Placement(said[0] + np.int64(0), said[1] + np.int64(0), bool(said[2]))

    arguments = (CallType(), read_only_type(cluster), REQUEST, RULES)
    return _made(policy, place, _place_plainly, arguments, PLACEMENT)


@lru_cache(maxsize=64)
def compiled_order(policy: Policy) -> Any:
    """The same for ``order``."""
    function = policy.hooks.order

    def order(call: Any, request: Any) -> Any:
        return function(request) + 0.0

    return _made(policy, order, _order_plainly, (CallType(), WAITING), types.float64)


@lru_cache(maxsize=64)
def compiled_compose(policy: Policy) -> Any:
    """The same for ``compose``."""
    function = policy.hooks.compose

    def compose(call: Any, batch: Any, prompt_tokens: Any) -> Any:
        return function(batch, prompt_tokens) + np.int64(0)

    arguments = (CallType(), BATCH, PROMPT_TOKENS)
    return _made(policy, compose, _compose_plainly, arguments, types.int64)


@lru_cache(maxsize=64)
def compiled_victim(policy: Policy) -> Any:
    """The same for ``victim``."""
    function = policy.hooks.victim

    def victim(call: Any, request: Any) -> Any:
        return function(request) + np.int64(0)

    return _made(policy, victim, _victim_plainly, (CallType(), RUNNING), types.int64)


def _made(policy: Policy, compiling: Any, plain: Any, arguments: Any, wanted: Any) -> Any:
    """Machine code of a decision; of ``plain`` where numba does not compile it."""
    name = compiling.__name__
    function = getattr(policy.hooks, name)
    # Machine code is found by name, and what was kept by other processes has names of theirs.
    compiling.__qualname__ = f"{name}_{policy.digest}"
    register([*policy.functions, function], is_checked=name in policy.own)
    try:
        made: Any = compiled(compiling, policy.digest)
        made.compile(arguments)
        code = made.overloads[arguments]
        if code.signature.return_type != wanted:
            raise TypeError(f"it returns {code.signature.return_type}")
        return code
    except Exception as error:  # noqa: BLE001  numba raises what it likes
        log.warning(
            "policy %s: %s runs as plain Python, which is slow; numba does not compile it: %s",
            policy.name,
            name,
            _reason_of(error),
        )
        made = compiled(plain)
        made.compile(arguments)
        return made.overloads[arguments]


def _place_plainly(call: Any, cluster: Any, request: Any, rules: Any) -> Placement:
    with objmode(prompt="int64", token="int64", pulls="boolean"):
        prompt, token, pulls = call.plain(request, rules)
    return Placement(prompt, token, pulls)


def _order_plainly(call: Any, request: Any) -> Any:
    with objmode(order="float64"):
        order = call.plain(request)
    return order


def _compose_plainly(call: Any, batch: Any, prompt_tokens: Any) -> Any:
    prompts = len(prompt_tokens)  # whoever is called has the array itself
    with objmode(count="int64"):
        count = call.plain(batch, prompts)
    return count


def _victim_plainly(call: Any, request: Any) -> Any:
    with objmode(rank="int64"):
        rank = call.plain(request)
    return rank


def _reason_of(error: Exception) -> str:
    """The line of numba's long message that says what is wrong."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith("Failed in nopython mode")]
    return said[0] if said else type(error).__name__
