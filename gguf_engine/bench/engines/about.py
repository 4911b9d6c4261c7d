"""No engine: what llama.cpp says of this machine and of itself, asked in a process that ends at once."""

from __future__ import annotations

from typing import Any


def load() -> None:
    """Import the library."""
    import gguf_engine.backend.llama  # noqa: F401


class Engine:
    """Its facts are the answer."""

    version = ""

    def __init__(self, config: dict[str, Any]) -> None:
        from dataclasses import asdict

        from gguf_engine.backend.llama import library_versions, list_devices

        del config
        self.facts = {
            "devices": [asdict(device) for device in list_devices()],
            "software": library_versions(),
        }
