"""What Prometheus sees of the cluster. Others hand in facts; nothing here asks for any.

Names, meanings and buckets follow vLLM's where the meaning is the same, with the prefix
``splitwise:``, so that existing dashboards need only the prefix changed. Every series carries
``model_name``. Children with labels are looked up once, not for every token.
"""

from collections.abc import Sequence
from functools import cache, partial
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4

from splitwise.observe.durations import Durations
from splitwise.observe.running_totals import RunningTotals

CONTENT_TYPE: Final = CONTENT_TYPE_PLAIN_0_0_4
FINISHED_REASONS: Final = ("stop", "length", "abort", "error")
"""``abort`` is a client that went away, ``error`` a request that the cluster gave up."""
POOLS: Final = ("prompt", "token", "mixed")
PRIORITIES: Final = ("high", "default", "low")
"""Below, at and above 0: clients choose the number, and each label would be a series."""
REFUSALS: Final = ("full", "displaced")
"""``full`` on arrival; ``displaced`` by one of a client with fewer that wait."""

_PREFIX: Final = "splitwise:"
_FIRST_TOKEN_BUCKETS_S: Final = (
    *(0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0),
)
_TOKEN_GAP_BUCKETS_S: Final = (
    *(0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0),
    *(2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0),
)
_REQUEST_BUCKETS_S: Final = (
    *(0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0),
    *(120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0),
)
_TRANSFER_BUCKETS_S: Final = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0),
)


class Metrics:
    """All series of one cluster, in a registry of their own."""

    def __init__(self, model_name: str) -> None:
        self._registry = CollectorRegistry()
        self._model_name = model_name
        self._first_token = self._durations(
            "time_to_first_token_seconds",
            "Time from a request's arrival to its first token.",
            _FIRST_TOKEN_BUCKETS_S,
        )
        self._token_gap = self._durations(
            "inter_token_latency_seconds",
            "Time between two tokens of a request.",
            _TOKEN_GAP_BUCKETS_S,
        )
        self._e2e = self._durations(
            "e2e_request_latency_seconds",
            "Time from a request's arrival to its last token.",
            _REQUEST_BUCKETS_S,
        )
        self._queue = self._durations(
            "request_queue_time_seconds",
            "Time a request waited before its prompt began to run.",
            _REQUEST_BUCKETS_S,
        )
        self._transfer_visible = self._durations(
            "kv_transfer_visible_seconds",
            "Time from the end of a prompt's computation until its whole cache had arrived.",
            _TRANSFER_BUCKETS_S,
        )
        counter = self._counter
        self._prompt_tokens = counter("prompt_tokens", "Prompt tokens of admitted requests.")
        self._generation_tokens = counter("generation_tokens", "Tokens generated.")
        self._preemptions = counter(
            "num_preemptions", "Requests that lost their cache to make room and ran again."
        )
        self._early_bytes = counter(
            "kv_transfer_early_bytes",
            "Bytes of keys and values that had arrived before their prompt ended.",
        )
        self._transfer_failures = counter(
            "kv_transfer_failures", "Transfers of keys and values that failed."
        )
        success = Counter(
            _PREFIX + "request_success",
            "Requests that ended, by reason.",
            ["model_name", "finished_reason"],
            registry=self._registry,
        )
        # All of them from the start: a rate needs a series that was there before.
        self._success = {reason: success.labels(model_name, reason) for reason in FINISHED_REASONS}
        transfer_bytes = Counter(
            _PREFIX + "kv_transfer_bytes",
            "Bytes of keys and values moved.",
            ["model_name", "transport"],
            registry=self._registry,
        )
        self._transfer_bytes_over = cache(partial(transfer_bytes.labels, model_name))
        self._role_changes = Counter(
            _PREFIX + "role_changes",
            "Machines that moved to a pool: pulled there, back home, or to a new home.",
            ["model_name", "pool"],
            registry=self._registry,
        )
        refusals = Counter(
            _PREFIX + "requests_refused",
            "Requests refused because too many waited.",
            ["model_name", "reason"],
            registry=self._registry,
        )
        self._refusals = {reason: refusals.labels(model_name, reason) for reason in REFUSALS}
        queued = Gauge(
            _PREFIX + "num_requests_queued",
            "Requests that wait for a machine to have room, by priority.",
            ["model_name", "priority"],
            registry=self._registry,
        )
        self._queued = {priority: queued.labels(model_name, priority) for priority in PRIORITIES}
        self._machines = Gauge(
            _PREFIX + "machines",
            "Connected machines that stand in a pool.",
            ["model_name", "pool"],
            registry=self._registry,
        )
        for pool in POOLS:
            self._role_changes.labels(model_name, pool)
            self._machines.labels(model_name, pool)
        self._machine_pool = Gauge(
            _PREFIX + "machine_pool",
            "1 for the pool that a machine stands in.",
            ["model_name", "machine", "pool"],
            registry=self._registry,
        )
        self._quarantined = Gauge(
            _PREFIX + "machines_quarantined",
            "1 for a machine that gets no requests for a while because they failed there.",
            ["model_name", "machine"],
            registry=self._registry,
        )
        self._pool_of: dict[str, str] = {}
        self._running = self._machine_gauge(
            "num_requests_running", "Requests in a machine's batch."
        )
        self._waiting = self._machine_gauge(
            "num_requests_waiting", "Requests that wait on a machine."
        )
        self._cache_usage = self._machine_gauge(
            "kv_cache_usage_perc", "Share of a machine's cache blocks in use, 0 to 1."
        )
        self._prefix_queries = self._machine_total(
            "prefix_cache_queries", "Prompt tokens looked up in a machine's prefix cache."
        )
        self._prefix_hits = self._machine_total(
            "prefix_cache_hits", "Prompt tokens found in a machine's prefix cache."
        )
        self._machine_preemptions = self._machine_total(
            "machine_preemptions", "Requests that a machine's engine put off and ran again."
        )

    # A request, as the gateway sees it.

    def admitted(self, prompt_tokens: int) -> None:
        """The cluster took a request."""
        self._prompt_tokens.inc(prompt_tokens)

    def first_token(self, ttft_s: float, count: int = 1) -> None:
        """A request's first ``count`` tokens came, ``ttft_s`` after its arrival."""
        self._first_token.observe(ttft_s)
        self._generation_tokens.inc(count)

    def tokens(self, count: int, gap_s: float) -> None:
        """``count`` tokens came together, ``gap_s`` after the one before: an equal share each."""
        self._generation_tokens.inc(count)
        self._token_gap.observe(gap_s / count, count)

    def finished(self, reason: str, e2e_s: float) -> None:
        """A request ended; ``reason`` is one of ``FINISHED_REASONS``."""
        self._success[reason].inc()
        if reason in ("stop", "length"):
            self._e2e.observe(e2e_s)

    # The cluster behind it.

    def queued(self, queue_s: float) -> None:
        """A request's prompt began to run after waiting ``queue_s``."""
        self._queue.observe(queue_s)

    def preempted(self) -> None:
        """A request lost its cache to make room for another."""
        self._preemptions.inc()

    def waiting(self, priorities: Sequence[int]) -> None:
        """The priorities of all requests that wait for a machine to have room."""
        high = sum(priority < 0 for priority in priorities)
        low = sum(priority > 0 for priority in priorities)
        self._queued["high"].set(high)
        self._queued["default"].set(len(priorities) - high - low)
        self._queued["low"].set(low)

    def refused(self, displaced: bool) -> None:
        """A request was refused: a new one, or one that was ``displaced`` by it."""
        self._refusals["displaced" if displaced else "full"].inc()

    def transfer(self, bytes_: int, early_bytes: int, visible_s: float, transport: str) -> None:
        """A cache arrived; ``early_bytes`` of it before its prompt ended."""
        self._transfer_bytes_over(transport).inc(bytes_)
        self._early_bytes.inc(early_bytes)
        self._transfer_visible.observe(visible_s)

    def transfer_failed(self) -> None:
        """A cache did not arrive."""
        self._transfer_failures.inc()

    def machine(self, name: str, usage: float, running: int, waiting: int) -> None:
        """A machine's state; ``usage`` is the share of its cache blocks in use, 0 to 1."""
        self._cache_usage.labels(self._model_name, name).set(usage)
        self._running.labels(self._model_name, name).set(running)
        self._waiting.labels(self._model_name, name).set(waiting)

    def machine_totals(
        self, name: str, prefix_queries_tokens: int, prefix_hits_tokens: int, preemptions: int
    ) -> None:
        """What a machine's engine has counted since its process began."""
        self._prefix_queries.tell(name, prefix_queries_tokens)
        self._prefix_hits.tell(name, prefix_hits_tokens)
        self._machine_preemptions.tell(name, preemptions)

    def machine_gone(self, name: str) -> None:
        """A machine left: its last state must not go on being shown."""
        for family in (self._cache_usage, self._running, self._waiting):
            family.remove(self._model_name, name)
        for totals in (self._prefix_queries, self._prefix_hits, self._machine_preemptions):
            totals.gone(name)

    def pool(self, name: str, pool: str | None) -> None:
        """A machine stands in ``pool`` (one of ``POOLS``) now; in none, None, once it left."""
        was = self._pool_of.pop(name, None)
        if was is not None:
            self._machine_pool.remove(self._model_name, name, was)
            self._machines.labels(self._model_name, was).dec()
        if pool is not None:
            self._pool_of[name] = pool
            self._machine_pool.labels(self._model_name, name, pool).set(1)
            self._machines.labels(self._model_name, pool).inc()

    def quarantined(self, name: str, is_kept_out: bool) -> None:
        """A machine gets no requests for a while, or gets them again, or is gone."""
        if is_kept_out:
            self._quarantined.labels(self._model_name, name).set(1)
        else:
            self._quarantined.remove(self._model_name, name)

    def role_changed(self, name: str, pool: str) -> None:
        """A machine moved to ``pool`` while it is connected."""
        self._role_changes.labels(self._model_name, pool).inc()
        self.pool(name, pool)

    def render(self) -> bytes:
        """Everything in Prometheus' text format (``CONTENT_TYPE``)."""
        return generate_latest(self._registry)

    def _durations(self, name: str, text: str, bounds_s: Sequence[float]) -> Durations:
        return Durations(_PREFIX + name, text, bounds_s, self._model_name, self._registry)

    def _counter(self, name: str, text: str) -> Counter:
        family = Counter(_PREFIX + name, text, ["model_name"], registry=self._registry)
        return family.labels(self._model_name)

    def _machine_total(self, name: str, text: str) -> RunningTotals:
        family = Counter(_PREFIX + name, text, ["model_name", "machine"], registry=self._registry)
        return RunningTotals(family, self._model_name)

    def _machine_gauge(self, name: str, text: str) -> Gauge:
        return Gauge(_PREFIX + name, text, ["model_name", "machine"], registry=self._registry)
