"""A draft model has the target's vocabulary, or is refused with the first id that differs."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import pytest

from gguf_engine import LLM, OptionError
from gguf_engine.loader.draft import UNUSED, check_draft
from gguf_engine.loader.gguf import GGUFFile, read_gguf
from gguf_engine.loader.vocabulary import TOKENS, TYPES

MakeTinyModel = Callable[..., Path]


@pytest.fixture
def model(make_tiny_model: MakeTinyModel) -> GGUFFile:
    return read_gguf(make_tiny_model())


def with_metadata(model: GGUFFile, **changes: Any) -> GGUFFile:
    from dataclasses import replace

    return replace(model, metadata={**model.metadata, **changes})


def test_a_model_may_guess_for_itself(model: GGUFFile) -> None:
    check_draft(model, model)


def test_the_first_id_that_differs_is_named(model: GGUFFile) -> None:
    tokens = list(model.metadata[TOKENS])
    tokens[300], tokens[301] = tokens[301], tokens[300]
    with pytest.raises(OptionError, match="id 300 is") as caught:
        check_draft(model, with_metadata(model, **{TOKENS: tuple(tokens)}))
    assert caught.value.option == "draft"
    assert str(model.path) in str(caught.value)
    assert repr(tokens[300]) in str(caught.value)


def test_another_kind_of_tokenizer_is_refused(model: GGUFFile) -> None:
    with pytest.raises(OptionError, match="kind 'gpt2'"):
        check_draft(model, with_metadata(model, **{"tokenizer.ggml.model": "gpt2"}))


@pytest.mark.parametrize("longer", ["target", "draft"])
def test_padding_may_differ_and_nothing_else_may(model: GGUFFile, longer: str) -> None:
    def pair(kind: int) -> tuple[GGUFFile, GGUFFile]:
        tokens = (*model.metadata[TOKENS], "[PAD0]", "[PAD1]")
        types = (*model.metadata[TYPES], kind, kind)
        more = with_metadata(model, **{TOKENS: tokens, TYPES: types})
        return (more, model) if longer == "target" else (model, more)

    check_draft(*pair(UNUSED))
    with pytest.raises(OptionError, match="512"):
        check_draft(*pair(1))


def test_loading_refuses_a_draft_model_with_another_vocabulary(
    tiny_model: Path, make_tiny_model: MakeTinyModel
) -> None:
    other = make_tiny_model(vocab="bpe")
    with pytest.raises(OptionError, match="draft is"):
        LLM.load(tiny_model, draft=str(other))


def test_loading_checks_a_draft_model_like_any_other(tiny_model: Path, tmp_path: Path) -> None:
    from gguf_engine import ModelFileError

    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"<!DOCTYPE html>" * 10)
    with pytest.raises(ModelFileError):
        LLM.load(tiny_model, draft=bad)


@pytest.mark.parametrize("isolation", ["thread", "process"])
@pytest.mark.parametrize("draft", ["lookup", "itself"])
def test_a_loaded_model_guesses_and_answers_the_same(tiny_model: Path, isolation: Any, draft: str) -> None:
    ids = [5, 6, 7, 8] * 20
    options: dict[str, Any] = {"max_tokens": 60, "ignore_eos": True, "temperature": 0.0}
    with LLM.load(tiny_model, n_threads=1) as llm:
        plain = llm.generate(ids, **options)
    name = str(tiny_model) if draft == "itself" else draft
    with LLM.load(tiny_model, n_threads=1, draft=name, n_draft=7, isolation=isolation) as llm:
        answer = llm.generate(ids, **options)
        assert llm.stats().n_draft_faults == 0
    assert answer.token_ids == plain.token_ids


def test_the_kind_of_token_that_pads_is_the_formats() -> None:
    assert gguf.TokenType.UNUSED == UNUSED
