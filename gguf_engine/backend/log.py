"""What llama.cpp says: kept, not printed; read for where a model landed and why a load failed."""

from __future__ import annotations

import contextlib
import os
import re
import threading
from collections import defaultdict, deque
from collections.abc import Iterator

from gguf_engine.backend.base import Placement
from gguf_engine.params import FlashAttention, KVCacheType

_ERROR_LEVEL = 4  # enum ggml_log_level of ggml.h: 1 debug, 2 info, 3 warn, 4 error, 5 continued
_CONTINUED = 5

# By the function that says it, at the start of a short line: texts from the file are logged too, and may
# look like anything.
_MAX_LINE = 256
_OFFLOADED = re.compile(r"load_tensors: offloaded (\d{1,4})/\d{1,4} layers to GPU")
_NO_FLASH_ATTENTION = re.compile(
    r"resolve_fused_ops: Flash Attention not supported|llama_init_from_model: flash_attn is not compatible"
)
_BUFFER = re.compile(
    r"(?:load_tensors|llama_kv_cache\w{0,20}|llama_memory_recurrent|sched_reserve|llama_context): +"
    r"(\S{1,40}) +(model|KV|RS|compute) buffer size = +(\d{1,9}\.\d\d) MiB"
)


class LogTail:
    """
    The last lines llama.cpp logged, apart for each thread that called it.

    One instance serves the process: llama.cpp has one log callback, and logs in the calling thread.

    Attributes:
        echoes_errors: Whether errors go to stderr too: of a process that dies, that alone is left.
    """

    echoes_errors = False

    def __init__(self) -> None:
        self._errors: defaultdict[int, deque[str]] = defaultdict(lambda: deque(maxlen=8))
        self._captures: dict[int, list[str]] = {}
        self._levels: dict[int, int] = {}

    def write(self, level: int, text: bytes, _: object) -> None:
        """Take one message; a callback of C, so it must not raise."""
        thread = threading.get_ident()
        if level != _CONTINUED:
            self._levels[thread] = level
        line = text.decode("utf-8", "replace").strip()
        if not line:
            return
        if thread in self._captures:
            self._captures[thread].append(line)
        if self._levels.get(thread, 0) >= _ERROR_LEVEL:
            self._errors[thread].append(line)
            if self.echoes_errors:
                os.write(2, line.encode("utf-8", "replace") + b"\n")

    def errors(self) -> str:
        """Return this thread's last errors as one line, and forget them."""
        return "; ".join(self._errors.pop(threading.get_ident(), ()))

    @contextlib.contextmanager
    def capture(self) -> Iterator[list[str]]:
        """Collect every line this thread logs while the block runs."""
        thread = threading.get_ident()
        self.errors()
        lines: list[str] = []
        self._captures[thread] = lines
        try:
            yield lines
        finally:
            del self._captures[thread]


def read_placement(
    lines: list[str],
    device: str,
    reason: str,
    n_layers: int,
    *,
    n_threads: tuple[int, int],
    adapters: dict[str, float] | None = None,
    kv_cache_type: KVCacheType = "f16",
    flash_attention: FlashAttention = "auto",
) -> Placement:
    """
    Find in llama.cpp's log of a load where weights and caches went.

    The log is the only place where it says so. Its own layer count has the output layer in it; ours
    has not.
    """
    n_offloaded = 0
    has_flash_attention = flash_attention != "off"
    sizes: dict[str, dict[str, int]] = {"model": {}, "KV": {}, "RS": {}, "compute": {}}
    for line in lines:
        if len(line) > _MAX_LINE:
            continue
        if found := _OFFLOADED.match(line):
            n_offloaded = min(int(found[1]), n_layers)
        elif _NO_FLASH_ATTENTION.match(line):
            has_flash_attention = False
        elif found := _BUFFER.match(line):
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
        n_threads=n_threads[0],
        n_threads_batch=n_threads[1],
        adapters=adapters or {},
        kv_cache_type=kv_cache_type,
        flash_attention=has_flash_attention,
    )
