"""Stop strings against a search by hand, with and without special tokens."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitwise.gateway.text.stops import SpecialTexts, StopFinder, StopStrings

SPECIAL = {"<end>": 7, "<end>x": 8, "<t>": 9}
"""One begins like another."""
HIDDEN = SpecialTexts(SPECIAL)


def finder_of(
    stops: list[str], include: bool = False, hidden: SpecialTexts | None = None
) -> StopFinder:
    return StopFinder(StopStrings(stops, include, hidden))


def first_complete(text: str, stops: list[str]) -> tuple[int, int] | None:
    """By trying every prefix: the first whose end is a stop string; the longest such."""
    for end in range(len(text) + 1):
        starts = [end - len(stop) for stop in stops if text[:end].endswith(stop)]
        if starts:
            return min(starts), end
    return None


@given(
    st.lists(st.text("abc", max_size=4), max_size=12),
    st.lists(st.text("abc", min_size=1, max_size=5), min_size=1, max_size=4),
    st.booleans(),
)
@settings(max_examples=1000, deadline=None)
def test_stop_strings_are_found_however_the_text_is_cut(
    parts: list[str], stops: list[str], include: bool
) -> None:
    text = "".join(parts)
    finder = finder_of(stops, include)
    shown = ""
    for part in parts:
        shown += finder.push(part)
        assert text.startswith(shown)
        if finder.found is not None:
            break
    else:
        shown += finder.flush()
    match = first_complete(text, stops)
    if match is None:
        assert (shown, finder.found) == (text, None)
    else:
        start, end = match
        assert finder.found == text[start:end]
        assert shown == text[: end if include else start]


@pytest.mark.parametrize(
    ("part", "shown"), [("hello", "hello"), ("hello E", "hello "), ("EN", ""), ("E N", "E N")]
)
def test_only_what_may_become_a_stop_string_is_held(part: str, shown: str) -> None:
    assert finder_of(["END"]).push(part) == shown


def units_of(stop: str) -> list[str]:
    """Characters and whole special tokens, longest first."""
    units: list[str] = []
    while stop:
        special = next((s for s in sorted(SPECIAL, key=len)[::-1] if stop.startswith(s)), stop[0])
        units.append(special)
        stop = stop[len(special) :]
    return units


def ends_at(units: list[str], end: int, stop: str, named: set[str]) -> int | None:
    """Where ``stop`` begins if it is complete with unit ``end - 1`` and not before."""
    wanted = units_of(stop)
    there = [i for i in range(end) if units[i] in named or units[i] not in SPECIAL]
    tail = there[-len(wanted) :]
    if SPECIAL.keys() & set(wanted) and [units[i] for i in tail] == wanted and tail[-1] == end - 1:
        return tail[0]
    shown = [i for i in range(end) if units[i] not in SPECIAL]
    if shown and shown[-1] == end - 1 and "".join(units[i] for i in shown).endswith(stop):
        return shown[-len(stop)]
    return None


UNITS = st.sampled_from(["a", "b", "<", *SPECIAL])


@given(
    st.lists(st.lists(UNITS, max_size=3), max_size=10),
    st.lists(st.lists(UNITS, min_size=1, max_size=4).map("".join), min_size=1, max_size=4),
    st.booleans(),
)
@settings(max_examples=1500, deadline=None)
def test_hidden_tokens_are_found_and_never_shown(
    chunks: list[list[str]], stops: list[str], include: bool
) -> None:
    strings = StopStrings(stops, include, HIDDEN)
    finder = StopFinder(strings)
    shown = ""
    for chunk in chunks:
        for unit in chunk:
            text = "" if unit in SPECIAL else unit
            shown += finder.push(text + strings.mark_of.get(SPECIAL.get(unit, -1), ""))
            if finder.found is not None:
                break
        if finder.found is not None:
            break
    else:
        shown += finder.flush()
    units = [unit for chunk in chunks for unit in chunk]
    named = {unit for stop in stops for unit in units_of(stop) if unit in SPECIAL}
    matches = [
        (end, start, stop)
        for end in range(1, len(units) + 1)
        for stop in stops
        if (start := ends_at(units, end, stop, named)) is not None
    ]
    if not matches:
        assert finder.found is None
        assert shown == "".join(unit for unit in units if unit not in SPECIAL)
        return
    _, start, _ = min(matches)
    before = "".join(unit for unit in units[:start] if unit not in SPECIAL)
    assert finder.found is not None
    assert shown == before + (finder.found if include else "")
    assert finder.found in [s for end, at, s in matches if (end, at) == min(matches)[:2]]


def test_text_that_may_become_a_stop_with_a_special_token_is_held() -> None:
    strings = StopStrings(["bye<end>"], hidden=HIDDEN)
    finder = StopFinder(strings)
    assert finder.push("good bye") == "good "
    assert finder.push(strings.mark_of[7]) == ""
    assert finder.found == "bye<end>"


def test_a_special_token_that_no_stop_names_has_no_mark() -> None:
    assert list(StopStrings(["<t>", "x"], hidden=HIDDEN).mark_of) == [9]
    assert StopStrings(["end"], hidden=HIDDEN).mark_of == {}
    assert StopStrings(["<end>"]).mark_of == {}


def test_a_text_is_cut_at_the_longest_special_tokens() -> None:
    pieces = list(HIDDEN.pieces("<<end>xx<t>"))
    assert pieces == [("<", None), ("<end>x", 8), ("x", None), ("<t>", 9)]
