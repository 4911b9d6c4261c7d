"""Patterns of tokenizer.json files: published ones pass, those that can take long do not."""

from __future__ import annotations

import pytest

from gguf_engine.text.patterns import MAX_PATTERN_CHARS, PatternError, check_pattern
from gguf_engine.text.pretokenizers import PRE_TOKENIZERS

# From published tokenizer.json files; what they belong to.
PUBLISHED = {
    "GPT-2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "Llama 3": r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+",
    "line ends as they are": "[^\r\n\\p{L}\\p{N}]?\\p{L}+|\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
    "BLOOM": r" ?[^(\s|[.,!?…。，、।۔،])]+",
    "Cohere": r"\d{1,3}(?=(?:\d{3})*\b)",
    "SuperBPE": r"(?=(\d{3})+(?!\d))",
    "CLIP": r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+",
    "spaces": r" {2,}",
    "Kimi": r"[\p{Han}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?|\p{N}{1,3}",
    "counted spaces": r"\s{512}(?!\S)|\s{1,2}(?!\S)|\s{1}",
    "possessive": r"[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+",
}


@pytest.mark.parametrize("pattern", PUBLISHED.values(), ids=PUBLISHED.keys())
def test_published_patterns_pass(pattern: str) -> None:
    check_pattern(pattern)


def test_patterns_of_every_pre_tokenizer_of_a_gguf_pass() -> None:
    for family in PRE_TOKENIZERS.values():
        for regex in family.regexes:
            check_pattern(regex)


@pytest.mark.parametrize(
    ("pattern", "says"),
    [
        (r"(a+)+", "several ways"),
        (r"(a|aa)+", "several ways"),
        (r"(a?){30}", "several ways"),
        (r"(?:a{1,4}){9}", "several ways"),
        (r"a*b", "goes on after"),
        (r"a{1,9}b", "goes on after"),
        (r"(?:a*)b", "goes on after"),
        (r"(?:a*)(?!b)", "goes on after"),
        (r"(?=a*)b", "without an end"),
        (r"(?<!a+)b", "without an end"),
        (r"a?b?c?d?e?f?g?h?i?", "more than 8 parts"),
        (r"a{1025}", "more than 1024 times"),
        (r"a{9,1025}", "more than 1024 times"),
        (r"(?:(?:a{99}){99})", "written out"),
        (r"a**", "repeats a repetition"),
        (r"a{2}{3}", "repeats a repetition"),
        (r"a++*", "repeats a repetition"),
        (r"(a)\1", r"holds '\\\\1'"),
        (r"(?<x>a)\k<x>", r"holds '\\\\k'"),
        (r"\g<0>", r"holds '\\\\g'"),
        (r"(?R)", r"holds '\(\?R'"),
        (r"(?~a)", r"holds '\(\?~'"),
        (r"*a", "repeats nothing"),
        (r"[a", "class without an end"),
        (r"[[a]", "class without an end"),
        (r"(a", "group without an end"),
        (r"a)", "parenthesis too many"),
        ("(" * 17 + "a" + ")" * 17, "more than 16 groups"),
        ("a" * (MAX_PATTERN_CHARS + 1), "has 4097 characters"),
    ],
)
def test_patterns_that_could_take_long_are_refused(pattern: str, says: str) -> None:
    with pytest.raises(PatternError, match=says):
        check_pattern(pattern)


@pytest.mark.parametrize(
    "pattern", [r"\p{L}+[\r\n]*", r"a+?", r"(?:ab){3}", r"(?i)a", r"[]a]+", r"\x{1F600}", "a{x}"]
)
def test_plain_patterns_pass(pattern: str) -> None:
    check_pattern(pattern)
