"""`gguf-engine inspect --tokenizer`: a tokenizer.json compared with the vocabulary in a GGUF."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gguf_engine.errors import TokenizerError
from gguf_engine.text.audit import Check, audit, refuse_differences
from gguf_engine.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from rich.table import Table

_WIDE = 4096
_VERDICTS = {"same": "same", "gguf": "the GGUF's is used", "differs": "DIFFERS"}


def print_audit(metadata: Mapping[str, Any], tokenizer_json: Path | None, *, as_json: bool) -> None:
    """
    Print what a tokenizer.json and a GGUF say, one check a row.

    Args:
        metadata: The GGUF's keys and values.
        tokenizer_json: The file; None where none was found with the model.
        as_json: One JSON object instead of a table.

    Raises:
        TokenizerError: No tokenizer.json, one that cannot be used, or one that is not this model's,
            after the whole table is printed.
    """
    if tokenizer_json is None:
        raise TokenizerError(
            "no tokenizer.json was found with the model; "
            "name one: gguf-engine inspect MODEL --tokenizer FILE"
        )
    checks = audit(Tokenizer.from_file(tokenizer_json), metadata)
    if as_json:
        same = all(check.verdict != "differs" for check in checks)
        checked = [asdict(check) for check in checks]
        print(json.dumps({"tokenizer": str(tokenizer_json), "same": same, "checks": checked}))
    else:
        _print_table(tokenizer_json, checks)
    refuse_differences(checks)


def _print_table(path: Path, checks: Sequence[Check]) -> None:
    from rich.console import Console

    from gguf_engine.cli.inspect import visible

    # A pipe has no width: rows stay whole, one a line.
    console = Console(width=None if sys.stdout.isatty() else _WIDE, markup=False, highlight=False)
    console.print(f"{visible(str(path))} against the vocabulary in the GGUF")
    console.print(_table(checks))


def _table(checks: Sequence[Check]) -> Table:
    from rich.table import Table
    from rich.text import Text

    from gguf_engine.cli.inspect import visible

    table = Table("check", "GGUF", "tokenizer.json", "verdict", "where", box=None, pad_edge=False)
    for check in checks:
        texts = (check.name, check.gguf, check.tokenizer_json, _VERDICTS[check.verdict], check.detail)
        table.add_row(*(Text(visible(text)) for text in texts))
    return table
