"""Mutations of the vocabulary and of the chat template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gguf_mutations import Base, Variants, mutation
from gguf_raw import ARRAY, BOOL, F32, F64, I32, I64, STRING, TYPE_NAMES, U8, U32, U64, RawModel, texts

TOKENS, SCORES = "tokenizer.ggml.tokens", "tokenizer.ggml.scores"
TYPES, MERGES = "tokenizer.ggml.token_type", "tokenizer.ggml.merges"
_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE = range(1, 7)


def _with_tokens(base: Base, changes: dict[int, bytes]) -> RawModel:
    raw = base.raw.copy()
    tokens = raw.strings(TOKENS)
    for index, text in changes.items():
        tokens[index] = text
    raw.put(TOKENS, ARRAY, texts(tokens))
    return raw


def _with_array(base: Base, name: str, kind: int, values: Sequence[Any]) -> RawModel:
    raw = base.raw.copy()
    raw.put(name, ARRAY, (kind, values))
    return raw


@mutation()
def tokens_array(base: Base) -> Variants:
    """The list of tokens is empty, shorter or longer than the embedding, or not a list of texts."""
    tokens = base.raw.strings(TOKENS)
    for label, kept in (
        ("none", []),
        ("one", tokens[:1]),
        ("one less", tokens[:-1]),
        ("half", tokens[:200]),
    ):
        yield label, _with_array(base, TOKENS, STRING, kept)
    yield "one more", _with_array(base, TOKENS, STRING, [*tokens, b"more"])
    yield "twice", _with_array(base, TOKENS, STRING, tokens + [b"x" + token for token in tokens])
    for kind in (U8, I32, F32, BOOL, U64):
        yield f"of {TYPE_NAMES[kind]}", _with_array(base, TOKENS, kind, [1] * len(tokens))
    raw = base.raw.copy()
    raw.put(TOKENS, STRING, "a b c")
    yield "one text", raw


@mutation()
def duplicate_tokens(base: Base) -> Variants:
    """Two tokens have the same text."""
    tokens = base.raw.strings(TOKENS)
    for first, second in ((0, 1), (1, 300), (5, 6), (len(tokens) - 2, len(tokens) - 1), (200, 399)):
        yield f"{first} and {second}", _with_tokens(base, {second: tokens[first]})
    yield "all", _with_tokens(base, dict.fromkeys(range(len(tokens)), b"same"))
    # llama.cpp names an empty token by its id, which another token's text may be.
    yield "with the name of an empty one", _with_tokens(base, {300: b"", 301: b"[EMPTY_300]"})


@mutation()
def empty_tokens(base: Base) -> Variants:
    """Tokens have no text."""
    n_vocab = len(base.raw.strings(TOKENS))
    for indices in ([0], [1], [300], [300, 301, 302], [n_vocab - 1], list(range(n_vocab))):
        yield f"{len(indices)} from {indices[0]}", _with_tokens(base, dict.fromkeys(indices, b""))


@mutation()
def odd_tokens(base: Base) -> Variants:
    """A token's text holds NUL, is not UTF-8, is white space, a control sequence or very long."""
    odd = (
        b"\0", b"a\0b", b"\xff", b"\xe2\x96", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b" ", b"\n", b"\t \r",
        b"\x1b[2J", b"\xe2\x80\xae", b"\xef\xbb\xbf", b"a" * 512, b"a" * 65_536, b"a" * 2**20,
        b"a" * (2**20 + 1), b"%s%n", b"<0x00>x", b"<0xGG>", b"<0x0a>", b"<0x100>", b"\xc4\x80" * 40_000,
    )  # fmt: skip
    for text in odd:
        for index in (0, 350):
            yield f"{index} {text[:12]!r} of {len(text)}", _with_tokens(base, {index: text})


@mutation()
def magic_tokens(base: Base) -> Variants:
    """Tokens have texts by which llama.cpp recognizes ends and special roles."""
    sets: tuple[tuple[bytes, ...], ...] = (
        (b"<|return|>", b"<|call|>", b"<|end|>"), (b"<|calls|>", b"<|flush|>", b"<|end|>"),
        (b"<|channel|>", b"<|message|>", b"<|start|>", b"<|constrain|>"), (b"<|im_end|>", b"<|eot_id|>"),
        (b"<fim_prefix>", b"<fim_suffix>", b"<fim_middle>"),
        (b"<|fim_pad|>", b"<|repo_name|>", b"<|file_sep|>"),
        (b"<|eom_id|>",), (b"<end_of_turn>", b"<eos>"), (b"[UNK]", b"[MASK]", b"[PAD]"), (b"<oov>",),
    )  # fmt: skip
    for names in sets:
        taken = set(base.raw.strings(TOKENS))
        fresh = [name for name in names if name not in taken]
        yield names[0].decode(), _with_tokens(base, {380 + i: name for i, name in enumerate(fresh)})


@mutation()
def byte_tokens(base: Base) -> Variants:
    """Tokens that stand for single bytes are missing or written in another way."""
    tokens = base.raw.strings(TOKENS)
    wanted = [index for index, text in enumerate(tokens) if text.startswith(b"<0x")]
    single = [index for index, text in enumerate(tokens) if len(text.decode()) == 1]
    found = wanted or single
    for count in (1, 10, len(found)):
        yield f"{count} renamed", _with_tokens(base, {i: b"r%d" % i for i in found[:count]})
    yield "newline", _with_tokens(base, {found[10]: b"no newline"})
    lower = {i: tokens[i].lower() for i in found if tokens[i].lower() != tokens[i]}
    fresh = {i: text for i, text in lower.items() if text not in tokens}
    yield "lower case", _with_tokens(base, fresh)


@mutation()
def token_types(base: Base) -> Variants:
    """The types of tokens are too few, out of range, of the wrong type, or call a word a byte."""
    types = base.raw.numbers(TYPES)
    n_vocab = len(types)
    for label, values in (
        ("none", []),
        ("one less", types[:-1]),
        ("one more", [*types, 1]),
        ("half", types[:9]),
    ):
        yield label, _with_array(base, TYPES, I32, values)
    for value in (-1, 0, 7, 8, 255, 2**31 - 1, -(2**31)):
        yield f"last is {value}", _with_array(base, TYPES, I32, [*types[:-1], value])
    for value in (_NORMAL, _UNKNOWN, _CONTROL, _USER, _UNUSED, _BYTE):
        yield f"all are {value}", _with_array(base, TYPES, I32, [value] * n_vocab)
        yield f"first is {value}", _with_array(base, TYPES, I32, [value, *types[1:]])
        yield f"350 is {value}", _with_array(base, TYPES, I32, [*types[:350], value, *types[351:]])
    for kind in (U8, U32, U64, I64, F32, F64, BOOL, STRING):
        yield f"as {TYPE_NAMES[kind]}", _with_array(base, TYPES, kind, [1] * n_vocab)
    raw = base.raw.copy()
    raw.drop(TYPES)
    yield "missing", raw


@mutation()
def token_scores(base: Base) -> Variants:
    """The scores of tokens are too few, not numbers, or of the wrong type."""
    n_vocab = len(base.raw.strings(TOKENS))
    for label, count in (
        ("none", 0),
        ("one less", n_vocab - 1),
        ("one more", n_vocab + 1),
        ("half", n_vocab // 2),
    ):
        yield label, _with_array(base, SCORES, F32, [0.0] * count)
    for value in (float("nan"), float("inf"), float("-inf"), 0.0, 3e38):
        yield f"all {value}", _with_array(base, SCORES, F32, [value] * n_vocab)
        yield (
            f"300 is {value}",
            _with_array(base, SCORES, F32, [-1.0] * 300 + [value] + [-2.0] * (n_vocab - 301)),
        )
    for kind in (U8, I32, U32, I64, F64, BOOL, STRING):
        yield f"as {TYPE_NAMES[kind]}", _with_array(base, SCORES, kind, [1] * n_vocab)
    if base.raw.has(SCORES):
        raw = base.raw.copy()
        raw.drop(SCORES)
        yield "missing", raw


@mutation()
def merges(base: Base) -> Variants:
    """The merges are empty, malformed, name tokens that do not exist, or are not texts."""
    odd: dict[str, list[bytes]] = {
        "none": [], "empty text": [b""], "one space": [b" "], "two spaces": [b"  "], "no space": [b"ab"],
        "three parts": [b"a b c"], "unknown tokens": [b"qqq zzz"], "nul": [b"a\0 b"],
        "not utf-8": [b"\xff \xfe"], "leading space": [b" a"], "trailing space": [b"a "],
        "same twice": [b"a b"] * 2, "10,000": [b"%d x" % index for index in range(10_000)],
        "long": [b"a" * 100_000 + b" b"],
    }  # fmt: skip
    for label, values in odd.items():
        yield label, _with_array(base, MERGES, STRING, values)
        if base.raw.has(MERGES) and values:
            yield f"{label}, in front", _with_array(base, MERGES, STRING, values + base.raw.strings(MERGES))
    for kind in (U8, I32, F32, BOOL):
        yield f"as {TYPE_NAMES[kind]}", _with_array(base, MERGES, kind, [1, 0])
    raw = base.raw.copy()
    raw.put(MERGES, STRING, "a b")
    yield "one text", raw


_IDS = ("bos", "eos", "eot", "eom", "unknown", "padding", "seperator", "mask", "cls", "prefix", "suffix",
        "middle",        "fim_pre", "fim_suf", "fim_mid", "fim_pad", "fim_rep", "fim_sep")  # fmt: skip


@mutation()
def special_ids(base: Base) -> Variants:
    """A special id lies outside the vocabulary, is not an integer, or is missing."""
    n_vocab = len(base.raw.strings(TOKENS))
    for name in _IDS:
        key = f"tokenizer.ggml.{name}_token_id"
        for value in (0, n_vocab - 1, n_vocab, 2**31 - 1, 2**31, 2**32 - 1):
            raw = base.raw.copy()
            raw.put(key, U32, value)
            yield f"{name} {value}", raw
        others: tuple[tuple[int, Any], ...] = (
            (I32, -1),
            (I32, 1),
            (U64, 2**63),
            (F32, 1.0),
            (STRING, "<s>"),
        )
        for kind, value in (*others, (ARRAY, (U32, [1]))):
            raw = base.raw.copy()
            raw.put(key, kind, value)
            yield f"{name} {TYPE_NAMES[kind]} {value}", raw
    raw = base.raw.copy()
    for name in ("bos", "eos", "unknown"):
        raw.drop(f"tokenizer.ggml.{name}_token_id")
    yield "none at all", raw


@mutation()
def special_flags(base: Base) -> Variants:
    """A special token is to be added whose id is not there, or the flag is not a boolean."""
    for name in ("bos", "eos", "sep"):
        raw = base.raw.copy()
        raw.put(f"tokenizer.ggml.add_{name}_token", BOOL, 1)
        yield f"add {name}", raw
        raw = raw.copy()
        for known in ("bos", "eos"):
            raw.drop(f"tokenizer.ggml.{known}_token_id")
        yield f"add {name} without ids", raw
        values: tuple[tuple[int, Any], ...] = ((U32, 1), (U8, 1), (STRING, "true"), (F32, float("nan")))
        for kind, value in values:
            raw = base.raw.copy()
            raw.put(f"tokenizer.ggml.add_{name}_token", kind, value)
            yield f"add {name} as {TYPE_NAMES[kind]}", raw


@mutation()
def tokenizer_model(base: Base) -> Variants:
    """The tokenizer is of another kind than its tables, of an unknown kind, or none."""
    kinds = (
        "llama",
        "gpt2",
        "bert",
        "t5",
        "rwkv",
        "plamo2",
        "gemma4",
        "hybriddna",
        "whitespace",
        "test",
        "none",
    )
    for text in (*kinds, "no_vocab", "replit", "", "GPT2", "a" * 5000):
        raw = base.raw.copy()
        raw.put("tokenizer.ggml.model", STRING, text)
        yield repr(text[:20]), raw
        raw = raw.copy()
        raw.put(MERGES, ARRAY, texts(["a b"]))
        raw.put("tokenizer.ggml.precompiled_charsmap", ARRAY, (U8, [255] * 8))
        yield f"{text[:20]!r} with every table", raw
    raw = base.raw.copy()
    raw.put("tokenizer.ggml.model", U32, 1)
    yield "a number", raw


@mutation()
def pretokenizer(base: Base) -> Variants:
    """The cutting rule before the tokenizer is unknown, another model's, or not a text."""
    rules = ("default", "llama-bpe", "qwen2", "gpt-2", "deepseek-v3", "kimi-k2", "whitespace", "tekken",
             "gemma4", "superbpe", "chatglm-bpe", "jina-v2-code", "", "unknown", "GPT-2",
             "a" * 5000)  # fmt: skip
    for text in rules:
        raw = base.raw.copy()
        raw.put("tokenizer.ggml.pre", STRING, text)
        yield repr(text[:20]), raw
    for kind, value in ((U32, 1), (ARRAY, texts(["gpt-2"]))):
        raw = base.raw.copy()
        raw.put("tokenizer.ggml.pre", kind, value)
        yield f"a {TYPE_NAMES[kind]}", raw


@mutation()
def phi3_by_name(base: Base) -> Variants:
    """The model's name makes llama.cpp look up Phi-3's tokens, which are not there."""
    tokens = base.raw.strings(TOKENS)
    for name in ("Phi-3 mini", "my phi3", "PHI3", "phi_3", "Phi-4"):
        raw = base.raw.copy()
        raw.put("general.name", STRING, name)
        yield name, raw
        for lost in (b"</s>", b"<unk>", b"<s>", b"<|endoftext|>"):
            if lost in tokens:
                changed = _with_tokens(base, {tokens.index(lost): b"lost"})
                changed.put("general.name", STRING, name)
                yield f"{name} without {lost.decode()}", changed


@mutation()
def other_tables(base: Base) -> Variants:
    """Tables that other tokenizers read are there, with numbers that make no sense."""
    tables: dict[str, tuple[tuple[int, Any], ...]] = {
        "tokenizer.ggml.suppress_tokens": ((ARRAY, (I32, [-1, 2**31 - 1])), (ARRAY, (U32, [1])), (U32, 1)),
        "tokenizer.ggml.precompiled_charsmap": (
            (ARRAY, (U8, [])),
            (ARRAY, (U8, [255] * 64)),
            (STRING, "x"),
        ),
        "tokenizer.ggml.token_type_count": ((U32, 0), (U32, 2**32 - 1), (I32, -1)),
        "tokenizer.huggingface.json": ((STRING, "{"), (STRING, "[" * 10_000), (U32, 1)),
        "tokenizer.rwkv.world": ((STRING, "x"), (U32, 1)),
    }
    for name, values in tables.items():
        for kind, value in values:
            raw = base.raw.copy()
            raw.put(name, kind, value)
            yield f"{name} {TYPE_NAMES[kind]} {str(value)[:30]}", raw


_TEMPLATES = (
    "", "{{", "{% for x in messages %}", "{{ undefined.attribute }}", "{% include 'x' %}",
    "{{ ''.__class__ }}", "{% for i in range(10**9) %}x{% endfor %}", "{{ 'a' * 10**9 }}", "\0",
    "{{ raise_exception('no') }}",
    "{% set x = [] %}{% for m in messages %}{{ x.append(m) }}{% endfor %}", "{{" * 5000, "a" * (2**18 + 1),
)  # fmt: skip


@mutation(once=True)
def chat_template(base: Base) -> Variants:
    """The chat template is broken, hostile, enormous or not a text."""
    for text in _TEMPLATES:
        raw = base.raw.copy()
        raw.put("tokenizer.chat_template", STRING, text)
        yield f"{text[:30]!r} of {len(text)}", raw
    for kind, value in ((U32, 1), (ARRAY, texts(["a"])), (BOOL, 1)):
        raw = base.raw.copy()
        raw.put("tokenizer.chat_template", kind, value)
        yield f"a {TYPE_NAMES[kind]}", raw


@mutation(harmless=True)
def vocabulary_variants(base: Base) -> Variants:
    """The vocabulary is unusual and fine: no scores or types where none are needed, other ends."""
    raw = base.raw.copy()
    raw.put("tokenizer.ggml.eos_token_id", U32, base.raw.integer("tokenizer.ggml.bos_token_id"))
    yield "begin is end", raw
    raw = base.raw.copy()
    raw.drop("tokenizer.ggml.unknown_token_id")
    yield "no unknown token", raw
    raw = base.raw.copy()
    raw.drop("tokenizer.chat_template")
    yield "no template", raw
    raw = base.raw.copy()
    raw.put("tokenizer.ggml.padding_token_id", U32, 0)
    yield "padding", raw
