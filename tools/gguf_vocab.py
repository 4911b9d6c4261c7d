"""
Small vocabularies for generated models: SentencePiece-like ("spm") and byte-level BPE ("bpe").

The pieces come from merging the commonest pairs of a fixed text, so that both tokenizers of llama.cpp
and the tokenizer.json written here cut a text the same way.
"""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
PHI3_CONTROLS = ("<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
_PHI3_KEEPS_SPACE = {"<unk>", "<s>", "<|endoftext|>"}
SPM_SPACE = "▁"

_TEXT = """
The ice is quiet now. A puck slides over the blue line, and the goalkeeper waits in the cold evening air.
Write a short poem about the winter. What is the capital of a country, and why did people build it there?
Once upon a time there was a small engine that could read and write. It was not the fastest one, but it
never forgot what it had been told, and it answered every question with the same careful words. When the
snow began to fall the engine would count the flakes: one, two, three, four, five, six, seven, eight, nine,
ten. Then it would stop, think about the number, and start again from 0 to 9. Please explain how this works
for a child who has never seen the sea, and give them an example that they can try at home with friends.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """
    The vocabulary of a generated model.

    Attributes:
        kind: "spm" or "bpe".
        tokens: One text an id.
        scores: One float an id; for "spm" higher merges first.
        types: One token type an id (1 normal, 2 unknown, 3 control, 6 byte).
        merges: Pairs in order of rank; for "spm" every way to make each piece.
        bos, eos, unknown: Ids.
    """

    kind: str
    tokens: tuple[str, ...]
    scores: tuple[float, ...]
    types: tuple[int, ...]
    merges: tuple[tuple[str, str], ...]
    bos: int
    eos: int
    unknown: int

    @property
    def metadata_name(self) -> str:
        """Return the value of `tokenizer.ggml.model`."""
        return "llama" if self.kind == "spm" else "gpt2"


@lru_cache(maxsize=8)
def make_vocabulary(kind: str, n_vocab: int) -> Vocabulary:
    """
    Return a vocabulary of exactly n_vocab tokens.

    Args:
        kind: "spm" or "bpe".
        n_vocab: >= 330 for "spm", >= 262 for "bpe". What the text cannot fill is filled with
            normal tokens that no text is cut into.

    Raises:
        ValueError: Another kind, or too few tokens.
    """
    makers = {"spm": _spm, "bpe": _bpe}
    if kind not in makers:
        raise ValueError(f"vocab is {kind!r}; allowed: {', '.join(makers)}")
    return makers[kind](n_vocab)


def _spm(n_vocab: int) -> Vocabulary:
    head = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *PHI3_CONTROLS]
    words = [SPM_SPACE + word for word in _TEXT.split()]
    letters = sorted(set("".join(words)))
    n_free = n_vocab - len(head) - len(letters)
    if n_free < 0:
        raise ValueError(f"n_vocab is {n_vocab}; an spm vocabulary has at least {n_vocab - n_free} tokens")
    merged = [left + right for left, right in _common_pairs(words, n_free)]
    merged += _filler(n_free - len(merged))
    pieces = merged + letters
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    types = [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [CONTROL] * len(PHI3_CONTROLS)
    return Vocabulary(
        kind="spm",
        tokens=(*head, *pieces),
        scores=(*[0.0] * len(head), *(-float(rank) for rank in range(len(pieces)))),
        types=(*types, *[NORMAL] * len(pieces)),
        merges=tuple(pair for piece in merged for pair in _splits(piece, ranks)),
        bos=1,
        eos=2,
        unknown=0,
    )


def _bpe(n_vocab: int) -> Vocabulary:
    alphabet = byte_alphabet()
    n_free = n_vocab - len(alphabet) - len(PHI3_CONTROLS) - 1
    if n_free < 0:
        raise ValueError(f"n_vocab is {n_vocab}; a bpe vocabulary has at least {n_vocab - n_free} tokens")
    words = ["".join(alphabet[byte] for byte in f" {word}".encode()) for word in _TEXT.split()]
    merges = _common_pairs(words, n_free)
    normal = [*alphabet, *(left + right for left, right in merges), *_filler(n_free - len(merges))]
    tokens = [*normal, "<s>", *PHI3_CONTROLS]
    return Vocabulary(
        kind="bpe",
        tokens=tuple(tokens),
        scores=(0.0,) * len(tokens),
        types=(*[NORMAL] * len(normal), *[CONTROL] * (1 + len(PHI3_CONTROLS))),
        merges=tuple(merges),
        bos=tokens.index("<s>"),
        eos=tokens.index("<|endoftext|>"),
        unknown=tokens.index("<|endoftext|>"),
    )


@lru_cache(maxsize=1)
def byte_alphabet() -> tuple[str, ...]:
    """
    Return the printable character that stands for each byte in a byte-level BPE.

    Source: bytes_to_unicode of GPT-2's encoder.py.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    table = {byte: chr(byte) for byte in printable}
    table |= {byte: chr(256 + index) for index, byte in enumerate(others)}
    return tuple(table[byte] for byte in range(256))


def _filler(count: int) -> list[str]:
    return [f"⟦{index}⟧" for index in range(count)]


def _splits(piece: str, ranks: dict[str, int]) -> list[tuple[str, str]]:
    cuts = ((piece[:cut], piece[cut:]) for cut in range(1, len(piece)))
    return [(left, right) for left, right in cuts if left in ranks and right in ranks]


def _common_pairs(words: list[str], count: int) -> list[tuple[str, str]]:
    """Return up to count merges, the commonest pair first (ties: the lower text)."""
    cuts = [list(word) for word in words]
    merges: list[tuple[str, str]] = []
    made: set[str] = set()
    while len(merges) < count:
        pairs = Counter(pair for cut in cuts for pair in pairwise(cut) if pair[0] + pair[1] not in made)
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], pair))
        merges.append(best)
        made.add(best[0] + best[1])
        cuts = [_merge(cut, best) if best[0] in cut else cut for cut in cuts]
    return merges


def _merge(cut: list[str], pair: tuple[str, str]) -> list[str]:
    merged: list[str] = []
    for piece in cut:
        if merged and merged[-1] == pair[0] and piece == pair[1]:
            merged[-1] += piece
        else:
            merged.append(piece)
    return merged


def write_tokenizer_json(vocabulary: Vocabulary, path: Path, *, rstrip: bool = False) -> Path:
    """
    Write the tokenizer.json that cuts texts as the vocabulary inside the GGUF does.

    Args:
        vocabulary: What the GGUF holds.
        path: Where.
        rstrip: Control tokens swallow the whitespace after them, as Phi-3's do.
    """
    added = [
        {
            "id": index,
            "content": text,
            "single_word": False,
            "lstrip": False,
            "rstrip": rstrip and text not in _PHI3_KEEPS_SPACE,
            "normalized": False,
            "special": True,
        }
        for index, (text, kind) in enumerate(zip(vocabulary.tokens, vocabulary.types, strict=True))
        if kind in {UNKNOWN, CONTROL}
    ]
    spm = vocabulary.kind == "spm"
    document: dict[str, Any] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        **(_spm_pipeline(vocabulary) if spm else _bpe_pipeline()),
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>" if spm else None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": spm,
            "byte_fallback": spm,
            "vocab": {text: index for index, text in enumerate(vocabulary.tokens)},
            "merges": [list(pair) for pair in vocabulary.merges],
        },
    }
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")
    return path


def _spm_pipeline(vocabulary: Vocabulary) -> dict[str, Any]:
    bos = vocabulary.tokens[vocabulary.bos]
    return {
        "normalizer": {
            "type": "Sequence",
            "normalizers": [
                {"type": "Prepend", "prepend": SPM_SPACE},
                {"type": "Replace", "pattern": {"String": " "}, "content": SPM_SPACE},
            ],
        },
        "pre_tokenizer": None,
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [
                {"SpecialToken": {"id": bos, "type_id": 0}},
                {"Sequence": {"id": "A", "type_id": 0}},
            ],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {bos: {"id": bos, "ids": [vocabulary.bos], "tokens": [bos]}},
        },
        "decoder": {
            "type": "Sequence",
            "decoders": [
                {"type": "Replace", "pattern": {"String": SPM_SPACE}, "content": " "},
                {"type": "ByteFallback"},
                {"type": "Fuse"},
                {"type": "Strip", "content": " ", "start": 1, "stop": 0},
            ],
        },
    }


def _bpe_pipeline() -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    return {
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
    }
