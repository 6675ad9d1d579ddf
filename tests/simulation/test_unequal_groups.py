"""Machines of unequal cache in the simulator, as ``tests/system`` has them in a server."""

import pytest
from toy_cluster import load, mixed, split

from splitwise.simulation.simulate import PUBLISHED_2024, Options, simulate

RULES = {"promised": Options(), "grown": Options(cache="grown")}


@pytest.mark.parametrize("cache", RULES)
def test_a_small_full_mixed_machine_does_not_hide_a_large_one(cache: str) -> None:
    """The first fills the small machine for 8 s, the second runs on the large one."""
    cluster = mixed(kv_capacity_tokens=640) + mixed(kv_capacity_tokens=6_400)
    rows = load((0.0, 560, 80), (0.1, 100, 200), (2.0, 100, 5), (3.0, 100, 5))
    result = simulate(rows, cluster, RULES[cache])
    assert result.token_machine.tolist() == [0, 1, 1, 1]
    assert (result.e2e_s[2:] < 1.5).all()


@pytest.mark.parametrize("cache", RULES)
def test_tokens_go_where_the_most_room_is(cache: str) -> None:
    prompt, small = split(kv_capacity_tokens=1_000)
    large = split(kv_capacity_tokens=10_000)[1]
    rows = load((0.0, 100, 400), (0.5, 100, 400), (1.0, 100, 400), (1.5, 100, 400))
    result = simulate(rows, [prompt, small, large], RULES[cache])
    assert set(result.token_machine.tolist()) == {2}
    if cache == "promised":
        published = simulate(rows, [prompt, small, large], PUBLISHED_2024)
        assert published.token_machine[0] == 1
