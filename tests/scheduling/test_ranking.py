"""The winner tree against a plain search for the minimum."""

from hypothesis import given
from hypothesis import strategies as st

from splitwise.scheduling.ranking import NOBODY, OUT, first, new_ranking, set_key

changes = st.lists(
    st.tuples(st.integers(0, 8), st.one_of(st.integers(0, 5), st.just(OUT))), max_size=60
)


@given(st.integers(9, 20), changes)
def test_first_is_the_least_and_the_lowest_of_equals(
    machines: int, moves: list[tuple[int, float]]
) -> None:
    ranking = new_ranking(3, machines)
    keys = [OUT] * machines
    for machine, key in moves:
        set_key(ranking, 1, machine, key)
        keys[machine] = key
        least = min(keys)
        assert first(ranking, 1) == (NOBODY if least == OUT else keys.index(least))
