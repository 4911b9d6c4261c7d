"""tokenizer.json files that try to kill, stall or fool: each is refused in a sentence, or works."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from typing import Any

from text_samples import spm_json

WORKS = {
    "truncation",
    "truncation of nothing",
    "padding",
    "padding by zero",
    "dropout",
    "no added tokens",
    "many merges of one letter",
    "published patterns",
    "strip of the decoder",
    "many control tokens",
    "sparse ids",
    "an unknown token out of the vocab",
}
"""Those that must load all the same, and encode as if the hostile part were not there."""


def _base() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(spm_json())
    return data


def _with(**parts: Any) -> str:
    return json.dumps(_base() | parts)


def _model(**parts: Any) -> str:
    data = _base()
    data["model"] |= parts
    return json.dumps(data)


def _vocab(**pieces: Any) -> str:
    data = _base()
    data["model"]["vocab"] |= pieces
    return json.dumps(data)


def _added(*tokens: Any) -> str:
    data = _base()
    data["added_tokens"] += tokens
    return json.dumps(data)


def _token(i: Any, content: Any, **flags: Any) -> dict[str, Any]:
    plain = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    return {"id": i, "content": content, **plain, "special": True, **flags}


def _split(pattern: Any, behavior: str = "Isolated") -> str:
    return _with(pre_tokenizer={"type": "Split", "pattern": pattern, "behavior": behavior, "invert": False})


def _regex(regex: str) -> str:
    return _split({"Regex": regex})


def _replace(pattern: str, content: str) -> dict[str, Any]:
    return {"type": "Replace", "pattern": {"String": pattern}, "content": content}


def _template(ids: Any, single: Any = None) -> str:
    return _with(
        post_processor={
            "type": "TemplateProcessing",
            "single": single
            or [{"SpecialToken": {"id": "x", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [],
            "special_tokens": {"x": {"id": "x", "ids": ids, "tokens": ["x"]}},
        }
    )


def _unigram(vocab: Any, **parts: Any) -> str:
    return json.dumps(
        {"model": {"type": "Unigram", "unk_id": 0, "vocab": vocab, **parts}, "added_tokens": []}
    )


def _nested(depth: int) -> dict[str, Any]:
    step: dict[str, Any] = {"type": "NFC"}
    for _ in range(depth):
        step = {"type": "Sequence", "normalizers": [step]}
    return step


def cases() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file."""
    yield from _documents()
    yield from _vocabularies()
    yield from _patterns()
    yield from _components()


def _documents() -> Iterator[tuple[str, str]]:
    yield "empty", ""
    yield "an HTML page", "<!DOCTYPE html><html></html>"
    yield "a Git LFS pointer", "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"
    yield "cut short", spm_json()[:5000]
    yield "deep lists", "[" * 100_000
    yield "deep objects", '{"a":' * 100_000
    yield "deep lists that end", '{"model":' + "[" * 900 + "]" * 900 + "}"
    yield "a million empty lists", '{"model": [' + "[]," * 2_000_000 + "[]]}"
    yield "millions of numbers", '{"model": [' + "1," * 4_000_000 + "1]}"
    yield "a number of many digits", '{"model": {"vocab": {"a": ' + "9" * 100_000 + "}}}"
    yield "not a number", _vocab(x=float("nan"))
    yield "a list", "[]"
    yield "a model that is a text", '{"model": "BPE"}'
    yield (
        "a model twice",
        spm_json()[:-1] + ', "model": {"type": "BPE", "vocab": {"a": 4294967295}, "merges": []}}',
    )
    yield "a normalizer twice", spm_json()[:-1] + ', "normalizer": null}'
    yield "a version from the future", _with(version="99.0")
    yield (
        "truncation",
        _with(truncation={"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}),
    )
    yield (
        "truncation of nothing",
        _with(truncation={"direction": "Left", "max_length": 0, "strategy": "OnlyFirst", "stride": 0}),
    )
    yield "truncation with a wrong type", _with(truncation={"max_length": "x"})
    padding = {"direction": "Right", "pad_id": 9, "pad_type_id": 0, "pad_token": "x"}
    yield "padding", _with(padding={"strategy": {"Fixed": 2**40}, "pad_to_multiple_of": None, **padding})
    yield "padding by zero", _with(padding={"strategy": "BatchLongest", "pad_to_multiple_of": 0, **padding})


def _vocabularies() -> Iterator[tuple[str, str]]:
    yield "an unknown model", _model(type="Neural")
    yield "a negative id", _vocab(x=-1)
    yield "an id of 2^31", _vocab(x=2**31)
    yield "an id of 2^32 - 1", _vocab(x=2**32 - 1)
    yield "an id of 2^64", _vocab(x=2**64)
    yield "an id that is a text", _vocab(x="1")
    yield "an id with a point", _vocab(x=1.0)
    yield "an id that is true", _vocab(x=True)
    yield "two pieces of one id", _vocab(x1=5, x2=5)
    yield "sparse ids", _vocab(zzzz=2_000_000)
    yield "a piece of many characters", _vocab(**{"x" * 100_000: 5000})
    yield "a lone surrogate", _vocab(**{"\ud800": 5000})
    yield "no vocab", _model(vocab=None)
    yield "a vocab of lists", _model(vocab=[["a", 0.0]])
    yield "merges out of the vocab", _model(merges=[["x1", "x2"]])
    yield "a merge of three", _model(merges=[["a", "b", "c"]])
    yield "a merge of one", _model(merges=["a"])
    yield "merges of numbers", _model(merges=[[1, 2]])
    yield "merges that are a text", _model(merges="a b")
    yield "many merges of one letter", _model(merges=_base()["model"]["merges"][:1] * 100_000)
    yield "an unknown token out of the vocab", _model(unk_token="<none>")  # noqa: S106 - no password
    yield "dropout", _model(dropout=0.9)
    yield "dropout beyond 1", _model(dropout=9.0)
    yield "a prefix longer than its pieces", _model(continuing_subword_prefix="▁" * 99, merges=[["a", "b"]])
    yield "a prefix of half a character", _model(continuing_subword_prefix="a", merges=[["a", "é"]])
    yield "a prefix of many characters", _model(continuing_subword_prefix="x" * 1_000_000)
    yield "an added token without content", _added(_token(600, ""))
    yield "an added token of a piece's id", _added(_token(300, "<new>"))
    yield "an added token of no id", _added({"content": "<new>"})
    yield "an added token of id 2^31", _added(_token(2**31, "<new>"))
    yield "an added token far away", _added(_token(9999, "<new>"))
    yield "an added token with two ids", _added(_token(600, "<new>"), _token(601, "<new>"))
    yield "two added tokens of one id", _added(_token(600, "<a>"), _token(600, "<b>"))
    yield "an added token that is a number", _added(7)
    yield "an added token of wrong flags", _added(_token(600, "<new>", special="yes"))
    yield "added tokens that are an object", _with(added_tokens={"a": 1})
    yield "no added tokens", _with(added_tokens=[])
    yield "a very long added token", _added(_token(600, "x" * 5_000_000))
    yield "too many added tokens", _added(*(_token(600 + n, f"<{n}>") for n in range(70_000)))
    yield "many control tokens", _added(*(_token(561 + n, f"<{n}>") for n in range(8000)))
    yield (
        "control tokens within one another",
        _added(*(_token(561 + n, "ž" * (n + 1)) for n in range(1500))),
    )
    yield "a Unigram model without pieces", _unigram([])
    yield "a Unigram model of wrong pieces", _unigram([["a"], 1])
    yield "a Unigram unknown id out of range", _unigram([["a", 0.0]], unk_id=2**31)
    yield "a Unigram piece twice", _unigram([["<unk>", 0.0], ["a", 0.0], ["a", -1.0]])
    yield "a Unigram model of long pieces", _unigram([[f"{n:04x}" * 1000, -1.0] for n in range(2000)])
    yield (
        "WordPiece with long words",
        json.dumps(
            {
                "model": {
                    "type": "WordPiece",
                    "unk_token": "a",
                    "continuing_subword_prefix": "##",
                    "max_input_chars_per_word": 10**9,
                    "vocab": {"a": 0},
                }
            }
        ),
    )


def _patterns() -> Iterator[tuple[str, str]]:
    yield (
        "published patterns",
        _regex(r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+"),
    )
    yield "nested repetitions", _regex(r"(a+)+$")
    yield "nested repetitions in a group", _regex(r"(?:(?:a*)*)*b")
    yield "alternatives that overlap", _regex(r"(a|a|aa)*b")
    yield "optional parts", _regex("a?" * 30 + "a{30}")
    yield "three runs", _regex(r"a*a*a*a*a*b")
    yield "all of the text at every place", _regex(r"[\s\S]*[\x00\x01]")
    yield "a back reference", _regex(r"(a*)\1b")
    yield "recursion", _regex(r"(?<x>a\g<x>?b?)+")
    yield "a look ahead without end", _regex(r"(?=a*b)a")
    yield "a huge count", _regex(r"a{1,100000}{1,100000}")
    yield "nested counts", _regex(r"(((a{1000}){1000}){1000})")
    yield "a huge pattern", _regex("a|" * 1_000_000 + "b")
    yield "deep groups", _regex("(" * 50_000 + "a" + ")" * 50_000)
    yield "a group without an end", _regex("(a")
    yield "a class without an end", _regex("[a")
    yield "an unknown property", _regex(r"\p{Nonsense}")
    yield "an empty pattern", _regex("")
    yield "a pattern that is an empty text", _split({"String": ""})
    yield "a pattern that is a number", _split(7)
    yield "a pattern of two kinds", _split({"String": "a", "Regex": "b"})
    yield "a long text to split at", _split({"String": "x" * 1_000_000})
    yield "an unknown behavior", _split({"String": "a"}, "Explode")


def _components() -> Iterator[tuple[str, str]]:
    yield "an unknown normalizer", _with(normalizer={"type": "Execute", "command": "true"})
    yield "an unknown pre-tokenizer", _with(pre_tokenizer={"type": "Python"})
    yield "an unknown decoder", _with(decoder={"type": "Nothing"})
    yield "an unknown post-processor", _with(post_processor={"type": "Nothing"})
    yield "a normalizer that is a list", _with(normalizer=[1])
    yield "a type that is a list", _with(normalizer={"type": [1]})
    yield "deep normalizers", _with(normalizer=_nested(100))
    yield (
        "many normalizers",
        _with(normalizer={"type": "Sequence", "normalizers": [{"type": "NFKD"}] * 5000}),
    )
    doubling = {"type": "Sequence", "normalizers": [_replace("a", "aa")] * 40}
    yield "a text doubled forty times", _with(normalizer=doubling)
    yield "a text made long", _with(normalizer=_replace("a", "b" * 1_000_000))
    yield "a long prefix", _with(normalizer={"type": "Prepend", "prepend": "x" * 1_000_000})
    yield (
        "prefixes",
        _with(normalizer={"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "ab"}] * 60}),
    )
    yield "an empty text to replace", _with(normalizer=_replace("", "x"))
    yield "a charsmap of nothing", _with(normalizer={"type": "Precompiled", "precompiled_charsmap": ""})
    yield (
        "a charsmap of noise",
        _with(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA" * 99}),
    )
    yield (
        "a charsmap of ones",
        _with(normalizer={"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
    )
    yield (
        "a charsmap that begins with its length",
        _with(normalizer={"type": "Precompiled", "precompiled_charsmap": "BAAAAP////9hAA=="}),
    )
    blob = b64encode(b"\4\0\0\0" + bytes(4) + b"x" * 1_000_000).decode()
    yield (
        "a charsmap of a long text",
        _with(normalizer={"type": "Precompiled", "precompiled_charsmap": blob}),
    )
    yield (
        "an enormous charsmap",
        _with(normalizer={"type": "Precompiled", "precompiled_charsmap": "A" * 4_000_000}),
    )
    yield (
        "a charsmap that is a number",
        _with(normalizer={"type": "Precompiled", "precompiled_charsmap": 7}),
    )
    yield "words of no length", _with(pre_tokenizer={"type": "FixedLength", "length": 0})
    yield (
        "a delimiter of two characters",
        _with(pre_tokenizer={"type": "CharDelimiterSplit", "delimiter": "ab"}),
    )
    yield (
        "a replacement of many characters",
        _with(pre_tokenizer={"type": "Metaspace", "replacement": "x" * 999, "prepend_scheme": "always"}),
    )
    yield (
        "strip of the decoder",
        _with(decoder={"type": "Strip", "content": " ", "start": 200, "stop": 200}),
    )
    yield (
        "a long strip of the decoder",
        _with(decoder={"type": "Strip", "content": " ", "start": 2**63, "stop": 2**63}),
    )
    yield (
        "a decoder that doubles",
        _with(decoder={"type": "Sequence", "decoders": [_replace("a", "aa")] * 40}),
    )
    yield "a post-processor with an id of no token", _template([99_999])
    yield "a post-processor with an id of 2^31", _template([2**31])
    yield "a post-processor with a negative id", _template([-1])
    yield "a post-processor with many ids", _template([1] * 100_000)
    yield (
        "a post-processor with many parts",
        _template([1], [{"SpecialToken": {"id": "x", "type_id": 0}}] * 100_000),
    )
    yield (
        "a post-processor with an unknown token",
        _template([1], [{"SpecialToken": {"id": "y", "type_id": 0}}]),
    )
    yield (
        "BERT's post-processor with an id of no token",
        _with(post_processor={"type": "BertProcessing", "sep": ["x", 2**31], "cls": ["x", 1]}),
    )
