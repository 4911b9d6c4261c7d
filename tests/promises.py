"""What a test found about a promise of the README, for `make reliability` to put into its table."""

from __future__ import annotations

import json
import os
from pathlib import Path


def report(promise: str, tried: int, result: str, *, worst_s: float | None = None) -> None:
    """
    Write down what was tried and found, when somebody collects it.

    Args:
        promise: Its name in the table; several reports of one promise are added up.
        tried: How many times.
        result: What was found, in a few words and figures.
        worst_s: The longest time that one took, in seconds, where time is part of the promise.
    """
    path = os.environ.get("PROMISES_LOG")
    if path:
        line = {"promise": promise, "tried": tried, "result": result, "worst_s": worst_s}
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
