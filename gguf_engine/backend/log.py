"""What llama.cpp says: kept, not printed; read for where a model landed and why a load failed."""

from __future__ import annotations

import contextlib
import re
from collections import deque
from collections.abc import Iterator

from gguf_engine.backend.base import Placement

_ERROR_LEVEL = 4  # enum ggml_log_level of ggml.h: 1 debug, 2 info, 3 warn, 4 error, 5 continued
_CONTINUED = 5

_OFFLOADED = re.compile(r"offloaded (\d+)/(\d+) layers to GPU")
_BUFFER = re.compile(r"(\S+)\s+(model|KV|RS|compute) buffer size =\s+([\d.]+) MiB")


class LogTail:
    """
    The last lines llama.cpp logged, from any of its threads.

    One instance serves the process: llama.cpp has one log callback.
    """

    def __init__(self) -> None:
        self._errors: deque[str] = deque(maxlen=8)
        self._captures: list[list[str]] = []
        self._level = 0

    def write(self, level: int, text: bytes, _: object) -> None:
        """Take one message; a callback of C, so it must not raise."""
        self._level = level if level != _CONTINUED else self._level
        line = text.decode("utf-8", "replace").strip()
        if not line:
            return
        for lines in self._captures:
            lines.append(line)
        if self._level >= _ERROR_LEVEL:
            self._errors.append(line)

    def errors(self) -> str:
        """Return the last errors as one line, and forget them."""
        text = "; ".join(self._errors)
        self._errors.clear()
        return text

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[str]]:
        """Collect every line logged while the block runs."""
        self._errors.clear()
        lines: list[str] = []
        self._captures.append(lines)
        try:
            yield lines
        finally:
            self._captures.remove(lines)


def read_placement(lines: list[str], device: str, reason: str, n_layers: int) -> Placement:
    """
    Find in llama.cpp's log of a load where weights and caches went.

    The log is the only place where it says so. Its own layer count has the output layer in it; ours
    has not.
    """
    n_offloaded = 0
    sizes: dict[str, dict[str, int]] = {"model": {}, "KV": {}, "RS": {}, "compute": {}}
    for line in lines:
        if found := _OFFLOADED.search(line):
            n_offloaded = min(int(found[1]), n_layers)
        elif found := _BUFFER.search(line):
            of_kind = sizes[found[2]]
            of_kind[found[1]] = of_kind.get(found[1], 0) + round(float(found[3]) * 2**20)
    return Placement(
        device=device,
        reason=reason,
        n_layers=n_layers,
        n_layers_offloaded=n_offloaded,
        weight_bytes=sizes["model"],
        kv_cache_bytes={**sizes["KV"], **sizes["RS"]},
        compute_bytes=sizes["compute"],
    )
