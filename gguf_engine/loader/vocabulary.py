"""The vocabulary inside a GGUF header, checked: what it lacks aborts llama.cpp while it loads or later."""

from __future__ import annotations

import re
from collections import Counter

from gguf_engine.loader.gguf import GGUFFile
from gguf_engine.loader.keys import Keys

BYTE_TYPE = 6
MODEL, TOKENS = "tokenizer.ggml.model", "tokenizer.ggml.tokens"
SCORES, TYPES, MERGES = "tokenizer.ggml.scores", "tokenizer.ggml.token_type", "tokenizer.ggml.merges"

# An id out of range here would make generation begin or end wrongly; padding and masks do not matter.
_SPECIAL_IDS = ("bos", "eos", "eot", "eom", "unknown")
_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
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
                keys.fail(TOKENS, f"lack {token!r}, which llama.cpp looks up in models named {name!r}")
    return len(tokens)


def _check_texts(keys: Keys, tokens: tuple[str, ...], distinct: set[str]) -> None:
    # Two empty texts are no duplicates: llama.cpp names each by its id.
    if len(distinct) < len(tokens):
        counts = Counter(tokens)
        for index, token in enumerate(tokens):
            if token and counts[token] > 1:
                other = tokens.index(token, index + 1)
                keys.fail(
                    TOKENS, f"{token!r} is the text of both id {index} and id {other}; texts are unique"
                )
    joined = "".join(tokens)
    if "\0" in joined:
        index = next(index for index, token in enumerate(tokens) if "\0" in token)
        keys.fail(TOKENS, f"the text of id {index} holds a NUL: {tokens[index]!r}")
    try:
        joined.encode()
    except UnicodeEncodeError:
        index = next(index for index, token in enumerate(tokens) if not _is_unicode(token))
        keys.fail(TOKENS, f"the text of id {index} is not UTF-8: {tokens[index]!r}")


def _is_unicode(text: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" for char in text)


def _check_columns(keys: Keys, tokens: tuple[str, ...]) -> None:
    """Check that scores and types have one entry a token, and that only byte tokens are called so."""
    scores = keys.typed(SCORES, ("array[f32]",))
    types = keys.typed(TYPES, ("array[i32]", "array[u32]"))
    for key, column in ((SCORES, scores), (TYPES, types)):
        if column is not None and len(column) != len(tokens):
            keys.fail(key, f"has {len(column)} entries for {len(tokens)} tokens")
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
                f"calls id {index} a byte, but its text is {tokens[index]!r}; allowed: <0x00>..<0xFF>",
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
