"""Machines that join, one after the other, in places that were made for more of them."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scripted_cluster import Link

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
