"""The exposition, read back with prometheus-client's parser."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from splitwise.observe.metrics import Metrics


def value(metrics: Metrics, sample: str, **labels: str) -> float | None:
    """A sample as a Prometheus server would read it; None if it is not there."""
    wanted = {"model_name": "m"} | labels
    for family in text_string_to_metric_families(metrics.render().decode()):
        for found in family.samples:
            if found.name == f"splitwise:{sample}" and found.labels == wanted:
                return found.value
    return None


def test_a_request() -> None:
    metrics = Metrics("m")
    metrics.admitted(100)
    metrics.queued(0.4)
    metrics.first_token(0.03)
    metrics.tokens(1, 0.02)
    metrics.tokens(4, 0.12)
    metrics.finished("length", 0.9)
    assert value(metrics, "prompt_tokens_total") == 100
    assert value(metrics, "generation_tokens_total") == 6
    assert value(metrics, "time_to_first_token_seconds_sum") == pytest.approx(0.03)
    assert value(metrics, "time_to_first_token_seconds_bucket", le="0.02") == 0
    assert value(metrics, "time_to_first_token_seconds_bucket", le="0.04") == 1
    # One gap of 20 ms, four of 30 ms.
    assert value(metrics, "inter_token_latency_seconds_count") == 5
    assert value(metrics, "inter_token_latency_seconds_sum") == pytest.approx(0.14)
    assert value(metrics, "inter_token_latency_seconds_bucket", le="0.025") == 1
    assert value(metrics, "inter_token_latency_seconds_bucket", le="0.05") == 5
    assert value(metrics, "e2e_request_latency_seconds_bucket", le="1.0") == 1
    assert value(metrics, "request_queue_time_seconds_sum") == pytest.approx(0.4)
    assert value(metrics, "request_success_total", finished_reason="length") == 1
    assert value(metrics, "request_success_total", finished_reason="stop") == 0


def test_what_did_not_finish_has_no_latency() -> None:
    metrics = Metrics("m")
    metrics.finished("abort", 9.0)
    metrics.finished("error", 9.0)
    assert value(metrics, "e2e_request_latency_seconds_count") == 0
    assert value(metrics, "request_success_total", finished_reason="abort") == 1
    with pytest.raises(KeyError):
        metrics.finished("bored", 9.0)


def test_transfers() -> None:
    metrics = Metrics("m")
    metrics.transfer(1000, 950, 0.002, "tcp")
    metrics.transfer(500, 100, 0.004, "shm")
    metrics.transfer_failed()
    metrics.preempted()
    assert value(metrics, "kv_transfer_bytes_total", transport="tcp") == 1000
    assert value(metrics, "kv_transfer_bytes_total", transport="shm") == 500
    assert value(metrics, "kv_transfer_early_bytes_total") == 1050
    assert value(metrics, "kv_transfer_visible_seconds_count") == 2
    assert value(metrics, "kv_transfer_visible_seconds_sum") == pytest.approx(0.006)
    assert value(metrics, "kv_transfer_failures_total") == 1
    assert value(metrics, "num_preemptions_total") == 1


def test_machines_come_and_go() -> None:
    metrics = Metrics("m")
    metrics.machine("token-0", 0.25, 3, 2)
    metrics.machine("token-1", 0.5, 1, 0)
    assert value(metrics, "kv_cache_usage_perc", machine="token-0") == 0.25
    assert value(metrics, "num_requests_running", machine="token-0") == 3
    assert value(metrics, "num_requests_waiting", machine="token-0") == 2
    metrics.machine("token-0", 0.75, 4, 0)
    assert value(metrics, "kv_cache_usage_perc", machine="token-0") == 0.75
    metrics.machine_gone("token-0")
    assert value(metrics, "kv_cache_usage_perc", machine="token-0") is None
    assert value(metrics, "num_requests_running", machine="token-1") == 1
    metrics.machine_gone("never-was")


def test_what_machines_have_counted_themselves() -> None:
    metrics = Metrics("m")
    metrics.machine("vllm-0", 0.5, 1, 0)
    metrics.machine_totals("vllm-0", 100, 40, 0)
    metrics.machine_totals("vllm-0", 100, 40, 0)
    metrics.machine_totals("vllm-0", 250, 90, 2)
    metrics.machine_totals("vllm-1", 7, 7, 0)
    assert value(metrics, "prefix_cache_queries_total", machine="vllm-0") == 250
    assert value(metrics, "prefix_cache_hits_total", machine="vllm-0") == 90
    assert value(metrics, "machine_preemptions_total", machine="vllm-0") == 2
    assert value(metrics, "prefix_cache_hits_total", machine="vllm-1") == 7
    # Its process was started again before the loss of the old one was noticed.
    metrics.machine_totals("vllm-0", 30, 10, 1)
    assert value(metrics, "prefix_cache_queries_total", machine="vllm-0") == 280
    metrics.machine_gone("vllm-0")
    assert value(metrics, "prefix_cache_queries_total", machine="vllm-0") is None
    metrics.machine_totals("vllm-0", 12, 3, 0)
    assert value(metrics, "prefix_cache_queries_total", machine="vllm-0") == 12


def test_what_waits_and_what_is_refused() -> None:
    metrics = Metrics("m")
    for priority in ("high", "default", "low"):
        assert value(metrics, "num_requests_queued", priority=priority) == 0
    metrics.waiting([0, -(2**63), 5, 0, 7, 2**63 - 1, 0, 0])
    assert value(metrics, "num_requests_queued", priority="high") == 1
    assert value(metrics, "num_requests_queued", priority="default") == 4
    assert value(metrics, "num_requests_queued", priority="low") == 3
    metrics.waiting([])
    assert value(metrics, "num_requests_queued", priority="low") == 0
    metrics.refused(displaced=False)
    metrics.refused(displaced=True)
    metrics.refused(displaced=True)
    assert value(metrics, "requests_refused_total", reason="full") == 1
    assert value(metrics, "requests_refused_total", reason="displaced") == 2


def test_pools() -> None:
    metrics = Metrics("m")
    assert value(metrics, "machines", pool="mixed") == 0
    assert value(metrics, "role_changes_total", pool="mixed") == 0
    metrics.pool("a", "prompt")
    metrics.pool("b", "token")
    metrics.role_changed("b", "mixed")
    assert value(metrics, "machines", pool="prompt") == 1
    assert value(metrics, "machines", pool="token") == 0
    assert value(metrics, "machines", pool="mixed") == 1
    assert value(metrics, "role_changes_total", pool="mixed") == 1
    assert value(metrics, "machine_pool", machine="b", pool="mixed") == 1
    assert value(metrics, "machine_pool", machine="b", pool="token") is None
    metrics.pool("b", None)
    metrics.pool("never-was", None)
    assert value(metrics, "machines", pool="mixed") == 0
    assert value(metrics, "machine_pool", machine="b", pool="mixed") is None
    assert value(metrics, "role_changes_total", pool="mixed") == 1


def test_two_clusters_in_a_process_do_not_meet() -> None:
    one, two = Metrics("m"), Metrics("m")
    one.admitted(5)
    assert value(two, "prompt_tokens_total") == 0
