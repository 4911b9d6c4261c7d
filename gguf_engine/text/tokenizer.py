"""Text → token ids and back, from a tokenizer.json or from the vocabulary inside a GGUF."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers

from gguf_engine.errors import TokenizerError
from gguf_engine.text.audit import compare, refuse_differences
from gguf_engine.text.control import ControlTokens
from gguf_engine.text.library import Place, decoding, guard, load, mark_special, unknown_id, without_space
from gguf_engine.text.pieces import PieceTable, build_table
from gguf_engine.text.vocabulary import END_TEXTS, Vocabulary

# Characters from which a text is encoded as a batch of one: that lets other threads go on meanwhile.
_LONG_TEXT = 10_000
_BOS_TEXTS = ("<|begin_of_text|>", "<s>", "<bos>", "<|startoftext|>")
_EOS_TEXTS = ("</s>", "<eos>", "<|endoftext|>", "<|end_of_text|>", "<|im_end|>", "<|end|>")


class Tokenizer:
    """
    A vocabulary with its rules.

    A control token (`<|end|>`, `<s>`) never comes out of text unless the caller says that the text
    may hold them: a user who types `<|end|>` gets the pieces that spell it. Safe to use from
    several threads.

    Attributes:
        n_vocab: One more than the largest id.
        bos_id, eos_id: The ids that begin and end a text; None where there is none.
        add_bos: Whether the model wants a text to begin with `bos_id`.
        special_ids: Control tokens: skipped by `decode`, never encoded from a user's text.
        end_ids: Ids that end an answer; holds `eos_id` and the like of `<|end|>`, `<|eot_id|>`.
        vocabulary: Of the GGUF it was built from; None for a tokenizer.json.
    """

    def __init__(
        self,
        built: tokenizers.Tokenizer,
        *,
        n_vocab: int,
        bos_id: int | None,
        eos_id: int | None,
        add_bos: bool,
        special_ids: frozenset[int],
        end_ids: frozenset[int],
        vocabulary: Vocabulary | None = None,
    ) -> None:
        self.n_vocab = n_vocab
        self.bos_id, self.eos_id, self.add_bos = bos_id, eos_id, add_bos
        self.special_ids, self.end_ids = special_ids, end_ids
        self.vocabulary = vocabulary
        built.encode_special_tokens = True
        self._built = built
        self._kind, self._strips_space = decoding(built)
        if self._kind == "byte_level":
            built.decoder = tokenizers.decoders.ByteLevel()
        self._unknown_id = unknown_id(built)
        self._control = ControlTokens(built, special_ids)
        self._by_place: dict[Place, tokenizers.Tokenizer] = {"start": built}
        self._table: PieceTable | None = None

    @property
    def library(self) -> tokenizers.Tokenizer:
        """The `tokenizers` object underneath, for comparisons; not to be changed."""
        return self._built

    @property
    def control_texts(self) -> tuple[str, ...]:
        """The texts of the control tokens."""
        return self._control.texts

    @property
    def control_pattern(self) -> re.Pattern[str]:
        """Matches a control token in text: the longest that begins at a place."""
        return self._control.pattern

    @classmethod
    def from_file(cls, path: str | Path) -> Tokenizer:
        """
        Load a tokenizer.json.

        Args:
            path: The file, at most 64 MiB.

        Raises:
            TokenizerError: No such file, too large, not JSON, or not a tokenizer that can be loaded.
        """
        built, n_vocab = load(Path(path))
        special = frozenset(i for i, token in built.get_added_tokens_decoder().items() if token.special)
        with guard("the post-processor of the tokenizer.json fails"):
            first = built.encode("", add_special_tokens=True).ids[:1]
        bos_id = first[0] if first and first[0] in special else _first_id(built, _BOS_TEXTS, special)
        eos_id = _first_id(built, _EOS_TEXTS, special)
        ends = {i for i in special if built.id_to_token(i) in END_TEXTS}
        return cls(
            built,
            n_vocab=n_vocab,
            bos_id=bos_id,
            eos_id=eos_id,
            add_bos=bool(first) and first[0] == bos_id,
            special_ids=special,
            end_ids=frozenset(ends if eos_id is None else {*ends, eos_id}),
        )

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Tokenizer:
        """
        Build the tokenizer that a GGUF describes.

        Args:
            metadata: The GGUF's keys and values; those below `tokenizer.ggml.` are read.

        Raises:
            TokenizerError: No vocabulary, a broken one, or one of a type without rules here; pass a
                tokenizer.json then.
        """
        vocabulary = Vocabulary.from_metadata(metadata)
        with guard("the vocabulary in the GGUF cannot be built"):
            built = vocabulary.build()
        return cls(
            built,
            n_vocab=len(vocabulary.tokens),
            bos_id=vocabulary.bos_id,
            eos_id=vocabulary.eos_id,
            add_bos=vocabulary.add_bos,
            special_ids=vocabulary.control_ids,
            end_ids=vocabulary.end_ids,
            vocabulary=vocabulary,
        )

    def with_model(self, metadata: Mapping[str, Any]) -> Tokenizer:
        """
        Return this tokenizer with what a GGUF says: BOS, EOS, control tokens and size.

        Args:
            metadata: The GGUF's keys and values.

        Raises:
            TokenizerError: This is not the tokenizer of that model; names the first id that differs.
        """
        vocabulary = Vocabulary.from_metadata(metadata)
        refuse_differences(compare(self, vocabulary))
        special = self.special_ids | {i for i in vocabulary.control_ids if i < self.n_vocab}
        return Tokenizer(
            mark_special(self._built, special),
            n_vocab=len(vocabulary.tokens),
            bos_id=vocabulary.bos_id,
            eos_id=vocabulary.eos_id,
            add_bos=vocabulary.add_bos,
            special_ids=special | vocabulary.control_ids,
            end_ids=vocabulary.end_ids,
        )

    def encode(self, text: str, *, control_tokens: bool = False, add_bos: bool | None = None) -> list[int]:
        """
        Return the ids of a text.

        Args:
            text: Any text without lone surrogates.
            control_tokens: Whether the text of a control token becomes that token. Only for text
                that is ours, such as a template: with False, what a user typed stays text.
            add_bos: Begin with `bos_id`; None does what the model wants. Never a second one.

        Raises:
            TokenizerError: The text cannot be encoded.
        """
        parts: Sequence[int | str] = self.split(text) if control_tokens else [text]
        ids = self.encode_parts(parts)
        wanted = self.add_bos if add_bos is None else add_bos
        if wanted and self.bos_id is not None and ids[:1] != [self.bos_id]:
            ids.insert(0, self.bos_id)
        return ids

    def split(self, text: str) -> list[int | str]:
        """
        Return a text cut at its control tokens: their ids, and the texts between them.

        White space that a control token swallows (its `lstrip`, `rstrip`) is dropped.
        """
        return self._control.split(text)

    def encode_parts(self, parts: Sequence[int | str]) -> list[int]:
        """
        Return the ids of what `split` gives; no string among `parts` gives a control token.

        Raises:
            TokenizerError: A text cannot be encoded.
        """
        ids: list[int] = []
        for n, part in enumerate(parts):
            if isinstance(part, int):
                ids.append(part)
            elif part:
                ids += self._encode_text(part, "after" if n else "start")
        return ids

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """
        Return the text of ids, as `tokenizers` decodes them.

        Raises:
            TokenizerError: An id outside 0..2^32-1.
        """
        kept = [i for i in ids if i not in self.special_ids] if skip_special_tokens else list(ids)
        with guard("these ids cannot be decoded"):
            return str(self._built.decode(kept, skip_special_tokens=False))

    def token_text(self, token_id: int) -> str:
        """
        Return the piece of an id as the vocabulary spells it; "" for an id it leaves out.

        Raises:
            TokenizerError: An id outside the vocabulary.
        """
        if not 0 <= token_id < self.n_vocab:
            raise TokenizerError(f"token id is {token_id}; allowed: 0..{self.n_vocab - 1}")
        return self._built.id_to_token(token_id) or ""

    def pieces(self) -> list[str]:
        """Return the piece of each id as the vocabulary spells it; "" for an id it leaves out."""
        pieces = [""] * self.n_vocab
        for piece, i in self._built.get_vocab(with_added_tokens=True).items():
            if i < self.n_vocab:
                pieces[i] = piece
        return pieces

    def table(self) -> PieceTable | None:
        """Return what each id adds to a text, built at the first call; None when neighbours matter."""
        if self._table is None and self._kind != "other":
            self._table = build_table(
                self.pieces(), self._kind, self.special_ids, strips_space=self._strips_space
            )
        return self._table

    def _encode_text(self, text: str, place: Place) -> list[int]:
        with guard("this text cannot be encoded"):
            built = self._built_for(place)
            if len(text) < _LONG_TEXT:
                encoding = built.encode(text, add_special_tokens=False)
            else:
                (encoding,) = built.encode_batch([text], add_special_tokens=False)
        ids: list[int] = encoding.ids
        if self.special_ids.isdisjoint(ids):
            return ids
        for token_id, (start, end) in zip(ids, encoding.offsets, strict=True):
            # The unknown token is right for characters that the vocabulary lacks, not for its own text.
            is_unknown = token_id == self._unknown_id and text[start:end] != self.token_text(token_id)
            if token_id in self.special_ids and not is_unknown:
                return self._spell_out(text, start, end, place)
        return ids

    def _spell_out(self, text: str, start: int, end: int, place: Place) -> list[int]:
        """Encode a text in which pieces join into a control token at start..end: that by character."""
        if end - start < 2:
            raise TokenizerError(
                f"{text[start:end]!r} is a control token of this model and cannot be encoded as text"
            )
        ids = self._encode_text(text[:start], place) if start else []
        for char in text[start:end]:
            ids += self._encode_text(char, "inside")
        return ids + (self._encode_text(text[end:], "inside") if end < len(text) else [])

    def _built_for(self, place: Place) -> tokenizers.Tokenizer:
        """Return the tokenizer that puts a space before the first word where one belongs."""
        if place not in self._by_place:
            self._by_place[place] = without_space(self._built, place)
        return self._by_place[place]


def check_same(tokenizer_json: Tokenizer, gguf: Tokenizer | Mapping[str, Any]) -> None:
    """
    Compare a tokenizer.json with the vocabulary of a GGUF: size, every piece, BOS, end tokens.

    The GGUF may hold more ids (padding), as long as they are no ordinary pieces; see `audit.compare`.

    Args:
        tokenizer_json: What `Tokenizer.from_file` gave.
        gguf: What `Tokenizer.from_metadata` gave, or the metadata itself, which costs less.

    Raises:
        TokenizerError: They differ; names the first id that does.
    """
    vocabulary = gguf.vocabulary if isinstance(gguf, Tokenizer) else Vocabulary.from_metadata(gguf)
    if vocabulary is None:
        raise TokenizerError(
            "check_same needs the vocabulary of a GGUF; both tokenizers are tokenizer.json files"
        )
    refuse_differences(compare(tokenizer_json, vocabulary))


def _first_id(built: tokenizers.Tokenizer, texts: Sequence[str], among: frozenset[int]) -> int | None:
    found = (built.token_to_id(text) for text in texts)
    return next((i for i in found if i is not None and i in among), None)
