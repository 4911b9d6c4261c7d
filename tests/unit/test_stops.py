from __future__ import annotations

import pytest

from gguf_engine.text.stops import StopMatcher


def _run(stops: list[str], *texts: str) -> tuple[str, str | None]:
    matcher = StopMatcher(stops)
    given = "".join(matcher.push(text) for text in texts)
    return given + matcher.flush(), matcher.matched


def test_text_before_a_stop_is_given_and_the_stop_is_not() -> None:
    assert _run(["END"], "one END two") == ("one ", "END")


def test_a_stop_cut_into_pieces_is_found() -> None:
    assert _run(["<|end|>"], "hi <", "|e", "nd|", "> more") == ("hi ", "<|end|>")


def test_only_what_may_begin_a_stop_is_held_back() -> None:
    matcher = StopMatcher(["abcd"])
    assert matcher.push("xxab") == "xx"
    assert matcher.push("c") == ""
    assert matcher.push("abx") == "abcabx"
    assert matcher.flush() == ""


def test_held_text_comes_out_at_the_end() -> None:
    matcher = StopMatcher(["\n\n"])
    assert matcher.push("line\n") == "line"
    assert matcher.flush() == "\n"
    assert matcher.flush() == ""


def test_nothing_comes_after_a_match() -> None:
    matcher = StopMatcher(["x"])
    assert matcher.push("axb") == "a"
    assert (matcher.push("c"), matcher.flush(), matcher.matched) == ("", "", "x")


def test_the_stop_that_ends_first_wins() -> None:
    assert _run(["abcd", "bc"], "abcd") == ("a", "bc")


def test_the_longest_of_those_that_end_together_wins() -> None:
    assert _run(["c", "bc", "abc"], "zabc") == ("z", "abc")


def test_a_failed_beginning_may_hold_the_beginning_of_another() -> None:
    # Read by hand: "aab" fails at its third character, and "aa" still begins "aab".
    assert _run(["aab"], "a", "a", "a", "b") == ("a", "aab")
    assert _run(["abax", "bay"], "abay") == ("a", "bay")


def test_no_stops_let_everything_pass() -> None:
    assert _run([], "any", "thing") == ("anything", None)


@pytest.mark.parametrize("stop", ["é", "🏒🏒", "e\u0301"])
def test_stops_are_matched_by_character(stop: str) -> None:
    assert _run([stop], f"x{stop}y") == ("x", stop)
