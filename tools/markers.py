"""Made text between the markers of a file: `<!-- name -->` and `<!-- /name -->`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path


def between_markers(text: str, name: str) -> tuple[str, str, str]:
    """
    Return what stands before, between and after the markers; the markers are part of the outer two.

    Raises:
        ValueError: One of them is missing.
    """
    begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = text.partition(begin)
    middle, ended, after = rest.partition(end)
    if not found or not ended:
        raise ValueError(f"the text lacks {begin.strip()} or {end}")
    return before + begin, middle, end + after


def print_or_write(name: str, make: Callable[[], str], description: str | None = None) -> None:
    """
    Print what `make` returns, or with `--write FILE` put it between the markers of a file.

    Args:
        name: Of the markers.
        make: Makes the text.
        description: What `--help` says.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--write", type=Path, metavar="FILE", help="Put it between the markers of this file."
    )
    path = parser.parse_args().write
    if path is None:
        print(make())
        return
    before, _, after = between_markers(path.read_text(encoding="utf-8"), name)
    path.write_text(before + make() + after, encoding="utf-8")
