"""Prompts: of exact lengths, the same for the same vocabulary, no two of a run alike at their beginning."""

from __future__ import annotations

import pytest
from text_samples import from_json, spm_json

from gguf_engine.bench.workload import N_FIXED, Prompts, default_lengths
from gguf_engine.loader.resolve import resolve_model
from gguf_engine.text.tokenizer import Tokenizer


def haiku() -> Tokenizer:
    files = resolve_model("haiku")
    assert files.tokenizer is not None
    return Tokenizer.from_file(files.tokenizer)


@pytest.mark.parametrize("tokenizer", [haiku(), from_json(spm_json())], ids=["haiku", "bytes"])
def test_a_prompt_has_exactly_the_ids_its_text_encodes_to(tokenizer: Tokenizer) -> None:
    prompts = Prompts(tokenizer, 33, 8, 1)
    for depth, stream in ((0, 0), (0, 3), (300, 1)):
        prompt = prompts.of(depth, stream)
        assert len(prompt.ids) == depth + 33
        assert tokenizer.encode(prompt.text) == prompt.ids
    assert len(prompts.fixed) == N_FIXED


def test_streams_and_depths_begin_differently() -> None:
    prompts = Prompts(haiku(), 64, 8, 1)
    begins = [tuple(prompts.of(depth, stream).ids[:8]) for depth in (0, 512, 2048) for stream in range(8)]
    assert len(set(begins)) == len(begins)


def test_the_workload_is_the_same_for_the_same_vocabulary_and_lengths() -> None:
    first, second = (Prompts(haiku(), 64, 8, 1).workload() for _ in range(2))
    assert first == second
    other = Prompts(haiku(), 65, 8, 1).workload()
    assert (other.n_prompt, other.fixed_sha256) == (65, first.fixed_sha256)
    assert other.prompt_sha256 != first.prompt_sha256


def test_small_models_make_more_tokens() -> None:
    assert default_lengths(2**21) == (512, 256)
    assert default_lengths(2**31) == (128, 64)
