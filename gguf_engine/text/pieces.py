"""A tokenizer's pieces → the bytes that each id stands for, and the text where it stands alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

DecoderKind = Literal["spm", "byte_level", "other"]

_BYTE_PIECE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class PieceTable(NamedTuple):
    """
    What each id adds to a text.

    Attributes:
        texts: (n_vocab,) its text when its bytes are whole characters, "" for a skipped id, None
            when it holds a part of a character.
        data: (n_vocab,) its bytes; b"" for a skipped id.
        strips_space: Whether one leading space of a whole text is dropped.
    """

    texts: Sequence[str | None]
    data: Sequence[bytes]
    strips_space: bool


def byte_alphabet() -> dict[str, int]:
    """
    Return the character that stands for each byte in a byte-level vocabulary, inverted.

    Printable Latin-1 bytes stand for themselves, the others for U+0100 and up, in order.

    Source: GPT-2's `bytes_to_unicode`.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in set(printable)]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def decoder_kind(decoder: dict[str, Any] | None, pre_tokenizer: dict[str, Any] | None) -> DecoderKind:
    """
    Tell which table fits a tokenizer.json's decoder.

    A byte-level pre-tokenizer decides over whatever the decoder looks like: its pieces are bytes.
    """
    if any(step.get("type") == "ByteLevel" for step in steps(pre_tokenizer, "pretokenizers")):
        return "byte_level"
    found = steps(decoder, "decoders")
    names = [step.get("type") for step in found]
    if names == ["ByteLevel"]:
        return "byte_level"
    if names[:3] != ["Replace", "ByteFallback", "Fuse"] or names[3:] not in ([], ["Strip"]):
        return "other"
    is_plain = found[0].get("pattern") == {"String": "▁"} and found[0].get("content") == " "
    return "spm" if is_plain and all(_strips_one_space(step) for step in found[3:]) else "other"


def steps(component: dict[str, Any] | None, member: str) -> list[dict[str, Any]]:
    """Return the steps of a component of a tokenizer.json, whether or not it is a Sequence."""
    if component is None:
        return []
    if component.get("type") != "Sequence":
        return [component]
    return [inner for step in component.get(member, ()) for inner in steps(step, member)]


def build_table(
    pieces: Iterable[str], kind: DecoderKind, skipped: frozenset[int], *, strips_space: bool
) -> PieceTable:
    """
    Return the table of a vocabulary.

    Args:
        pieces: The piece of each id, in order.
        kind: "spm" or "byte_level".
        skipped: Ids that add nothing: control tokens.
        strips_space: Carried into the table.
    """
    convert = _byte_level() if kind == "byte_level" else _spm_bytes
    data = [b"" if i in skipped else convert(piece) for i, piece in enumerate(pieces)]
    return PieceTable([_text_or_none(item) for item in data], data, strips_space)


def _text_or_none(data: bytes) -> str | None:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def _strips_one_space(step: Mapping[str, Any]) -> bool:
    return (step.get("content"), step.get("start"), step.get("stop")) == (" ", 1, 0)


def _spm_bytes(piece: str) -> bytes:
    if len(piece) == 6 and (match := _BYTE_PIECE.fullmatch(piece)):
        return bytes([int(match[1], 16)])
    return piece.replace("▁", " ").encode("utf-8", "replace")


class _byte_level:  # noqa: N801 - used as a function that carries its tables
    """Pieces of a byte-level vocabulary; one with a character outside the alphabet stands for itself."""

    def __init__(self) -> None:
        alphabet = byte_alphabet()
        self._table = {ord(char): byte for char, byte in alphabet.items()}
        self._inside = frozenset(alphabet).issuperset

    def __call__(self, piece: str) -> bytes:
        if self._inside(piece):
            return piece.translate(self._table).encode("latin-1")
        return piece.encode("utf-8", "replace")
