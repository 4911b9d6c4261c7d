"""Codes of refusals: every one that can be raised is in the table, and the table has no other."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import gguf_engine.loader
from gguf_engine.loader.preflight import CODES

LOADER = Path(gguf_engine.loader.__file__).parent
# Where the code stands in a call, by what is called; `Keys.fail` takes the one its Keys were made with.
POSITIONS = {"ModelFileError": 1, "_fail": 1, "Keys": 1, "text": 0}


def texts(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.BoolOp):
        for value in node.values:
            yield from texts(value)


def codes_of(path: Path) -> Iterator[str]:
    for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        at = 0 if name == "fail" and path.name == "gguf.py" else POSITIONS.get(name)
        if at is not None and len(call.args) > at:
            found = set(texts(call.args[at])) - {"value"}
            yield from ({f"{text}_name" for text in found} if name == "text" else found)
        yield from (text for word in call.keywords if word.arg == "code" for text in texts(word.value))


def test_the_table_has_every_code_and_no_other() -> None:
    files = ("gguf", "keys", "preflight", "architectures", "vocabulary", "parts", "tensor_check")
    raised = {code for name in files for code in codes_of(LOADER / f"{name}.py")}
    assert raised == set(CODES)


@pytest.mark.parametrize("code", CODES)
def test_a_code_is_a_word_and_its_meaning_a_phrase(code: str) -> None:
    assert code.isidentifier()
    assert code == code.lower()
    assert CODES[code]
    assert not CODES[code].endswith(".")
