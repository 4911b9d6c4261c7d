"""The README's figures are those of the newest records."""

from __future__ import annotations

from pathlib import Path

from figures import make_tables
from markers import between_markers
from reliability_table import make_table

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_has_the_figures_of_the_newest_records() -> None:
    _, tables, _ = between_markers(README.read_text(encoding="utf-8"), "figures")
    assert tables == make_tables(), "run `python tools/figures.py --write README.md`"


def test_the_readme_has_the_promises_of_the_newest_record() -> None:
    _, table, _ = between_markers(README.read_text(encoding="utf-8"), "reliability")
    assert table == make_table(), "run `python tools/reliability_table.py --write README.md`"
