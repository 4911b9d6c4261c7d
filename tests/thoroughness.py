"""How often a test repeats: enough for every day, or as often as the promises say."""

from __future__ import annotations

import os

IS_THOROUGH = os.environ.get("THOROUGH") == "1"


def rounds(*, quick: int, thorough: int) -> int:
    """Return the number of repetitions; `make reliability` sets THOROUGH=1."""
    return thorough if IS_THOROUGH else quick
