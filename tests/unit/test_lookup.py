"""PromptLookup guesses what followed the last ids before, and knows how often that was right."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceABC
from itertools import pairwise
from typing import Any

import pytest

from gguf_engine.engine import lookup
from gguf_engine.engine.lookup import PromptLookup


class Ids:
    """As much of a Sequence as a lookup reads."""

    def __init__(self, prompt_ids: SequenceABC[int], token_ids: SequenceABC[int] = ()) -> None:
        self.prompt_ids, self.token_ids = array("i", prompt_ids), array("i", token_ids)

    @property
    def n_ids(self) -> int:
        return len(self.prompt_ids) + len(self.token_ids)

    def ids(self, start: int, stop: int) -> array[int]:
        return (self.prompt_ids + self.token_ids)[start:stop]


def guesses(source: PromptLookup, ids: Any, k: int) -> list[int]:
    if not source.chances(ids, k):
        return []
    return source.propose([(ids, k)])[0]


def test_the_continuation_of_the_newest_occurrence_is_guessed() -> None:
    ids = Ids([1, 2, 3, 4, 50, 9, 1, 2, 3, 4, 60, 61, 62, 9, 9, 1, 2, 3, 4])
    assert guesses(PromptLookup(), ids, 3) == [60, 61, 62]


def test_a_run_of_four_says_more_than_its_last_id() -> None:
    ids = Ids([1, 2, 3, 4, 50, 51, 4, 70, 71, 1, 2, 3, 4])
    assert guesses(PromptLookup(), ids, 2) == [50, 51]


def test_one_id_is_enough_to_find_the_way_back() -> None:
    assert guesses(PromptLookup(), Ids([1, 2, 3, 4, 5, 6, 77, 78, 4]), 2) == [5, 6]


def test_nothing_is_guessed_where_nothing_repeats() -> None:
    assert guesses(PromptLookup(), Ids(range(100)), 5) == []
    assert guesses(PromptLookup(), Ids([7]), 5) == []


def test_what_repeats_itself_goes_on_repeating() -> None:
    assert guesses(PromptLookup(), Ids([9, 1, 2, 3, 1, 2, 3, 1, 2, 3]), 7) == [1, 2, 3, 1, 2, 3, 1]


def test_a_copy_is_followed_as_long_as_it_agrees_and_found_again_after_a_change() -> None:
    source, prompt = PromptLookup(), list(range(100, 140))
    ids = Ids([*prompt, 1, 100])
    assert guesses(source, ids, 3) == [101, 102, 103]
    ids.token_ids.extend([101, 102, 103])
    assert guesses(source, ids, 3) == [104, 105, 106]
    ids.token_ids.append(7)  # the word that was changed
    assert guesses(source, ids, 3) == []
    ids.token_ids.append(105)
    assert guesses(source, ids, 3) == [106, 107, 108]


def test_chances_grow_with_agreement_and_shrink_with_failure() -> None:
    source, prompt = PromptLookup(), list(range(100, 200))
    ids = Ids([*prompt, 1, 100])
    first = source.chances(ids, 4)  # type: ignore[arg-type]
    assert all(a > b for a, b in pairwise(first))
    for token_id in range(101, 160):
        ids.token_ids.append(token_id)
        later = source.chances(ids, 4)  # type: ignore[arg-type]
    assert later[0] > 0.9 > first[0]
    other = Ids([*prompt, 1, 100])
    for n in range(40):  # each time the first guess is wrong
        other.token_ids.extend([300 + n, 100 + n % 7])
        source.chances(other, 4)  # type: ignore[arg-type]
        other.token_ids.append(400 + n)
        source.chances(other, 4)  # type: ignore[arg-type]
    other.token_ids.append(103)
    assert source.chances(other, 4)[0] < 0.2  # type: ignore[arg-type]


def test_it_learns_from_other_requests_what_a_new_one_begins_with() -> None:
    source = PromptLookup()
    before = source.chances(Ids([5, 6, 7, 5]), 1)[0]  # type: ignore[arg-type]
    for n in range(30):
        ids = Ids([5, 6, 7, 5])
        source.chances(ids, 1)  # type: ignore[arg-type]
        ids.token_ids.append(100 + n)
        source.chances(ids, 1)  # type: ignore[arg-type]
    assert source.chances(Ids([5, 6, 7, 5]), 1)[0] < 0.6 * before  # type: ignore[arg-type]


def test_a_long_prompt_is_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "MAX_INDEXED", 10)
    source, ids = PromptLookup(), Ids([1, 2, 3, 4, 5, *range(10, 30), 1, 2, 3, 4])
    assert guesses(source, ids, 1) == []
    assert guesses(source, ids, 1) == []
    assert guesses(source, ids, 1) == [5]


def test_two_runs_with_one_hash_are_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookup, "_place", lambda *_: 0)
    monkeypatch.setattr(lookup, "_TABLE_SIZE", 1)
    assert guesses(PromptLookup(), Ids([1, 2, 3, 4, 5, 6, 7, 8]), 3) == []


def test_memory_does_not_grow_with_a_text_but_for_its_ids() -> None:
    source, ids = PromptLookup(), Ids([1])
    source.chances(ids, 1)  # type: ignore[arg-type]
    index = source._indexes[ids]  # type: ignore[index]
    sizes = len(index._long), len(index._short)
    ids.token_ids.extend(range(2, 5000))
    source.chances(ids, 1)  # type: ignore[arg-type]
    assert (len(index._long), len(index._short)) == sizes


def test_a_forgotten_request_is_gone() -> None:
    source, ids = PromptLookup(), Ids([1, 2, 1])
    assert guesses(source, ids, 1) == [2]
    source.forget(ids)  # type: ignore[arg-type]
    source.forget(ids)  # type: ignore[arg-type]
    assert not source._indexes
