"""Machines that join, one after the other, in places that were made for more of them."""

from dataclasses import replace

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripted_cluster import MODEL, Link

from splitwise.cluster.roster import Roster
from splitwise.scheduling.cluster_state import new_cluster, take_out
from splitwise.scheduling.pool import Pool


@given(
    st.lists(
        st.tuples(st.integers(0, 40), st.sampled_from(list(Pool)), st.sampled_from([4, 8, 16])),
        max_size=80,
    )
)
def test_machines_that_join_and_leave_stand_as_if_they_had_come_at_once(
    steps: list[tuple[int, Pool, int]],
) -> None:
    """A machine that is there leaves, any other joins."""
    roster, links = Roster(), dict[int, Link]()
    for number, pool, blocks in steps:
        index = roster.index(f"m{number}")
        if index is not None and roster.links[index] is not None:
            roster.remove(index)
            continue
        link = Link(f"m{number}", pool, blocks, max_decodes=blocks)
        links[roster.add(link)] = link
    registers = [links[index].register for index in range(len(roster.names))]
    homes = np.array([register.pool for register in registers], np.int8)
    tokens = np.array([register.layout.blocks * 16 for register in registers], np.int64)
    anew, count = new_cluster(homes, tokens), len(registers)
    for index, link in enumerate(roster.links):
        if link is None:
            take_out(anew, index)
    assert roster.cluster.max_decodes.tolist() == [one.max_decodes for one in registers]
    for name in ("home", "pool", "up", "kv_tokens", "kv_capacity_tokens"):
        assert getattr(roster.cluster, name).tolist() == getattr(anew, name).tolist()
    for name in ("by_pending", "by_kv", "by_queue"):
        ours, theirs = getattr(roster.cluster, name), getattr(anew, name)
        assert np.asarray(ours.leaf)[:count].tolist() == theirs.leaf[:count].tolist()
        assert np.asarray(ours.winner)[:, 1].tolist() == theirs.winner[:, 1].tolist()
        assert np.asarray(ours.key)[:, :count].tolist() == theirs.key[:, :count].tolist()


def test_the_vocabulary_is_the_machines() -> None:
    roster = Roster()
    roster.add(Link("m0", Pool.MIXED, 4))
    assert roster.vocab_size == MODEL.vocab_size


def test_a_machine_that_does_not_fit_is_told_in_what() -> None:
    roster, other = Roster(), Link("m1", Pool.TOKEN, 4)
    roster.add(Link("m0", Pool.PROMPT, 4))
    own = other.register
    other.register = msgspec.structs.replace(
        own, model=replace(MODEL, dtype="bfloat16", max_context_tokens=256)
    )
    with pytest.raises(ValueError) as refusal:
        roster.add(other)
    said = "dtype 'bfloat16' in place of 'float32', max_context_tokens 256 in place of 512"
    assert said in str(refusal.value) and "m0" in str(refusal.value)


def test_caches_of_two_engines_are_not_mixed_even_if_their_sizes_agree() -> None:
    roster, other = Roster(), Link("m1", Pool.TOKEN, 4)
    roster.add(Link("m0", Pool.PROMPT, 4))
    layout = msgspec.structs.replace(other.register.layout, form="vllm")
    other.register = msgspec.structs.replace(other.register, layout=layout)
    with pytest.raises(ValueError, match=r"form 'vllm' in place of ''.*the same --engine"):
        roster.add(other)
