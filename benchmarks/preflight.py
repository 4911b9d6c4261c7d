"""
How long a model file is looked at before llama.cpp is given it.

What bounds it: the vocabulary. A header is read string by string in Python, and every token's text is
compared with the others; tensors cost little. The first time a file is seen its weights are read too,
hashed and searched for NaNs: that is bound by sha256 (about 2 GB/s), and is remembered.

    python benchmarks/preflight.py [--weights FILE] [--rounds N] [--record]

Models are written with random weights and the vocabulary sizes of Phi-3 (SentencePiece, 32,064),
Llama 3 (byte-level BPE, 128,256 tokens with 280,147 merges) and Gemma 3 (SentencePiece, 262,144).
The table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
from common import finish, quartiles, say

from gguf_engine.backend.llama import has_finite_numbers
from gguf_engine.loader.gguf import read_gguf
from gguf_engine.loader.parts import read_parts
from gguf_engine.loader.preflight import preflight
from gguf_engine.loader.resolve import resolve_model
from gguf_engine.loader.tensor_check import check_tensors
from gguf_engine.loader.verdicts import Verdicts

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tools"))
from make_gguf import write_tiny_model

N_LAYERS = 32


def write_model(path: Path, arch: str, vocab: str, n_vocab: int, n_merges: int = 0) -> Path:
    """Write a model of 32 narrow layers with a vocabulary of full size."""

    def edit(writer: gguf.GGUFWriter) -> None:
        if n_merges:
            merges = [f"{i:x} {i + 1:x}" for i in range(n_merges)]
            writer.kv_data[0]["tokenizer.ggml.merges"].value = merges

    options: dict[str, Any] = {"arch": arch, "vocab": vocab, "n_vocab": n_vocab, "n_layer": N_LAYERS}
    written: Path = write_tiny_model(path, n_embd=32, n_head=2, n_head_kv=1, edit=edit, **options)
    return written


def measure(work: Callable[[], object], n_rounds: int) -> dict[str, float]:
    """Return quartiles in milliseconds; the first round warms up."""
    times: list[float] = []
    for _ in range(n_rounds + 1):
        start = time.perf_counter()
        work()
        times.append(1e3 * (time.perf_counter() - start))
    return quartiles(times[1:])


def main() -> None:
    """Measure, print the table, end with JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--weights", type=Path, help="also read a model of this size whole, as a first load does"
    )
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--record", action="store_true")
    args = parser.parse_args()
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        models = {
            "haiku": resolve_model("haiku").weights,
            "32k tokens": write_model(folder / "a.gguf", "phi3", "spm", 32_064),
            "128k tokens": write_model(folder / "b.gguf", "llama", "bpe", 128_256, 280_147),
            "262k tokens": write_model(folder / "c.gguf", "gemma3", "spm", 262_144),
        }
        say(f"{'header of':14}{'tensors':>8}{'ms':>8}{'q1':>8}{'q3':>8}")
        for title, path in models.items():
            row = measure(lambda path=path: preflight(path), args.rounds)  # type: ignore[misc]
            results[title] = row
            n_tensors = len(read_gguf(path).tensors)
            say(f"{title:14}{n_tensors:>8}{row['median']:8.1f}{row['q1']:8.1f}{row['q3']:8.1f}")
    for path in filter(None, (resolve_model("haiku").weights, args.weights)):
        parts = read_parts(read_gguf(path))
        n_bytes = sum(part.size for part in parts)
        row = measure(lambda parts=parts: check_tensors(parts, Verdicts(None), has_finite_numbers), 3)  # type: ignore[misc]
        results[f"weights of {n_bytes} bytes"] = row
        say(f"weights of {n_bytes} bytes, read whole: {row['median']:.1f} ms")
    finish("preflight", results, args.record)


if __name__ == "__main__":
    main()
