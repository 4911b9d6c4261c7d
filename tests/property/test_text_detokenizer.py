"""Pieces joined = the whole decoded, for any ids, however they come."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from text_samples import (
    LLAMA3_CONTROLS,
    PHI3_CONTROLS,
    any_text,
    byte_level_json,
    calm,
    from_json,
    hf,
    spm_json,
)

from gguf_engine.text.detokenizer import Detokenizer
from gguf_engine.text.stops import StopMatcher
from gguf_engine.text.tokenizer import Tokenizer

SPM, BPE = from_json(spm_json()), from_json(byte_level_json())
SPM_ORACLE, BPE_ORACLE = hf(spm_json()), hf(byte_level_json())
SPM_BYTES = [] if (table := SPM.table()) is None else table.data

spm_ids = st.lists(st.integers(0, SPM.n_vocab - 1), max_size=40)
bpe_ids = st.lists(st.integers(0, BPE.n_vocab - 1), max_size=40)
# Byte b of the SPM sample is id 3 + b.
byte_runs = st.lists(st.integers(3, 258), max_size=40)


def _pieces(tokenizer: Tokenizer, ids: list[int], *, continues: bool = False) -> list[str]:
    detokenizer = Detokenizer(tokenizer, continues=continues)
    return [*(detokenizer.push(i) for i in ids), detokenizer.flush()]


@calm
@given(bpe_ids)
def test_byte_level_pieces_are_always_the_whole_decode(ids: list[int]) -> None:
    expected = BPE_ORACLE.decode(ids, skip_special_tokens=True)
    assert "".join(_pieces(BPE, ids)) == expected == BPE.decode(ids)


@calm
@given(st.lists(st.one_of(st.text(max_size=4), st.integers(259, SPM.n_vocab - 1)), max_size=20))
def test_spm_pieces_are_the_whole_decode_when_byte_runs_are_valid(parts: list[str | int]) -> None:
    ids: list[int] = []
    for part in parts:
        ids += [part] if isinstance(part, int) else [3 + byte for byte in part.encode()]
    expected = SPM_ORACLE.decode(ids, skip_special_tokens=True)
    assert "".join(_pieces(SPM, ids)) == expected == SPM.decode(ids)


@calm
@given(st.one_of(spm_ids, byte_runs))
def test_invalid_bytes_are_replaced_as_python_replaces_them(ids: list[int]) -> None:
    joined = b"".join(SPM_BYTES[i] for i in ids if i not in SPM.special_ids)
    text = joined.decode("utf-8", "replace")
    assert "".join(_pieces(SPM, ids, continues=True)) == text
    assert "".join(_pieces(SPM, ids)) == text.removeprefix(" ")


@calm
@given(st.one_of(spm_ids, byte_runs))
def test_a_piece_is_a_prefix_of_what_the_bytes_so_far_may_become(ids: list[int]) -> None:
    """No piece holds part of a code point: whole characters leave, an unfinished one waits."""
    detokenizer, data, given_out = Detokenizer(SPM, continues=True), b"", ""
    for i in ids:
        given_out += detokenizer.push(i)
        data += SPM_BYTES[i]
        for rest in (b"", b"\x80", b"\xbf\xbf\xbf", b"a"):
            assert (data + rest).decode("utf-8", "replace").startswith(given_out)


@calm
@given(any_text(PHI3_CONTROLS), any_text(LLAMA3_CONTROLS))
def test_text_comes_back_from_its_ids(spm_text: str, bpe_text: str) -> None:
    assert "".join(_pieces(SPM, SPM.encode(spm_text))) == spm_text.replace("▁", " ")
    assert "".join(_pieces(BPE, BPE.encode(bpe_text))) == bpe_text


@calm
@given(spm_ids, st.lists(st.text(alphabet="ae \ufffd🏒", min_size=1, max_size=3), max_size=3))
def test_no_piece_holds_a_character_of_a_matched_stop(ids: list[int], stops: list[str]) -> None:
    whole = "".join(_pieces(SPM, ids))
    matcher = StopMatcher(stops)
    pieces = [matcher.push(piece) for piece in _pieces(SPM, ids)] + [matcher.flush()]
    text = "".join(pieces)
    assert whole.startswith(text + (matcher.matched or ""))
    assert not any(stop in text for stop in stops)
    assert (matcher.matched is None) == (text == whole)
