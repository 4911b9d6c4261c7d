"""What the benchmarks share: the machine's card, medians, records, and a bare llama.cpp loop."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import statistics
import sys
import sysconfig
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

RECORDS = Path(__file__).resolve().parent / "records"
PROGRAM = str(Path(sysconfig.get_path("scripts")) / "gguf-engine")
"""The installed program; `python -m gguf_engine` would take a checkout it stands in, perhaps not built."""


def machine() -> dict[str, Any]:
    """Return what ran this, read from the machine; no names of hosts or folders."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "cpu": _cpu_model(),
        "n_cpus": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gguf_engine": version("gguf-engine"),
        "llama_cpp_python": version("llama-cpp-python"),
        "tokenizers": version("tokenizers"),
        "numpy": version("numpy"),
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "?")


def quartiles(values: Sequence[float]) -> dict[str, float]:
    """Return median, quartiles and count of at least two samples."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return {"median": middle, "q1": low, "q3": high, "n": len(values)}


def finish(benchmark: str, results: Any, record: bool) -> None:
    """Print the JSON line that ends stdout, and append it to the records when asked."""
    line = json.dumps({"benchmark": benchmark, "machine": machine(), "results": results})
    if record:
        RECORDS.mkdir(exist_ok=True)
        with (RECORDS / f"{benchmark}.jsonl").open("a", encoding="utf-8") as file:
            file.write(line + "\n")
    print(line)


def say(text: str) -> None:
    """Print a line for people."""
    print(text, file=sys.stderr, flush=True)


def _has_flash_attention(path: Path, n_cells: int) -> bool:
    """Return whether the engine would use it for this model here, unless it is told or tuned otherwise."""
    from gguf_engine import EngineParams
    from gguf_engine.backend.attention import settle_attention
    from gguf_engine.backend.llama import library_versions
    from gguf_engine.loader.gguf import read_gguf

    features = library_versions()["system_info"]
    settled = settle_attention(EngineParams(n_cells=n_cells), read_gguf(path).metadata, features, "cpu")
    return settled.flash_attention != "off"


class BareLoop:
    """
    The shortest honest ctypes loop over llama.cpp: decode, its own sampler chain, token to text.

    One row a sequence, all sequences in step; the chain has the options and the order of our defaults:
    repeat penalty 1.2 over the last 64 ids, temperature 1, min-p 0.1 (without which a model that is kept
    going past its end babbles bytes), draw.

    Args:
        attention: "ours" is what the engine would choose here, "llama.cpp" what llama.cpp does.
    """

    def __init__(
        self, path: Path, *, n_ctx: int, n_slots: int, n_threads: int, attention: str = "ours"
    ) -> None:
        # The engine's own module, so that both run on one library under one OpenMP setting.
        from gguf_engine.backend.llama import _llama as llama_cpp

        self.lib = lib = llama_cpp
        params = lib.llama_model_default_params()
        params.n_gpu_layers = 0
        params.use_extra_bufts = False  # as the engine's default: repack=False
        self.model = lib.llama_model_load_from_file(os.fsencode(path), params)
        context = lib.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch = n_ctx, 512, 512
        context.n_seq_max, context.kv_unified, context.no_perf = n_slots, True, True
        context.n_threads = context.n_threads_batch = n_threads
        context.flash_attn_type = int(_has_flash_attention(path, n_ctx)) if attention == "ours" else -1
        self.context = lib.llama_init_from_model(self.model, context)
        self.memory = lib.llama_get_memory(self.context)
        self.vocab = lib.llama_model_get_vocab(self.model)
        self.n_vocab = lib.llama_vocab_n_tokens(self.vocab)
        self.batch = lib.llama_batch_init(512, 0, 1)
        self._long: Sequence[int] = ()

    def run(self, prompts: Sequence[Sequence[int]], n_tokens: int, seed: int) -> int:
        """Give each prompt `n_tokens` more; return the bytes of text made."""
        self.lib.llama_memory_clear(self.memory, False)
        self._long = ()
        return self._decode(prompts, self._prefill(prompts), n_tokens, seed)

    def go_on(self, prompt: Sequence[int], n_tokens: int, seed: int) -> float:
        """Decode after a long prompt, which is computed the first time; return tokens/s after the first."""
        if self._long != prompt:
            self.lib.llama_memory_clear(self.memory, False)
            for at in range(0, len(prompt) - 1, 512):
                self._put_run(prompt[at : min(at + 512, len(prompt) - 1)], at)
            self._long = prompt
        self.lib.llama_memory_seq_rm(self.memory, 0, len(prompt) - 1, -1)
        self._put_run(prompt[-1:], len(prompt) - 1)
        begin = time.perf_counter()
        self._decode([prompt], [0], n_tokens, seed)
        return (n_tokens - 1) / (time.perf_counter() - begin)

    def _put_run(self, token_ids: Sequence[int], start: int) -> None:
        for at, token in enumerate(token_ids):
            self._put(at, 0, start + at, token, at == len(token_ids) - 1)
        self.batch.n_tokens = len(token_ids)
        if self.lib.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")

    def _decode(self, prompts: Sequence[Sequence[int]], rows: list[int], n_tokens: int, seed: int) -> int:
        lib, batch = self.lib, self.batch
        chains = [self._chain(seed + i) for i in range(len(prompts))]
        piece = ctypes.create_string_buffer(64)
        n_bytes = 0
        for step in range(n_tokens):
            batch.n_tokens = len(prompts)
            for slot, chain in enumerate(chains):
                token = lib.llama_sampler_sample(chain, self.context, rows[slot])
                n_bytes += max(0, lib.llama_token_to_piece(self.vocab, token, piece, 64, 0, False))
                self._put(slot, slot, len(prompts[slot]) + step, token, True)
            if step < n_tokens - 1 and lib.llama_decode(self.context, batch) != 0:
                raise RuntimeError("llama_decode failed")
            rows = list(range(len(prompts)))
        for chain in chains:
            lib.llama_sampler_free(chain)
        return n_bytes

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        rows, at = [], 0
        for slot, prompt in enumerate(prompts):
            for position, token in enumerate(prompt):
                self._put(at, slot, position, token, position == len(prompt) - 1)
                at += 1
            rows.append(at - 1)
        self.batch.n_tokens = at
        if self.lib.llama_decode(self.context, self.batch) != 0:
            raise RuntimeError("llama_decode failed")
        return rows

    def _put(self, at: int, slot: int, position: int, token: int, wanted: bool) -> None:
        batch = self.batch
        batch.token[at], batch.pos[at], batch.logits[at] = token, position, wanted
        batch.n_seq_id[at], batch.seq_id[at][0] = 1, slot

    def _chain(self, seed: int) -> Any:
        lib = self.lib
        chain = lib.llama_sampler_chain_init(lib.llama_sampler_chain_default_params())
        for sampler in (
            lib.llama_sampler_init_penalties(self.n_vocab, 64, 1.2, 0.0, 0.0),
            lib.llama_sampler_init_temp(1.0),
            lib.llama_sampler_init_min_p(0.1, 1),
            lib.llama_sampler_init_dist(seed & 0xFFFFFFFF),
        ):
            lib.llama_sampler_chain_add(chain, sampler)
        return chain

    def close(self) -> None:
        """Free the context, then the model."""
        self.lib.llama_batch_free(self.batch)
        self.lib.llama_free(self.context)
        self.lib.llama_model_free(self.model)
