"""The vocabulary inside a GGUF → the same vocabulary as a `tokenizers` object."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers

from gguf_engine.errors import TokenizerError
from gguf_engine.text.pretokenizers import PRE_TOKENIZERS

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

MAX_TOKENS = 2**21
MAX_ADDED = 2**15
"""Control and user-defined pieces; models that speak or draw have tens of thousands."""
_KEY = "tokenizer.ggml."
_WAY_OUT = "pass the model's tokenizer.json"

END_TEXTS = frozenset(
    {
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<end_of_turn>",
        "<end_of_utterance>",
        "<turn|>",
        "[EOT]",
        "[EOS]",
        "<EOT>",
        "<eos>",
        "</s>",
        "<｜end▁of▁sentence｜>",
    }
)
"""Pieces that end an answer whatever type the file gives them (llama.cpp keeps such a list too)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Vocabulary:
    """
    What `tokenizer.ggml.*` says, checked.

    Attributes:
        kind: "llama" (SentencePiece BPE with byte fallback), "gpt2" (byte-level BPE) or another
            name, which can be compared with a tokenizer.json but not built from.
        tokens: The piece of each id; unique.
        scores: Higher merges first; only "llama" uses them.
        types: NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED or BYTE, one per id.
        merges: "left right", best first; only "gpt2" has them.
        pre: Name of the pre-tokenizer; only "gpt2" has one.
        control_ids: Never encoded from a user's text, skipped when decoding.
        end_ids: Any of them ends an answer.
        rstrip_ids: Control and user-defined tokens that swallow the white space after them.
    """

    kind: str
    tokens: Sequence[str]
    scores: Sequence[float]
    types: Sequence[int]
    merges: Sequence[str]
    pre: str
    bos_id: int | None
    eos_id: int | None
    add_bos: bool
    add_space_prefix: bool
    control_ids: frozenset[int]
    end_ids: frozenset[int]
    rstrip_ids: frozenset[int]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Vocabulary:
        """
        Read the vocabulary out of a GGUF's metadata.

        Args:
            metadata: Key to value; arrays are sequences of Python or NumPy scalars.

        Raises:
            TokenizerError: No vocabulary, arrays of different lengths, a piece twice, an id outside.
        """
        kind = metadata.get(f"{_KEY}model")
        tokens = metadata.get(f"{_KEY}tokens")
        if not isinstance(kind, str) or tokens is None or len(tokens) == 0:
            raise TokenizerError(f"the GGUF holds no vocabulary ({_KEY}model, {_KEY}tokens); {_WAY_OUT}")
        n_vocab = len(tokens)
        if n_vocab > MAX_TOKENS:
            raise TokenizerError(f"{_KEY}tokens holds {n_vocab} pieces; at most {MAX_TOKENS} are read")
        _refuse_twins(tokens)
        types = _array(metadata, "token_type", n_vocab, NORMAL)
        has_types = f"{_KEY}token_type" in metadata
        bos_id = _special_id(metadata, "bos", n_vocab, 1 if kind == "llama" else None)
        eos_id = _special_id(metadata, "eos", n_vocab, 2 if kind == "llama" else None)
        pre = str(metadata.get(f"{_KEY}pre", "default"))
        control = {i for i, t in enumerate(types) if t in (CONTROL, UNKNOWN)}
        control |= {i for i, text in enumerate(tokens) if text in END_TEXTS}
        control |= {
            i for i in (bos_id, eos_id) if i is not None and not (has_types and types[i] in (NORMAL, BYTE))
        }
        add_bos = metadata.get(f"{_KEY}add_bos_token", _adds_bos(kind, pre))
        return cls(
            kind=kind,
            tokens=tokens,
            scores=_array(metadata, "scores", n_vocab, 0.0),
            types=types,
            merges=metadata.get(f"{_KEY}merges", ()),
            pre=pre,
            bos_id=bos_id,
            eos_id=eos_id,
            add_bos=bool(add_bos) and bos_id is not None,
            add_space_prefix=bool(metadata.get(f"{_KEY}add_space_prefix", kind == "llama")),
            control_ids=frozenset(control),
            end_ids=_end_ids(metadata, tokens, control, eos_id),
            rstrip_ids=_rstrip_ids(
                metadata, tokens, control | {i for i, t in enumerate(types) if t == USER_DEFINED}
            ),
        )

    def build(self) -> tokenizers.Tokenizer:
        """
        Return a `tokenizers` object that encodes as llama.cpp does.

        Control tokens are added tokens marked special, user-defined ones plain added tokens.

        Raises:
            TokenizerError: A kind or pre-tokenizer without rules here, or merges that do not fit.
        """
        if self.kind == "llama":
            built = self._build_spm()
        elif self.kind == "gpt2":
            built = self._build_bpe()
        else:
            raise TokenizerError(
                f"no rules to build a tokenizer of type {self.kind!r} (known: llama, gpt2); {_WAY_OUT}"
            )
        add = tokenizers.AddedToken
        defined = [i for i, t in enumerate(self.types) if t == USER_DEFINED and i not in self.control_ids]
        n_added = len(defined) + len(self.control_ids)
        if n_added > MAX_ADDED:
            raise TokenizerError(
                f"{_KEY}token_type names {n_added} control and user-defined pieces; allowed: {MAX_ADDED}"
            )
        built.add_tokens(
            [add(self.tokens[i], normalized=False, rstrip=i in self.rstrip_ids) for i in defined]
        )
        built.add_special_tokens(
            [
                add(self.tokens[i], normalized=False, special=True, rstrip=i in self.rstrip_ids)
                for i in sorted(self.control_ids)
            ]
        )
        return built

    def _build_spm(self) -> tokenizers.Tokenizer:
        unknown = next((self.tokens[i] for i, t in enumerate(self.types) if t == UNKNOWN), None)
        ids = {text: i for i, text in enumerate(self.tokens)}
        built = tokenizers.Tokenizer(
            models.BPE(ids, list(self._spm_merges()), unk_token=unknown, fuse_unk=True, byte_fallback=True)
        )
        spaces: list[Any] = [normalizers.Replace(" ", "▁")]
        texts: list[Any] = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
        if self.add_space_prefix:
            spaces.insert(0, normalizers.Prepend("▁"))
            texts.append(decoders.Strip(" ", 1, 0))
        built.normalizer = normalizers.Sequence(spaces)
        built.decoder = decoders.Sequence(texts)
        return built

    def _spm_merges(self) -> Iterator[tuple[str, str]]:
        """
        Every split of a piece into two pieces, by descending score of the whole.

        SentencePiece merges the pair whose concatenation scores best; `tokenizers` wants the pairs
        in order. Within a piece the longer left part comes first: in a run of one character symbols
        grow from the left, so that is what llama.cpp's rule (equal scores: leftmost) meets. Different
        pieces of one score come by id: `tokenizers` cannot take the leftmost, and SentencePiece gives
        no two pieces one score. Control, unknown and byte pieces are no part and no result of a merge.
        """
        mergeable = self._mergeable()
        order = sorted(mergeable.values(), key=lambda i: (-self.scores[i], i))
        tokens = self.tokens
        for i in order:
            piece = tokens[i]
            for cut in range(len(piece) - 1, 0, -1):
                left = piece[:cut]
                if left in mergeable and (right := piece[cut:]) in mergeable:
                    yield left, right

    def _mergeable(self) -> dict[str, int]:
        barred = (UNKNOWN, CONTROL, BYTE)
        control, types = self.control_ids, self.types
        return {
            text: i for i, text in enumerate(self.tokens) if types[i] not in barred and i not in control
        }

    def _build_bpe(self) -> tokenizers.Tokenizer:
        family = PRE_TOKENIZERS.get(self.pre)
        if family is None:
            raise TokenizerError(
                f"{_KEY}pre is {self.pre!r}, a pre-tokenizer without rules here; {_WAY_OUT} "
                f"(known: {', '.join(sorted(PRE_TOKENIZERS))})"
            )
        ids = {text: i for i, text in enumerate(self.tokens)}
        control = {self.tokens[i] for i in self.control_ids}
        built = tokenizers.Tokenizer(
            models.BPE(ids, list(self._bpe_merges(ids, control)), ignore_merges=family.ignore_merges)
        )
        splits = [
            pre_tokenizers.Split(tokenizers.Regex(regex), behavior="isolated") for regex in family.regexes
        ]
        built.pre_tokenizer = pre_tokenizers.Sequence(
            [*splits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
        )
        built.decoder = decoders.ByteLevel()
        return built

    def _bpe_merges(self, ids: Mapping[str, int], control: set[str]) -> Iterator[tuple[str, str]]:
        for merge in self.merges:
            cut = merge.find(" ", 1)
            left, right = merge[:cut], merge[cut + 1 :]
            whole = left + right
            if cut > 0 and whole in ids and left in ids and right in ids and whole not in control:
                yield left, right


def _refuse_twins(tokens: Sequence[str]) -> None:
    if len(set(tokens)) == len(tokens):
        return
    first: dict[str, int] = {}
    for i, text in enumerate(tokens):
        if text in first:
            raise TokenizerError(
                f"{_KEY}tokens holds {text!r} twice, as ids {first[text]} and {i}; {_WAY_OUT}"
            )
        first[text] = i


def _array(metadata: Mapping[str, Any], name: str, n_vocab: int, default: float) -> Sequence[Any]:
    values = metadata.get(f"{_KEY}{name}")
    if values is None:
        return [default] * n_vocab
    if len(values) != n_vocab:
        raise TokenizerError(f"{_KEY}{name} holds {len(values)} values for {n_vocab} pieces; {_WAY_OUT}")
    # NumPy scalars are slow to compare one by one.
    return values.tolist() if hasattr(values, "tolist") else values  # type: ignore[no-any-return]


def _special_id(metadata: Mapping[str, Any], name: str, n_vocab: int, default: int | None) -> int | None:
    value = metadata.get(f"{_KEY}{name}_token_id")
    if value is None:
        return default if default is not None and default < n_vocab else None
    if not 0 <= int(value) < n_vocab:
        raise TokenizerError(f"{_KEY}{name}_token_id is {value}; allowed: 0..{n_vocab - 1}")
    return int(value)


def _adds_bos(kind: str, pre: str) -> bool:
    if kind == "llama":
        return True
    return kind == "gpt2" and pre in PRE_TOKENIZERS and PRE_TOKENIZERS[pre].add_bos


def _end_ids(
    metadata: Mapping[str, Any], tokens: Sequence[str], control: set[int], eos_id: int | None
) -> frozenset[int]:
    ends = {i for i in control if tokens[i] in END_TEXTS}
    for name in ("eot", "eom"):
        named = _special_id(metadata, name, len(tokens), None)
        if named is not None:
            ends.add(named)
    if {"<|return|>", "<|call|>", "<|end|>"} <= {tokens[i] for i in ends}:
        # In the harmony format <|end|> closes a message, not the answer.
        ends = {i for i in ends if tokens[i] != "<|end|>"}
    return frozenset(ends if eos_id is None else {*ends, eos_id})


def _rstrip_ids(metadata: Mapping[str, Any], tokens: Sequence[str], added: set[int]) -> frozenset[int]:
    """Phi-3's added tokens swallow white space; there is no key for it, llama.cpp goes by name too."""
    name = str(metadata.get("general.name", "")).lower()
    if "phi-3" not in name and "phi3" not in name:
        return frozenset()
    keeps = {"<unk>", "<s>", "<|endoftext|>"}
    return frozenset(i for i in added if tokens[i] not in keeps)
