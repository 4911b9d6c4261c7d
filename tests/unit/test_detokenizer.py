from __future__ import annotations

import json
from collections.abc import Sequence

import pytest
from text_samples import (
    CORPUS,
    TEXTS,
    byte_level_json,
    byte_level_metadata,
    from_json,
    hf,
    spm_json,
    spm_metadata,
)
from tokenizers.pre_tokenizers import ByteLevel

from gguf_engine.errors import TokenizerError
from gguf_engine.text.detokenizer import Detokenizer
from gguf_engine.text.pieces import byte_alphabet
from gguf_engine.text.tokenizer import Tokenizer


@pytest.fixture
def spm() -> Tokenizer:
    return Tokenizer.from_metadata(spm_metadata())


@pytest.fixture
def byte_level() -> Tokenizer:
    return Tokenizer.from_metadata(byte_level_metadata())


def _pieces(tokenizer: Tokenizer, ids: Sequence[int], *, continues: bool = False) -> list[str]:
    detokenizer = Detokenizer(tokenizer, continues=continues)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


def _bytes(*values: int) -> list[int]:
    # In the sample vocabulary, as in Llama's, byte b is id 3 + b.
    return [3 + value for value in values]


@pytest.mark.parametrize("text", [*TEXTS, CORPUS[2]])
def test_the_pieces_are_what_the_tokenizers_library_decodes(text: str) -> None:
    for source in (spm_json(), byte_level_json()):
        oracle = hf(source)
        ids = oracle.encode(text).ids
        tokenizer = from_json(source)
        assert "".join(_pieces(tokenizer, ids)) == oracle.decode(ids, skip_special_tokens=True)


def test_a_character_leaves_with_its_last_byte(spm: Tokenizer) -> None:
    stick = _bytes(0xF0, 0x9F, 0x8F, 0x92)
    assert _pieces(spm, [*stick, *stick]) == ["", "", "", "🏒", "", "", "", "🏒", ""]


def test_one_leading_space_is_dropped_and_only_one(spm: Tokenizer) -> None:
    space = spm.encode("  ", add_bos=False)[0]
    word = spm.encode("the", add_bos=False)
    assert "".join(_pieces(spm, word)) == "the"
    assert "".join(_pieces(spm, [*word, *word])) == "the the"
    assert "".join(_pieces(spm, [*_bytes(0x20), space])) == " "


def test_a_continued_text_keeps_its_leading_space(spm: Tokenizer) -> None:
    word = spm.encode("the", add_bos=False)
    assert "".join(_pieces(spm, word, continues=True)) == " the"


def test_control_tokens_add_nothing_and_do_not_cut_a_character(
    spm: Tokenizer, byte_level: Tokenizer
) -> None:
    first, second = _bytes(0xC3, 0xA9)
    end = max(spm.special_ids)
    assert _pieces(spm, [end, first, end, second, end]) == ["", "", "", "é", "", ""]
    control = min(byte_level.special_ids)
    assert _pieces(byte_level, [control]) == ["", ""]


def test_control_text_that_was_spelled_out_stays(spm: Tokenizer) -> None:
    ids = spm.encode("a <|end|> b", add_bos=False)
    assert "".join(_pieces(spm, ids)) == "a <|end|> b"


def test_unfinished_bytes_become_one_replacement_at_the_end(spm: Tokenizer) -> None:
    assert _pieces(spm, _bytes(0xF0, 0x9F, 0x8F)) == ["", "", "", "\ufffd"]


def test_invalid_bytes_are_replaced_as_python_replaces_them(spm: Tokenizer) -> None:
    run = bytes([0xFF, 0x41, 0xE5, 0x86, 0x20, 0xC3, 0xC3, 0xA9])
    assert "".join(_pieces(spm, _bytes(*run))) == run.decode("utf-8", "replace")


def test_nothing_is_left_after_a_flush(spm: Tokenizer) -> None:
    detokenizer = Detokenizer(spm)
    detokenizer.push(_bytes(0xF0)[0])
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""
    assert detokenizer.push(_bytes(0x41)[0]) == "A"


def test_an_id_outside_the_vocabulary_is_refused(spm: Tokenizer, byte_level: Tokenizer) -> None:
    for tokenizer in (spm, byte_level):
        for token_id in (-1, tokenizer.n_vocab):
            with pytest.raises(TokenizerError, match=f"token id is {token_id}"):
                Detokenizer(tokenizer).push(token_id)


def test_padding_of_the_model_adds_nothing(spm: Tokenizer) -> None:
    metadata = dict(spm_metadata())
    for name, value in (("tokens", "[PAD]"), ("scores", -1e4), ("token_type", 5)):
        metadata[f"tokenizer.ggml.{name}"] = [*metadata[f"tokenizer.ggml.{name}"], value]
    tokenizer = from_json(spm_json()).with_model(metadata)
    assert _pieces(tokenizer, [spm.n_vocab]) == ["", ""]


def test_byte_level_pieces_decide_over_a_decoder_of_another_kind() -> None:
    data = json.loads(byte_level_json())
    data["decoder"] = json.loads(spm_json())["decoder"]
    tokenizer = from_json(json.dumps(data))
    ids = tokenizer.encode("über 🏒", add_bos=False)
    assert tokenizer.decode(ids) == "".join(_pieces(tokenizer, ids)) == "über 🏒"


def test_the_byte_alphabet_is_that_of_the_tokenizers_library() -> None:
    alphabet = byte_alphabet()
    assert set(alphabet) == set(ByteLevel.alphabet())
    assert sorted(alphabet.values()) == list(range(256))
    # The library's own answer for every byte that is valid UTF-8 alone.
    text = "".join(map(chr, range(128)))
    pieces = "".join(piece for piece, _ in ByteLevel(add_prefix_space=False).pre_tokenize_str(text))
    assert bytes(alphabet[char] for char in pieces) == text.encode()


def test_an_unknown_decoder_is_used_as_it_is_over_a_window() -> None:
    data = json.loads(spm_json())
    data["decoder"]["decoders"].insert(0, {"type": "Replace", "pattern": {"String": "~"}, "content": "-"})
    tokenizer, oracle = from_json(json.dumps(data)), hf(json.dumps(data))
    assert tokenizer.table() is None
    ids = oracle.encode("The ice ~ 🏒 ~ is quiet.\n" * 20).ids
    assert "".join(_pieces(tokenizer, ids)) == oracle.decode(ids)


def test_a_window_gives_out_bytes_that_never_become_a_character() -> None:
    data = json.loads(spm_json())
    data["decoder"]["decoders"].insert(0, {"type": "Replace", "pattern": {"String": "~"}, "content": "-"})
    tokenizer = from_json(json.dumps(data))
    pieces = _pieces(tokenizer, _bytes(*[0xFF] * 40))
    assert "".join(pieces) == "\ufffd" * 40
    assert any(pieces[:20])
