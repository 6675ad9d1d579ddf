"""The simulator where the cache grows with the output, against arithmetic by hand.

A toy machine takes a prompt in 1 ms a token and a token in 0.1 s; a mixed iteration takes 1.1
times as long for each of its tokens as a prompt's. Blocks hold 16 tokens.
"""

import itertools
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_cluster import Load, load, mixed, split

from splitwise.simulation.result import Reason, Status
from splitwise.simulation.simulate import MachineGroup, Options, Outage, simulate

GROWN = Options(cache="grown")


def test_a_request_alone_takes_as_long_as_ever() -> None:
    for cluster in (mixed(), split()):
        rows = load((2.0, 1000, 11))
        promised, grown = simulate(rows, cluster), simulate(rows, cluster, GROWN)
        assert grown.ttft_s == promised.ttft_s
        assert grown.e2e_s == pytest.approx(promised.e2e_s)
        assert grown.transfer_end_s == pytest.approx(promised.transfer_end_s, nan_ok=True)


@pytest.mark.parametrize(("output", "blocks"), [(13, 7), (17, 7), (18, 8), (33, 8), (34, 9)])
def test_blocks_are_taken_as_the_output_crosses_their_bounds(output: int, blocks: int) -> None:
    """The last token needs no room, so 96 + 16 tokens in 7 blocks make 17 tokens of output."""
    result = simulate(load((0.0, 96, output)), mixed(), GROWN)
    assert result.peak_kv_tokens[0] == blocks * 16


def test_a_prompt_machine_holds_the_prompt_alone() -> None:
    result = simulate(load((0.0, 96, 40)), split(), GROWN)
    assert result.peak_kv_tokens.tolist() == [6 * 16, 9 * 16]


def test_more_run_at_once_than_whole_requests_would_fit() -> None:
    """Two of 96 and 60 tokens need 10 blocks each in the end, a third 7. 24 are too few for all,
    but the third has come and gone before the others have grown that far."""
    rows = load((0.0, 96, 60), (0.5, 96, 60), (1.0, 96, 3))
    cluster = mixed(kv_capacity_tokens=24 * 16)
    promised, grown = simulate(rows, cluster), simulate(rows, cluster, GROWN)
    assert promised.ttft_s[2] > 4
    assert grown.ttft_s[2] < 0.3
    assert grown.attempts.tolist() == [1, 1, 1]


def test_the_youngest_is_preempted_and_goes_on_with_its_tokens_as_prompt() -> None:
    """Two requests of 100 and 40 tokens in 16 blocks, which they have from token 113 on.

    1. 0.1 s: the first has its first token; the second's prompt and a decode: 101 tokens mixed.
    2. The first makes token 29 at 2.9111 s: 129 tokens need a ninth block, so the second has to go
       with its 28 tokens; it needs 9 blocks for 128 + 1 and waits.
    3. The first goes on alone, 39 decodes in all: its last token is out at 4.0111 s.
    4. A prompt of 128 tokens, and 11 more decodes.
    """
    result = simulate(load((0.0, 100, 40), (0.0, 100, 40)), mixed(kv_capacity_tokens=256), GROWN)
    mixed_s = 1.1 * 0.101
    assert result.attempts.tolist() == [1, 2]
    assert result.finish_s[0] == pytest.approx(0.1 + mixed_s + 38 * 0.1)
    assert result.finish_s[1] == pytest.approx(result.finish_s[0] + 0.128 + 11 * 0.1)
    assert result.first_token_s[1] == pytest.approx(0.1 + mixed_s)
    preempted_s = 0.1 + mixed_s + 27 * 0.1
    assert result.max_tbt_s[1] == pytest.approx(result.finish_s[0] + 0.128 - preempted_s)


def test_who_was_preempted_goes_before_who_never_began() -> None:
    """As above, and one that came later: it fits from the start but for the queue's head."""
    rows = load((0.0, 100, 40), (0.0, 100, 40), (0.5, 100, 2))
    result = simulate(rows, mixed(kv_capacity_tokens=256), GROWN)
    assert result.attempts.tolist() == [1, 2, 1]
    assert result.finish_s[0] < result.prompt_start_s[2]
    assert result.decode_start_s[1] <= result.decode_start_s[2]


def test_the_line_is_first_come_first_served() -> None:
    """The second fits nowhere until the first is done, and holds up the third, which would fit."""
    rows = load((0.0, 1000, 11), (0.1, 1500, 2), (0.2, 800, 2))
    result = simulate(rows, mixed(kv_capacity_tokens=2400), GROWN)
    assert result.prompt_start_s[1] == pytest.approx(result.finish_s[0])
    assert result.prompt_start_s[2] == pytest.approx(result.first_token_s[1])


def test_a_much_smaller_one_passes_a_large_one_that_finds_no_room() -> None:
    """As above, with one between that is in nobody's way."""
    rows = load((0.0, 1000, 11), (0.1, 1500, 2), (0.15, 50, 2), (0.2, 800, 2))
    result = simulate(rows, mixed(kv_capacity_tokens=2400), GROWN)
    assert result.prompt_start_s[2] == pytest.approx(result.first_token_s[0])
    assert result.prompt_start_s[1] == pytest.approx(result.finish_s[0])
    assert result.prompt_start_s[3] == pytest.approx(result.first_token_s[1])


def test_small_ones_pass_until_they_have_taken_as_much_as_the_large_one_needs() -> None:
    """It needs 63 blocks, and each of them 7."""
    small = [(0.2 + 0.2 * i, 100, 2) for i in range(40)]
    rows = load((0.0, 1000, 100), (0.1, 1000, 2), *small)
    result = simulate(rows, mixed(kv_capacity_tokens=1600), GROWN)
    have_passed = result.prompt_start_s[2:] < result.prompt_start_s[1]
    assert result.prompt_start_s[1] == pytest.approx(result.finish_s[0])
    assert have_passed.tolist() == [True] * 9 + [False] * 31
    one_less = simulate(load(*rows_of(rows)[:10]), mixed(kv_capacity_tokens=1600), GROWN)
    assert (one_less.prompt_start_s[2:] < one_less.prompt_start_s[1]).all()


def rows_of(rows: Load) -> list[tuple[float, int, int]]:
    return list(zip(rows.arrival_s, rows.prompt_tokens, rows.output_tokens, strict=True))


def test_who_fits_no_machine_that_is_up_waits_apart() -> None:
    """The large machine is away from 0.5 to 20 s. The second request waits for it, and the others,
    of half its size and more, are not in its way."""
    small, large = mixed(kv_capacity_tokens=1024)[0], mixed(kv_capacity_tokens=2048)[0]
    rows = load((0.0, 1500, 30), (1.0, 1500, 10), (2.0, 800, 10), (4.0, 900, 10), (25.0, 9, 2))
    result = simulate(rows, [small, large], GROWN, [Outage(1, 0.5, 20.0)])
    assert (result.status == Status.FINISHED).all()
    assert result.prompt_start_s[2:4].tolist() == [2.0, 4.0]
    assert result.token_machine.tolist()[:4] == [1, 1, 0, 0]
    assert result.attempts.tolist() == [2, 1, 1, 1, 1]
    assert result.finish_s[0] == pytest.approx(20.0 + 1.5 + 29 * 0.1)
    assert result.prompt_start_s[1] == pytest.approx(result.finish_s[0])


def test_a_machine_looks_at_what_came_between_two_iterations() -> None:
    """A cache that arrives during an iteration joins the next."""
    cluster = split(kv_capacity_tokens=100_000, link_bytes_per_s=1e12)
    rows = load((0.0, 1000, 30), (1.05, 200, 2))
    result = simulate(rows, cluster, GROWN)
    assert result.transfer_end_s[1] == pytest.approx(1.25)
    looked_s = result.transfer_end_s[0] + 3 * 0.1
    assert result.decode_start_s[1] == pytest.approx(looked_s)


def test_a_transfer_waits_for_blocks_on_the_token_machine() -> None:
    """99 blocks are charged in full: 63 for 1000 tokens of the first and 36 for 575 of the second.
    While the first runs one block is kept back for it, so the second gets its 36 only as the first
    ends, at 1.8 s, just after its own prompt, and then all of it has to travel."""
    cluster = split(kv_capacity_tokens=99 * 16)
    rows = load((0.0, 1000, 8), (1.2, 575, 8))
    result = simulate(rows, cluster, replace(GROWN, change_roles=False))
    assert result.finish_s[0] == pytest.approx(1.8)
    assert result.first_token_s[1] == pytest.approx(1.775)
    assert result.transfer_start_s[1] == pytest.approx(1.8)
    assert result.transfer_end_s[1] == pytest.approx(1.8 + 0.575)


def test_what_fits_nowhere_is_rejected_and_a_machine_that_never_returns_blocks_nobody() -> None:
    small, large = mixed(kv_capacity_tokens=512)[0], mixed(kv_capacity_tokens=2048)[0]
    rows = load((0.0, 2000, 100), (1.0, 1000, 10), (2.0, 100, 10))
    result = simulate(rows, [small, large], GROWN, [Outage(1, 0.5)])
    assert result.reason.tolist() == [Reason.TOO_LARGE, Reason.NO_MACHINE, Reason.NONE]
    assert result.status[2] == Status.FINISHED


def test_options_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="cache is 'paged'; it must be one of promised, grown"):
        Options(cache="paged")
    with pytest.raises(ValueError, match="block_tokens is 0"):
        Options(block_tokens=0)
    with pytest.raises(ValueError, match=r"retry_s is 1, .* leave retry_s at 0"):
        Options(cache="grown", retry_s=1.0)


clusters = st.builds(
    lambda pools, capacity: (
        split(*pools, kv_capacity_tokens=capacity)
        if pools[1]
        else mixed(pools[0], kv_capacity_tokens=capacity)
    ),
    st.tuples(st.integers(1, 3), st.integers(0, 2)),
    st.sampled_from([320, 528, 2000]),
)


@settings(max_examples=150, deadline=None)
@given(clusters, st.booleans(), st.integers(0, 10_000), st.sampled_from([1.0, 10.0]))
def test_nothing_is_stuck_or_lost_under_pressure_and_failures(
    cluster: list[MachineGroup], change_roles: bool, seed: int, rate_per_s: float
) -> None:
    draw = np.random.default_rng(seed)
    count = 80
    rows = Load(
        np.cumsum(draw.exponential(1 / rate_per_s, count)),
        draw.integers(1, 220, count),
        draw.integers(1, 80, count),
    )
    machines = sum(group.count for group in cluster)
    down_s = draw.exponential(10.0, machines).tolist()
    outages = [Outage(i, at_s, at_s + 5.0) for i, at_s in enumerate(down_s)]
    options = Options(cache="grown", change_roles=change_roles)
    result = simulate(rows, cluster, options, outages)
    assert (result.status == Status.FINISHED).all()
    assert (result.peak_kv_tokens <= result.kv_capacity_tokens).all()
    in_order = ("arrival_s", "prompt_start_s", "first_token_s", "finish_s")
    for before, after in itertools.pairwise(in_order):
        assert (getattr(result, before) <= getattr(result, after)).all()
