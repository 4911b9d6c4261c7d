"""The automaton = the plain definition, however the text is cut."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from text_samples import calm

from gguf_engine.text.stops import StopMatcher

letters = st.text(alphabet="ab", max_size=12)
stop_lists = st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4)


def _plainly(stops: list[str], text: str) -> tuple[str, str | None]:
    """The smallest end first, the longest stop among those: read off every end position in turn."""
    for end in range(1, len(text) + 1):
        here = [stop for stop in stops if text[:end].endswith(stop)]
        if here:
            longest = max(here, key=len)
            return text[: end - len(longest)], longest
    return text, None


def _held(stops: list[str], text: str) -> str:
    """The longest suffix that begins a stop, without being one."""
    suffixes = (text[cut:] for cut in range(len(text) + 1))
    return next(suffix for suffix in suffixes if any(stop.startswith(suffix) for stop in [*stops, ""]))


@calm
@given(stop_lists, st.lists(letters, max_size=6))
def test_any_cut_gives_what_the_definition_gives(stops: list[str], cuts: list[str]) -> None:
    matcher = StopMatcher(stops)
    given_out = "".join([matcher.push(cut) for cut in cuts] + [matcher.flush()])
    assert (given_out, matcher.matched) == _plainly(stops, "".join(cuts))


@calm
@given(stop_lists, st.lists(letters, max_size=6))
def test_exactly_the_longest_beginning_of_a_stop_is_held_back(stops: list[str], cuts: list[str]) -> None:
    matcher, given_out, so_far = StopMatcher(stops), "", ""
    for cut in cuts:
        given_out += matcher.push(cut)
        so_far += cut
        if matcher.matched is not None:
            return
        assert given_out + _held(stops, so_far) == so_far


@calm
@given(st.lists(st.text(min_size=1, max_size=3), max_size=3), st.text(), st.integers(0, 50))
def test_any_text_gives_the_same_in_one_piece_and_in_two(stops: list[str], text: str, cut: int) -> None:
    whole, halves = StopMatcher(stops), StopMatcher(stops)
    in_one = whole.push(text) + whole.flush()
    in_two = halves.push(text[:cut]) + halves.push(text[cut:]) + halves.flush()
    assert (in_one, whole.matched) == (in_two, halves.matched)
