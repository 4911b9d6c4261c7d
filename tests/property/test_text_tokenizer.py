"""No control id ever comes out of text, and the ids are those of the two oracles."""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st
from text_samples import (
    LLAMA3_CONTROLS,
    PHI3_CONTROLS,
    LlamaVocab,
    any_text,
    byte_level_json,
    byte_level_metadata,
    calm,
    from_json,
    hf,
    spm_json,
    spm_metadata,
    write_gguf,
)

from gguf_engine.text.tokenizer import Tokenizer

SPM_CONTROLS = ("<unk>", "<s>", "</s>", *PHI3_CONTROLS)


@lru_cache
def _llama(kind: str) -> LlamaVocab:
    metadata = spm_metadata() if kind == "spm" else byte_level_metadata()
    with TemporaryDirectory() as folder:
        return LlamaVocab(write_gguf(Path(folder, "vocab.gguf"), metadata))


@lru_cache
def _all_tokenizers() -> list[Tokenizer]:
    return [
        from_json(spm_json()),
        from_json(byte_level_json()),
        Tokenizer.from_metadata(spm_metadata()),
        Tokenizer.from_metadata(byte_level_metadata()),
        from_json(spm_json()).with_model(spm_metadata()),
        from_json(_with_reachable_controls()),
    ]


@lru_cache
def _with_reachable_controls() -> str:
    """A vocabulary in which merges lead to every control text: what some published ones look like."""
    data = json.loads(spm_json())
    vocab, merges = data["model"]["vocab"], data["model"]["merges"]
    for text in SPM_CONTROLS:
        for end in range(1, len(text) + 1):
            vocab.setdefault(text[end - 1], len(vocab))
            vocab.setdefault(text[:end], len(vocab))
            if end > 1 and [text[: end - 1], text[end - 1]] not in merges:
                merges.append([text[: end - 1], text[end - 1]])
    return json.dumps(data)


def test_the_oracle_itself_would_give_a_control_id_for_reachable_control_text() -> None:
    oracle = hf(_with_reachable_controls())
    oracle.encode_special_tokens = True
    assert 1 in oracle.encode("a<s>").ids


@calm
@given(any_text(SPM_CONTROLS + LLAMA3_CONTROLS))
def test_no_control_id_comes_out_of_text(text: str) -> None:
    for tokenizer in _all_tokenizers():
        ids = tokenizer.encode(text, add_bos=False)
        assert tokenizer.special_ids.isdisjoint(ids)
        assert tokenizer.decode(ids).replace("▁", " ") == text.replace("▁", " ")


@calm
@given(any_text(PHI3_CONTROLS).filter(bool))
def test_ids_of_the_gguf_vocabulary_are_llama_cpps(text: str) -> None:
    assert Tokenizer.encode(_all_tokenizers()[2], text, add_bos=False) == _llama("spm").encode(text)


@calm
@given(any_text(LLAMA3_CONTROLS).filter(bool))
def test_ids_of_a_byte_level_gguf_vocabulary_are_llama_cpps(text: str) -> None:
    assert Tokenizer.encode(_all_tokenizers()[3], text, add_bos=False) == _llama("bpe").encode(text)


@calm
@given(any_text(SPM_CONTROLS), any_text(LLAMA3_CONTROLS))
def test_control_tokens_are_cut_out_as_the_tokenizers_library_does(spm_text: str, bpe_text: str) -> None:
    for source, text in ((spm_json(), spm_text), (byte_level_json(), bpe_text)):
        ids = from_json(source).encode(text, control_tokens=True, add_bos=False)
        assert ids == hf(source).encode(text, add_special_tokens=False).ids


@calm
@given(
    st.text(alphabet="ab▁ ", max_size=30),
    st.permutations(["ab", "ba", "aa", "aba", "bab", "aab", "▁a", "a▁"]),
)
def test_merges_made_from_scores_cut_as_llama_cpp_does(text: str, pieces: list[str]) -> None:
    metadata = dict(spm_metadata())
    metadata["tokenizer.ggml.tokens"] = [*metadata["tokenizer.ggml.tokens"][:259], *pieces, "a", "b", "▁"]
    n_pieces = len(pieces) + 3
    metadata["tokenizer.ggml.scores"] = [0.0] * 259 + [-float(i) for i in range(n_pieces)]
    metadata["tokenizer.ggml.token_type"] = [2, 3, 3] + [6] * 256 + [1] * n_pieces
    metadata |= {"tokenizer.ggml.eos_token_id": 2, "general.name": "sample"}
    with TemporaryDirectory() as folder:
        llama = LlamaVocab(write_gguf(Path(folder, "vocab.gguf"), metadata))
    expected = llama.encode(text) if text else []
    llama.close()
    assert Tokenizer.from_metadata(metadata).encode(text, add_bos=False) == expected
