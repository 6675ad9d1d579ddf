"""Machines that fail, by arithmetic: what a client sees, and what was drawn."""

import numpy as np
import pytest
from toy_cluster import load, mixed, split

from splitwise.simulation.result import Reason, Status
from splitwise.simulation.simulate import Options, Outage, simulate


def test_a_decode_goes_on_elsewhere_from_its_tokens_so_far() -> None:
    """First token at 1 s, 5 more until 1.5 s; at 1.55 s the machine goes, with a token half done.

    The other machine computes 1000 + 6 tokens as a prompt, which is the 7th, and 4 more follow.
    """
    result = simulate(load((0.0, 1000, 11)), mixed(2), outages=[Outage(0, 1.55)])
    assert result.attempts[0] == 2
    assert result.ttft_s[0] == pytest.approx(1.0)
    assert result.finish_s[0] == pytest.approx(1.55 + 1.006 + 4 * 0.1)
    assert result.max_tbt_s[0] == pytest.approx(1.55 + 1.006 - 1.5)
    assert result.prompt_machine[0] == result.token_machine[0] == 1


def test_alone_it_waits_until_the_machine_is_back() -> None:
    result = simulate(load((0.0, 1000, 11)), mixed(), outages=[Outage(0, 0.4, 7.0)])
    assert result.first_token_s[0] == pytest.approx(7.0 + 1.0)
    assert result.finish_s[0] == pytest.approx(7.0 + 1.0 + 1.0)
    # 0.4 s of a prompt in vain, the whole request once, and nothing while down.
    assert result.energy_joules[0] == pytest.approx(500 * 1.4 + 300 * 1.0)
    assert result.down_s[0] == pytest.approx(6.6)


def test_nobody_left_is_said() -> None:
    result = simulate(load((0.0, 1000, 11), (5.0, 10, 2)), mixed(), outages=[Outage(0, 0.4)])
    assert result.status.tolist() == [Status.REJECTED] * 2
    assert result.reason.tolist() == [Reason.NO_MACHINE] * 2


def test_a_lost_token_machine_costs_the_prompt_once_more() -> None:
    """It goes while the cache travels (1 to 2 s): 1001 tokens are computed again."""
    result = simulate(
        load((0.0, 1000, 11)),
        split(1, 2),
        Options(overlap=False),
        [Outage(1, 1.5)],
    )
    again_s = 1.5 + 1.001
    assert result.transfer_end_s[0] == pytest.approx(again_s + 1.001)
    assert result.finish_s[0] == pytest.approx(again_s + 1.001 + 9 * 0.1)
    assert result.token_machine[0] == 2


def test_all_is_served_when_half_the_cluster_goes() -> None:
    draw = np.random.default_rng(1)
    rows = [(float(t), 200, 20) for t in np.cumsum(draw.exponential(0.5, 300))]
    outages = [Outage(0, 20.0, 60.0), Outage(2, 30.0, 90.0), Outage(1, 50.0, 55.0)]
    result = simulate(load(*rows), split(2, 2), outages=outages)
    assert (result.status == Status.FINISHED).all()
    assert (result.attempts > 1).any()


def test_full_mixed_machines_do_not_wait_for_each_other() -> None:
    """Each machine's memory would fill with caches that are meant for the other."""
    rows = load(*[(0.001 * i, 400, 40) for i in range(200)])
    groups = [*split(2, 2, kv_capacity_tokens=900), *mixed(2, kv_capacity_tokens=900)]
    result = simulate(rows, groups, Options(queue_threshold_tokens=500))
    assert (result.status == Status.FINISHED).all()


def test_impossible_outages_are_refused() -> None:
    with pytest.raises(ValueError, match="machine 3; choose from 0 to 0"):
        simulate(load((0.0, 1, 1)), mixed(), outages=[Outage(3, 1.0)])
    with pytest.raises(ValueError, match="one after the other"):
        simulate(load((0.0, 1, 1)), mixed(), outages=[Outage(0, 1.0, 5.0), Outage(0, 2.0)])
    with pytest.raises(ValueError, match="from 5 to 2 s"):
        Outage(0, 5.0, 2.0)
