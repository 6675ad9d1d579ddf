"""Percentiles, slowdowns, SLOs and sums against arithmetic by hand."""

import io
import json
from dataclasses import replace

import numpy as np
import pytest
from rich.console import Console
from synthetic_results import NAN, Alone, four_requests, random_result

from splitwise.simulation.report_terminal import print_summary
from splitwise.simulation.result import Reason, Status
from splitwise.simulation.slowdown import (
    PAPER_SLOS,
    Slo,
    SummaryError,
    experience,
    percentile,
)
from splitwise.simulation.summary import distribution, summarise


def test_slowdowns_by_hand() -> None:
    found = experience(four_requests(), Alone())
    np.testing.assert_allclose(found.ttft, [1, 2, 3, 4])
    np.testing.assert_allclose(found.tbt, [1, 2, 3, NAN])
    # Alone: 100 ms + 10 * 10.1 ms; one token: 100 ms.
    np.testing.assert_allclose(found.e2e, [1, 2, 3, 4])


def test_latencies_by_hand() -> None:
    latencies = summarise(four_requests(), Alone()).latencies
    assert latencies.ttft_s.p50 == pytest.approx(0.25)
    assert latencies.ttft_s.mean == pytest.approx(0.25)
    assert latencies.ttft_s.p90 == pytest.approx(0.1 + 0.3 * 0.9)
    assert latencies.ttft_s.p99 == pytest.approx(0.1 + 0.3 * 0.99)
    assert latencies.tbt_s.count == 3
    assert latencies.tbt_s.p50 == pytest.approx(0.0202)
    assert latencies.queue_s.max == pytest.approx(0.3)
    assert latencies.transfer_s.p50 == pytest.approx(0.05)
    assert latencies.visible_transfer_s.max == pytest.approx(0)


def test_the_nine_slos_of_the_paper_by_hand() -> None:
    summary = summarise(four_requests(), Alone())
    verdicts = {(one.metric, one.percentile): one.is_met for one in summary.slos}
    # TTFT slowdowns 1 to 4: P50 2.5 > 2, P90 3.7 > 3, P99 3.97 <= 6.
    # TBT slowdowns 1 to 3: P50 2 > 1.25, P90 2.8 > 1.5, P99 2.98 <= 5. E2E: 1 to 4 again.
    assert verdicts == {
        **{("ttft", 50): False, ("ttft", 90): False, ("ttft", 99): True},
        **{("tbt", 50): False, ("tbt", 90): False, ("tbt", 99): True},
        **{("e2e", 50): False, ("e2e", 90): False, ("e2e", 99): True},
    }
    assert not summary.meets_slos
    assert summary.slos[0].value == pytest.approx(2.5)
    assert len(PAPER_SLOS) == 9


def test_a_limit_that_is_just_reached_is_met() -> None:
    value = percentile(experience(four_requests(), Alone()).ttft, 50)
    assert summarise(four_requests(), Alone(), [Slo("ttft", 50, value)]).meets_slos
    assert not summarise(four_requests(), Alone(), [Slo("ttft", 50, value * 0.999)]).meets_slos


def test_a_rejected_request_counts_as_infinitely_slow() -> None:
    result = four_requests()
    for times_s in (result.first_token_s, result.finish_s):
        times_s[1] = NAN
    result.status[1], result.reason[1] = Status.REJECTED, Reason.NO_MACHINE
    result.status[2] = Status.RUNNING
    summary = summarise(result, Alone())
    assert summary.slowdowns.ttft.count == 4
    assert summary.slowdowns.ttft.p99 == float("inf")
    assert summary.slowdowns.ttft.p50 == pytest.approx(3.5)
    assert summary.latencies.ttft_s.count == 3
    counts = summary.counts
    assert (counts.arrived, counts.finished, counts.running) == (4, 2, 1)
    assert (counts.rejected_too_large, counts.rejected_no_machine) == (0, 1)
    assert json.dumps(summary.to_dict(), allow_nan=False)


def test_slos_on_what_nobody_asked_for_are_met() -> None:
    result = replace(four_requests(), output_tokens=np.ones(4, dtype=np.int64))
    summary = summarise(result, Alone(), [Slo("tbt", 50, 1.25)])
    assert summary.meets_slos
    assert summary.to_dict()["slos"][0]["value"] is None


def test_percentiles_of_none_and_of_infinities() -> None:
    assert np.isnan(percentile(np.array([]), 50))
    assert percentile(np.array([1.0, np.inf, np.inf]), 75) == np.inf
    assert percentile(np.array([1.0, 2.0, np.inf]), 50) == 2.0
    assert distribution(np.array([NAN])).count == 0


def test_percentiles_are_those_of_numpy() -> None:
    result = random_result()
    found = summarise(result, Alone()).latencies.e2e_s
    expected = np.nanpercentile(result.e2e_s, [50, 90, 99])
    np.testing.assert_allclose([found.p50, found.p90, found.p99], expected)


def test_throughput_and_machines_by_hand() -> None:
    result = four_requests()
    summary = summarise(result, Alone())
    end_s = 3.4
    assert summary.end_s == pytest.approx(end_s)
    # By the last arrival at 3 s, three requests have finished and had their first token.
    assert summary.throughput.offered_requests_per_s == pytest.approx(4 / 3)
    assert summary.throughput.requests_per_s == pytest.approx(3 / 3)
    assert summary.throughput.prompt_tokens_per_s == pytest.approx(300 / 3)
    assert summary.throughput.output_tokens_per_s == pytest.approx(33 / 3)
    assert summary.energy_joules == pytest.approx(1000 * end_s)
    prompt, token, mixed = summary.groups
    assert (prompt.pool, prompt.kind, prompt.machines) == ("prompt", "h100", 2)
    assert (token.pool, mixed.pool) == ("token", "mixed")
    assert prompt.mean_watts == pytest.approx(150)
    assert prompt.busy_share == pytest.approx(result.busy_s[:2].sum() / (2 * end_s))
    shares = prompt.prompt_share + prompt.decode_share + prompt.mixed_share
    assert prompt.busy_share == pytest.approx(shares)
    assert prompt.peak_kv_share == pytest.approx(0.1)


def test_throughput_of_a_load_that_arrives_at_once_is_up_to_the_end() -> None:
    result = replace(four_requests(), arrival_s=np.zeros(4))
    assert summarise(result, Alone()).throughput.requests_per_s == pytest.approx(4 / 3.4)


def test_warmup_leaves_early_requests_out() -> None:
    summary = summarise(four_requests(), Alone(), warmup_s=2.0)
    assert summary.counts.arrived == 2
    assert summary.slowdowns.ttft.p50 == pytest.approx(3.5)
    assert summary.throughput.offered_requests_per_s == pytest.approx(2 / 1)
    assert summary.throughput.requests_per_s == pytest.approx(1 / 1)
    with pytest.raises(SummaryError, match=r"warmup_s is 99.*use less"):
        summarise(four_requests(), Alone(), warmup_s=99.0)


def test_a_reference_without_times_is_refused() -> None:
    result = replace(four_requests(), prompt_tokens=np.zeros(4, dtype=np.int64))
    with pytest.raises(SummaryError, match="prompt_time_s gave 0"):
        summarise(result, Alone())


def test_summary_prints() -> None:
    text = io.StringIO()
    print_summary(summarise(random_result(), Alone()), Console(file=text, width=120))
    printed = text.getvalue()
    assert "200 requests: 199 finished, 1 rejected (1 too large" in printed
    assert "TTFT P99" in printed and "<a100 & more>" in printed
