"""
Print the commands, options and exit codes of `gguf-engine` as Markdown tables.

    python tools/cli_table.py                    # print them
    python tools/cli_table.py --write README.md  # put them between the markers of a file

They come from the same objects as `--help`; a test holds the README's equal to them.
"""

from __future__ import annotations

from collections.abc import Iterable

from markers import print_or_write

from gguf_engine.cli.app import make_command
from gguf_engine.cli.errors import MEANINGS
from gguf_engine.cli.options import sections

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


if __name__ == "__main__":
    print_or_write("cli", make_tables, __doc__)
