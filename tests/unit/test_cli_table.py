"""The README's tables of commands, options and exit codes are the program's own."""

from __future__ import annotations

from pathlib import Path

from cli_table import make_tables
from markers import between_markers

from gguf_engine.cli.app import make_command

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_readme_has_the_tables_as_they_are_made() -> None:
    _, tables, _ = between_markers(README.read_text(encoding="utf-8"), "cli")
    assert tables == make_tables(), "run `python tools/cli_table.py --write README.md`"


def test_every_option_of_every_verb_is_in_the_tables() -> None:
    tables = make_tables()
    for verb in make_command().commands.values():
        for parameter in verb.params:
            assert all(flag in tables for flag in parameter.opts if flag.startswith("-"))


def test_a_row_is_one_line_with_two_cells() -> None:
    for line in make_tables().splitlines():
        assert not line or line.replace("\\|", "").count("|") == 3
