"""What the hub tests share: the bytes the hub on loopback serves, and how a download fails."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from gguf_engine.errors import HubError
from gguf_engine.loader.resolve import resolve_model

WEIGHTS = bytes(range(256)) * 4000  # 1 MB
TOKENIZER = b'{"version": "1.0"}'
PHI3 = "microsoft/Phi-3-mini-4k-instruct-gguf"


def failure(model: str = "org/repo:m.gguf", **options: Any) -> HubError:
    """Return the error that resolving a model ends with."""
    with pytest.raises(HubError) as caught:
        resolve_model(model, **options)
    return caught.value


def everything_in(folder: Path) -> list[Path]:
    """Return every file and link below a folder."""
    return sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())
