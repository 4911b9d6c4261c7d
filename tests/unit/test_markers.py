"""Made text between markers: nothing else of a file is touched, and a missing marker is an error."""

from __future__ import annotations

from pathlib import Path

import pytest
from markers import between_markers, print_or_write

BEGIN, END = "<!-- x -->\n", "<!-- /x -->"


def test_a_text_is_cut_at_its_markers() -> None:
    assert between_markers(f"a\n{BEGIN}old\n{END}\nb", "x") == (f"a\n{BEGIN}", "old\n", f"{END}\nb")


@pytest.mark.parametrize("text", ["", BEGIN, END, END + BEGIN])
def test_a_missing_marker_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="lacks"):
        between_markers(text, "x")


def test_writing_replaces_what_is_between(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "page.md"
    path.write_text(f"a\n{BEGIN}old\n{END}\nb")
    monkeypatch.setattr("sys.argv", ["tool", "--write", str(path)])
    print_or_write("x", lambda: "new\n")
    assert path.read_text() == f"a\n{BEGIN}new\n{END}\nb"
