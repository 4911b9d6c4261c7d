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


def test_help_is_help_and_an_unknown_option_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for option, code in (("--help", 0), ("--wrong", 2)):
        monkeypatch.setattr("sys.argv", ["tool", option])
        with pytest.raises(SystemExit) as ended:
            print_or_write("x", lambda: "made", "What this does.")
        out, err = capsys.readouterr()
        assert (ended.value.code, "made" in out + err) == (code, False)
        assert ("What this does." in out) == (option == "--help")
