"""The README's figures are those of the newest records."""

from __future__ import annotations

from pathlib import Path

from figures import BEGIN, END, between_markers, make_tables

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_has_the_figures_of_the_newest_records() -> None:
    text = README.read_text(encoding="utf-8")
    assert text == between_markers(text, make_tables()), "run `python tools/figures.py --write README.md`"


def test_only_what_is_between_the_markers_is_replaced() -> None:
    assert between_markers(f"a\n{BEGIN}old\n{END}\nb", "new\n") == f"a\n{BEGIN}new\n{END}\nb"
