"""
Print the commands, options and exit codes of `gguf-engine` as Markdown tables.

    python tools/cli_table.py                    # print them
    python tools/cli_table.py --write README.md  # put them between the markers of a file

They come from the same objects as `--help`; a test holds the README's equal to them.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path

from gguf_engine.cli.app import make_command
from gguf_engine.cli.errors import MEANINGS
from gguf_engine.cli.options import sections

BEGIN, END = "<!-- cli -->\n", "<!-- /cli -->"
_BACKSLASH = "\\"
_OWN = ("Arguments", "Options")


def make_tables() -> str:
    """Return all the tables; what several commands share stands once."""
    verbs = make_command().commands
    own: list[str] = []
    shared: dict[str, dict[tuple[str, str], list[str]]] = {}
    for name, verb in verbs.items():
        titled = sections(verb.params)
        rows = [row for title in _OWN for row in titled.pop(title, ())]
        own += _table(f"`{name}`", rows)
        for title, group in titled.items():
            for row in group:
                shared.setdefault(title, {}).setdefault(row, []).append(name)
    lines = _table("command", ((name, " ".join(verb.help.split())) for name, verb in verbs.items()))
    lines += own
    for title, verbs_of in shared.items():
        widest = max(verbs_of.values(), key=len)
        heading = f"{title} (`{'`, `'.join(widest)}`)"
        lines += _table(
            heading,
            (
                (names, help_ if users == widest else f"{help_} Only {', '.join(users)}.")
                for (names, help_), users in verbs_of.items()
            ),
        )
    lines += _table("exit code", ((str(code), meaning) for code, meaning in MEANINGS.items()))
    return "\n".join(lines)


def _table(heading: str, rows: Iterable[tuple[str, str]]) -> list[str]:
    body = [
        f"| `{_cell(names)}` | {_cell(text.replace(_BACKSLASH, 2 * _BACKSLASH))} |" for names, text in rows
    ]
    return [f"| {heading} | |", "|---|---|", *body, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def between_markers(text: str) -> tuple[str, str, str]:
    """
    Return what stands before, between and after the markers.

    Raises:
        ValueError: One of them is missing.
    """
    before, begin, rest = text.partition(BEGIN)
    middle, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the text lacks {BEGIN.strip()} or {END}")
    return before + begin, middle, end + after


def main() -> None:
    """Print the tables, or write them into a file."""
    if sys.argv[1:2] != ["--write"]:
        print(make_tables())
        return
    path = Path(sys.argv[2])
    before, _, after = between_markers(path.read_text(encoding="utf-8"))
    path.write_text(before + make_tables() + after, encoding="utf-8")


if __name__ == "__main__":
    main()
