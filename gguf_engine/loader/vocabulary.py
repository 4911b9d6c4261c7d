"""The vocabulary inside a GGUF header, checked: what it lacks aborts llama.cpp while it loads or later."""

from __future__ import annotations

import math
import re

from gguf_engine.loader.gguf import GGUFFile
from gguf_engine.loader.keys import Keys, shown

BYTE_TYPE = 6
# Twice and more of what any known model has: tokenizers take every text apart at every place.
MAX_TOKEN = 1024
MAX_TEXT = 2**23
MODEL, TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.tokens"
SCORES, TYPES, MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"

# An id out of range here would make generation begin or end wrongly; padding and masks do not matter.
_SPECIAL_IDS = ("bos", "eos", "eot", "eom", "unknown")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
# What llama.cpp knows: SentencePiece, byte-level BPE, and others that need a tokenizer.json here.
_MODELS = ("llama", "gpt2", "bert", "gemma4", "hybriddna", "plamo2", "rwkv", "t5", "whitespace")
# llama.cpp looks these up, unasked and unguarded, when general.name contains "phi-3" or "phi3".
_PHI3_TOKENS = ("</s>", "<unk>", "<s>", "<|endoftext|>")


def check_vocabulary(gguf: GGUFFile) -> int:
    """
    Return the number of tokens.

    Raises:
        ModelFileError: The vocabulary would abort or mislead llama.cpp; code "vocabulary" or "special_id".
    """
    keys = Keys(gguf, "vocabulary")
    model = keys.typed(MODEL, ("string",))
    if model is None:
        keys.fail(MODEL, "is missing, so the file has no tokenizer", "convert the model anew")
    if model not in _MODELS:
        keys.fail(MODEL, f"is {shown(model)}; allowed: {', '.join(_MODELS)}", "convert the model anew")
    tokens = keys.typed(TOKENS, ("array[string]",))
    if not tokens:
        keys.fail(TOKENS, "is missing or empty", "convert the model anew")
    distinct = set(tokens)
    _check_texts(keys, tokens, distinct)
    _check_columns(keys, tokens)
    if model == "llama":
        _check_byte_tokens(keys, distinct)
    if model == "gpt2" and keys.typed(MERGES, ("array[string]",)) is None:
        keys.fail(MERGES, "is missing; a gpt2 tokenizer cannot work without", "convert the model anew")
    _check_special_ids(keys, len(tokens))
    name = gguf.metadata.get("general.name")
    if isinstance(name, str) and re.search(r"phi-?3", name.lower()):
        for token in _PHI3_TOKENS:
            if token not in distinct:
                keys.fail(TOKENS, f"lack {token!r}, which llama.cpp looks up in models named {shown(name)}")
    return len(tokens)


def _check_texts(keys: Keys, tokens: tuple[str, ...], distinct: set[str]) -> None:
    if "" in distinct:  # llama.cpp names each by its id, and then takes that name for its text
        tokens = tuple(text or f"[EMPTY_{index}]" for index, text in enumerate(tokens))
        distinct = set(tokens)
    if len(distinct) < len(tokens):
        first: dict[str, int] = {}
        other = next(index for index, token in enumerate(tokens) if first.setdefault(token, index) != index)
        ids = f"id {first[tokens[other]]} and id {other}"
        keys.fail(TOKENS, f"{shown(tokens[other])} is the text of both {ids}; texts are unique")
    joined = "".join(tokens)
    longest = max(map(len, tokens))
    if longest > MAX_TOKEN:
        index = next(index for index, token in enumerate(tokens) if len(token) == longest)
        keys.fail(TOKENS, f"the text of id {index} has {longest} characters; allowed: at most {MAX_TOKEN}")
    if len(joined) > MAX_TEXT:
        keys.fail(TOKENS, f"have {len(joined)} characters together; allowed: at most {MAX_TEXT}")
    if "\0" in joined:
        index = next(index for index, token in enumerate(tokens) if "\0" in token)
        keys.fail(TOKENS, f"the text of id {index} holds a NUL: {shown(tokens[index])}")
    try:
        joined.encode()
    except UnicodeEncodeError:
        index = next(index for index, token in enumerate(tokens) if not _is_unicode(token))
        keys.fail(TOKENS, f"the text of id {index} is not UTF-8: {shown(tokens[index])}")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _check_columns(keys: Keys, tokens: tuple[str, ...]) -> None:
    """Check that scores and types have one entry a token, and that only byte tokens are called so."""
    scores = keys.typed(SCORES, ("array[f32]", "array[i32]"))
    types = keys.typed(TYPES, ("array[i32]",))
    for key, column in ((SCORES, scores), (TYPES, types)):
        if column is not None and len(column) != len(tokens):
            keys.fail(key, f"has {len(column)} entries for {len(tokens)} tokens")
    if scores is not None and not all(map(math.isfinite, scores)):
        index = next(index for index, score in enumerate(scores) if not math.isfinite(score))
        keys.fail(SCORES, f"is {scores[index]} for id {index}; allowed: finite numbers")
    if types is None:
        return
    if not set(types) <= set(range(7)):
        index = next(index for index, kind in enumerate(types) if not 0 <= kind < 7)
        keys.fail(TYPES, f"is {types[index]} for id {index}; allowed: 0..6")
    if BYTE_TYPE not in types:
        return
    for index, kind in enumerate(types):
        if kind == BYTE_TYPE and not _BYTE.fullmatch(tokens[index]):
            keys.fail(
                TYPES,
                f"calls id {index} a byte, but its text is {shown(tokens[index])}; allowed: <0x00>..<0xFF>",
            )


def _check_byte_tokens(keys: Keys, distinct: set[str]) -> None:
    missing = [byte for byte in range(256) if f"<0x{byte:02X}>" not in distinct]
    if missing:
        keys.fail(TOKENS, f"lack <0x{missing[0]:02X}> and {len(missing) - 1} more of the 256 byte tokens")


def _check_special_ids(keys: Keys, n_tokens: int) -> None:
    known: set[str] = set()
    for name in _SPECIAL_IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        value = keys.typed(key, ("u32",))
        if value is None:
            continue
        if value >= n_tokens:
            keys.fail(key, f"is {value}; allowed: 0..{n_tokens - 1}", code="special_id")
        known.add(name)
    for name in ("bos", "eos"):
        flag = f"tokenizer.ggml.add_{name}_token"
        if keys.typed(flag, ("bool",)) and name not in known:
            keys.fail(flag, f"is true, but tokenizer.ggml.{name}_token_id is missing", code="special_id")
