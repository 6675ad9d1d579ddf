"""The simulator against arithmetic: one request, queues with known answers, conservation."""

import numpy as np
import pytest
from toy_cluster import Load, load, mixed, split

from splitwise.simulation.result import Reason, Status
from splitwise.simulation.simulate import Options, simulate


def test_one_request_alone_on_one_machine() -> None:
    result = simulate(load((2.0, 1000, 11)), mixed())
    assert result.ttft_s[0] == pytest.approx(1.0)
    assert result.e2e_s[0] == pytest.approx(1.0 + 10 * 0.1)
    assert result.tbt_s[0] == pytest.approx(0.1)
    assert result.max_tbt_s[0] == pytest.approx(0.1)
    assert np.isnan(result.transfer_end_s[0])


def test_context_makes_each_token_slower_by_the_same_step() -> None:
    """Decode j = 1..10 reads 1000 + j tokens: 10 x 0.1 + 1e-5 x (10 x 1000 + 55)."""
    result = simulate(load((0.0, 1000, 11)), mixed(context_s=1e-5))
    assert result.e2e_s[0] == pytest.approx(1.0 + 1.0 + 1e-5 * (10_000 + 55))
    assert result.max_tbt_s[0] == pytest.approx(0.1 + 1e-5 * 1010)


def test_a_transfer_in_one_piece_is_seen_whole() -> None:
    """1000 tokens x 1000 bytes at 1 MB/s take a second."""
    result = simulate(load((0.0, 1000, 11)), split(), Options(overlap=False))
    assert result.ttft_s[0] == pytest.approx(1.0)
    assert result.transfer_end_s[0] == pytest.approx(2.0)
    assert result.max_tbt_s[0] == pytest.approx(1.1)
    assert result.e2e_s[0] == pytest.approx(1.0 + 1.0 + 10 * 0.1)


def test_a_layer_wise_transfer_hides_all_layers_but_the_last() -> None:
    """Ten layers a tenth of a second each, computed and sent at the same pace."""
    result = simulate(load((0.0, 1000, 11)), split())
    assert result.transfer_end_s[0] == pytest.approx(1.1)
    latency = simulate(load((0.0, 1000, 11)), split(link_latency_s=0.03))
    assert latency.transfer_end_s[0] == pytest.approx(1.13)


def test_transfers_from_one_machine_share_its_link() -> None:
    """Two prompts of 1000 tokens in one batch: their caches leave one after the other."""
    rows = load((0.0, 1000, 3), (0.0, 1000, 3), (0.0, 1000, 3))
    shared = simulate(rows, split(token=2), Options(overlap=False))
    alone = simulate(rows, split(token=2), Options(overlap=False, share_links=False))
    assert sorted(shared.transfer_end_s) == pytest.approx([2.0, 4.0, 5.0])
    assert sorted(alone.transfer_end_s) == pytest.approx([2.0, 4.0, 4.0])


def test_a_long_prompt_preempts_decodes_and_the_gap_is_seen() -> None:
    """A prompt past the batch budget runs alone for 3 s while the first request waits."""
    result = simulate(load((0.0, 100, 21), (0.55, 3000, 2)), mixed())
    assert result.preemptions[0] == 1
    assert result.max_tbt_s[0] == pytest.approx(3.1)


def test_chunked_prompts_let_decodes_go_on() -> None:
    result = simulate(load((0.0, 100, 21), (0.55, 3000, 2)), mixed(), Options(chunk_prompts=True))
    assert result.preemptions[0] == 0
    assert result.max_tbt_s[0] == pytest.approx(1.1 * 2.048)
    assert result.status.tolist() == [Status.FINISHED, Status.FINISHED]


def test_what_fits_nowhere_is_rejected_with_its_reason() -> None:
    result = simulate(load((0.0, 900, 200), (0.0, 500, 20)), mixed(kv_capacity_tokens=1000))
    assert result.status.tolist() == [Status.REJECTED, Status.FINISHED]
    assert result.reason.tolist() == [Reason.TOO_LARGE, Reason.NONE]


def test_energy_is_watts_times_time() -> None:
    result = simulate(load((1.0, 1000, 11)), mixed())
    assert result.energy_joules[0] == pytest.approx(50 * 1 + 500 * 1 + 300 * 1)


def poisson(rate_per_s: float, count: int, prompt: int, output: int, seed: int = 1) -> Load:
    gaps = np.random.default_rng(seed).exponential(1 / rate_per_s, count)
    return Load(np.cumsum(gaps), np.full(count, prompt), np.full(count, output))


def test_one_machine_is_an_m_d_1_queue() -> None:
    """Prompts of 1 s, one at a time, at 70 % load: mean wait rho / (2 (1 - rho)) x 1 s."""
    result = simulate(poisson(0.7, 200_000, 1000, 1), mixed(), Options(batch_tokens=1000))
    assert result.queue_s.mean() == pytest.approx(0.7 / (2 * 0.3), rel=0.03)


def test_an_m_g_1_queue() -> None:
    """Prompts of 0.5 or 1.5 s: mean wait lambda E[S^2] / (2 (1 - rho))."""
    base = poisson(0.6, 200_000, 1000, 1)
    sizes = np.where(np.random.default_rng(2).random(200_000) < 0.5, 500, 1500)
    result = simulate(
        Load(base.arrival_s, sizes, base.output_tokens), mixed(), Options(batch_tokens=500)
    )
    expected = 0.6 * (0.25 + 2.25) / 2 / (2 * 0.4)
    assert result.queue_s.mean() == pytest.approx(expected, rel=0.03)


def test_littles_law_and_conservation() -> None:
    result = simulate(poisson(1.5, 20_000, 300, 30), split(2, 2))
    assert (result.status == Status.FINISHED).all()
    in_decode_s = (result.finish_s - result.decode_start_s).sum()
    bins = np.arange(result.occupancy_s.shape[1])
    tokens = result.home_pool == 1
    pure = result.prompt_busy_s[tokens].sum() + result.mixed_busy_s[tokens].sum() == 0
    assert pure
    assert in_decode_s == pytest.approx((result.occupancy_s[tokens] @ bins).sum(), rel=1e-6)
    assert result.tokens_out.sum() == 20_000 * 30
    assert result.prompt_tokens_done.sum() == 20_000 * 300
    assert result.occupancy_s.sum(axis=1) == pytest.approx(result.busy_s)


def test_memory_bounds_hold_and_nothing_is_stuck() -> None:
    result = simulate(poisson(1.5, 3_000, 300, 60), split(2, 2, kv_capacity_tokens=1500))
    assert (result.status == Status.FINISHED).all()
    assert (result.peak_kv_tokens <= 1500).all()


def test_impossible_clusters_are_refused() -> None:
    with pytest.raises(ValueError, match="no token machine"):
        simulate(load((0.0, 1, 1)), split()[:1])
    with pytest.raises(ValueError, match="no machines"):
        simulate(load((0.0, 1, 1)), [])
    with pytest.raises(ValueError, match="toy has count -1"):
        simulate(load((0.0, 1, 1)), mixed(-1))
    with pytest.raises(ValueError, match="batch_tokens is 0"):
        Options(batch_tokens=0)


def test_caches_that_arrive_in_one_instant_are_taken_by_age() -> None:
    """Five machines end five equal prompts at once, and one machine makes tokens, one by one."""
    rows = load(*[(0.0, 100, 3)] * 5)
    rules = Options(batch_requests=1, share_links=False, change_roles=False)
    result = simulate(rows, split(prompt=5), rules)
    assert result.prompt_machine.tolist() == [0, 1, 2, 3, 4]
    assert result.finish_s == pytest.approx([0.4, 0.6, 0.8, 1.0, 1.2])


def test_a_busy_machine_keeps_its_turn_for_room_until_room_comes_free() -> None:
    """The token machine has 1700 tokens of cache: 130, 130 and 1060 are promised to the first
    three requests. Of 510 each, machine 0's next prompt waits for room from 0.1 s on, while it
    computes the third request, and machine 1's from 0.11 s on. The second request's cache arrives
    at 0.31 s and ends an iteration early, but frees nothing. The second is the first that ends,
    and what it frees is enough for one, so machine 0's goes."""
    rows = load(
        (0.0, 100, 30), (0.0, 110, 20), (0.01, 1000, 60), (0.02, 500, 10), (0.025, 600, 2),
        (0.03, 500, 10),
    )  # fmt: skip
    cluster = split(prompt=2, kv_capacity_tokens=1700)
    result = simulate(rows, cluster, Options(change_roles=False))
    assert result.prompt_machine.tolist() == [0, 1, 0, 1, 1, 0]
    assert result.prompt_start_s[5] == pytest.approx(result.finish_s[1])
    assert result.prompt_start_s[3] > result.finish_s[0]
