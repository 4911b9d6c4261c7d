"""Backends that fail as native code does; importable, so that a child process can have them."""

from __future__ import annotations

import ctypes
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from gguf_engine.backend.base import Batch, Rows
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.errors import BackendError, ModelLoadError

LAST_WORDS = "ggml.c:1: GGML_ASSERT(it_is_well) failed"


def abort() -> None:
    """Die as a failed assertion of ggml does."""
    os.write(2, LAST_WORDS.encode() + b"\n")
    os.abort()


def segfault() -> None:
    """Read address 0."""
    ctypes.string_at(0)


def leave() -> None:
    """End the process as a library that calls exit."""
    os._exit(3)


class DiesAfter(FakeBackend):
    """Dies in forward pass number `n_passes`, of every process or only of the first."""

    def __init__(self, die: Callable[[], None], n_passes: int, once: Path | None = None, **options: Any):
        super().__init__(**options)
        self._die, self._n_left, self._once = die, n_passes, once
        if once is not None and once.exists():
            self._n_left = 10**9
        elif once is not None:
            once.touch()

    def forward(self, batch: Batch) -> Rows:
        """See Backend."""
        self._n_left -= 1
        if self._n_left < 0:
            self._die()
        return super().forward(batch)


class DiesLoading(FakeBackend):
    """Dies before it is made."""

    def __init__(self, die: Callable[[], None] = abort, **options: Any):
        die()
        super().__init__(**options)


class DiesLoadingFile(FakeBackend):
    """Stands where LlamaBackend does, and dies as that does on a bad file."""

    def __init__(self, path: Path, params: object, *_: Any):
        abort()


class RefusesToLoad(FakeBackend):
    """Raises what llama.cpp's refusal becomes."""

    def __init__(self, **_: Any):
        raise ModelLoadError("m.gguf", "it refused the file", "because")


class LoadsForEver(FakeBackend):
    """Hangs in native code while it loads."""

    def __init__(self, **_: Any):
        while True:
            time.sleep(3600)


class Reports(FakeBackend):
    """Reports how its load goes on, and prints."""

    def __init__(self, progress: Callable[[float], bool], **options: Any):
        print("a library that prints")  # noqa: T201 - what this test is about
        for done in (0.0, 0.5, 1.0):
            assert progress(done)
        super().__init__(**options)


class FailsAfter(FakeBackend):
    """Raises in the third pass, once."""

    n_passes = 0

    def forward(self, batch: Batch) -> Rows:
        """See Backend."""
        self.n_passes += 1
        if self.n_passes == 3:
            raise BackendError(-3, "llama.cpp failed")
        return super().forward(batch)


class Remembers(FakeBackend):
    """Another vocabulary each time: a file that changed under the engine."""

    def __init__(self, once: Path, **options: Any):
        super().__init__(**{**options, "n_ctx": 512 if once.exists() else 256})
        once.touch()
