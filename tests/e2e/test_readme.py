"""The README's library example runs as it stands, and its first commands are the ones CI runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")


def test_the_library_example_prints_a_haiku(capsys: pytest.CaptureFixture[str]) -> None:
    example, *_ = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - our own README
    printed = capsys.readouterr().out
    assert " stop Usage(n_prompt=" in printed
    assert len(printed.splitlines()) > 3


def test_the_example_of_a_session_computes_only_the_question(capsys: pytest.CaptureFixture[str]) -> None:
    examples = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    (example,) = (example for example in examples if "Session.load" in example)
    exec(compile(example, "README.md", "exec"), {})  # noqa: S102 - our own README
    assert capsys.readouterr().out.endswith("True\n")


def test_the_first_two_installs_are_what_a_stranger_types() -> None:
    installs = re.findall(r"^pip install .*$", README, re.MULTILINE)[:2]
    assert "gguf-engine run --model haiku" in installs[0]
    assert installs[1].endswith("&& pytest")
