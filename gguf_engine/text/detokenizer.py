"""Token ids, one at a time → text that is complete; owns the bytes that are not yet a character."""

from __future__ import annotations

import codecs

from gguf_engine.errors import TokenizerError
from gguf_engine.text.pieces import PieceTable
from gguf_engine.text.tokenizer import Tokenizer

_INCREMENTAL = codecs.getincrementaldecoder("utf-8")
_WINDOW = 16


class Detokenizer:
    """
    The text of one sequence of ids.

    A character leaves as soon as its last byte arrives; control tokens add nothing. The pieces and
    `flush` together are the whole text, however often `push` returned "".
    """

    __slots__ = ("_decoder", "_is_plain", "_strips", "_table", "_texts", "_window")

    def __init__(self, vocabulary: Tokenizer | PieceTable, *, continues: bool = False) -> None:
        """
        Start a sequence.

        Args:
            vocabulary: Whose ids will come: a tokenizer, or its table where it has one.
            continues: The ids go on from a text, so the space before the first word is kept.
        """
        table = vocabulary if isinstance(vocabulary, PieceTable) else vocabulary.table()
        self._window = None
        if table is None:
            assert isinstance(vocabulary, Tokenizer)
            self._window = _DecodeWindow(vocabulary)
        self._table = table
        self._texts = table.texts if table is not None else ()
        self._decoder = _INCREMENTAL("replace")
        self._strips = table is not None and table.strips_space and not continues
        # Nothing held and no space to strip: a piece of whole characters is its own text.
        self._is_plain = table is not None and not self._strips

    def push(self, token_id: int) -> str:
        """
        Return the text that this id completes, often "".

        Raises:
            TokenizerError: An id outside the vocabulary.
        """
        if self._is_plain and token_id >= 0:
            try:
                text = self._texts[token_id]
            except IndexError:
                raise _outside(token_id, len(self._texts)) from None
            if text is not None:
                return text
        return self._push_bytes(token_id)

    def flush(self) -> str:
        """Return what is left at the end: unfinished bytes as one U+FFFD."""
        if self._window is not None:
            return self._window.flush()
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        self._is_plain = not self._strips
        return self._strip(text)

    def _push_bytes(self, token_id: int) -> str:
        if self._window is not None:
            return self._window.push(token_id)
        assert self._table is not None
        data = self._table.data
        if not 0 <= token_id < len(data):
            raise _outside(token_id, len(data))
        text = self._decoder.decode(data[token_id])
        self._is_plain = not self._decoder.getstate()[0]
        if self._strips:
            text = self._strip(text)
            self._is_plain = self._is_plain and not self._strips
        return text

    def _strip(self, text: str) -> str:
        if not self._strips or not text:
            return text
        self._strips = False
        return text[1:] if text[0] == " " else text


class _DecodeWindow:
    """
    For decoders whose pieces depend on their neighbours: decode a few ids twice and take the difference.

    The window is bounded: after 16 ids without a complete text what there is goes out as it is.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._n_done = 0

    def push(self, token_id: int) -> str:
        if not 0 <= token_id < self._tokenizer.n_vocab:
            raise _outside(token_id, self._tokenizer.n_vocab)
        if token_id in self._tokenizer.special_ids:
            return ""
        self._ids.append(token_id)
        return self._take(is_last=len(self._ids) - self._n_done >= _WINDOW)

    def flush(self) -> str:
        return self._take(is_last=True)

    def _take(self, *, is_last: bool) -> str:
        before = self._tokenizer.decode(self._ids[: self._n_done])
        after = self._tokenizer.decode(self._ids)
        if (after.endswith("\ufffd") or len(after) <= len(before)) and not is_last:
            return ""
        self._ids = self._ids[self._n_done :]
        self._n_done = len(self._ids)
        return after[len(before) :]


def _outside(token_id: int, n_vocab: int) -> TokenizerError:
    return TokenizerError(f"token id is {token_id}; allowed: 0..{n_vocab - 1}")
