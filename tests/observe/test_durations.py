"""A histogram of durations shows what the library's own would."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from splitwise.observe.durations import Durations

BOUNDS_S = (0.001, 0.5, 1.0, 20.0)
NAME, TEXT = "splitwise:waited_seconds", "How long."
seconds = st.one_of(st.sampled_from([0.0, *BOUNDS_S, 1000.0]), st.floats(0, 100))


def samples(registry: CollectorRegistry) -> list[tuple[str, dict[str, str], float]]:
    """As a server reads them, but for when the series began."""
    families = text_string_to_metric_families(generate_latest(registry).decode())
    return [
        (sample.name, sample.labels, 0.0 if family.name.endswith("_created") else sample.value)
        for family in families
        for sample in family.samples
    ]


@given(st.lists(st.tuples(seconds, st.integers(1, 3)), max_size=30))
def test_shows_what_the_library_shows(observed: list[tuple[float, int]]) -> None:
    own, librarys = CollectorRegistry(), CollectorRegistry()
    durations = Durations(NAME, TEXT, BOUNDS_S, "m", own)
    family = Histogram(NAME, TEXT, ["model_name"], registry=librarys, buckets=BOUNDS_S)
    reference = family.labels("m")
    for duration_s, times in observed:
        durations.observe(duration_s, times)
        for _ in range(times):
            reference.observe(duration_s)
    for got, wanted in zip(samples(own), samples(librarys), strict=True):
        assert got[:2] == wanted[:2]
        assert abs(got[2] - wanted[2]) <= 1e-9 * abs(wanted[2])
