"""
The parts of a token that are not the model's, timed by pytest-benchmark.

    pytest benchmarks/test_hot.py --benchmark-enable
    make bench-compare                                # against the last committed record

Without --benchmark-enable each part runs once, as a plain test of what it returns. Nothing here asserts a
time: tools/bench_compare.py says what became slower. Each part does a fixed amount of work in one call.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from engine_samples import Request
from make_gguf import write_tiny_model

from gguf_engine.backend.base import Batch, Rows
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.prefix_tree import PrefixTree
from gguf_engine.loader.gguf import read_gguf
from gguf_engine.loader.resolve import resolve_model
from gguf_engine.params import SamplingParams
from gguf_engine.sampling.sampler import Sample, Sampler, SampleRequest
from gguf_engine.text.detokenizer import Detokenizer
from gguf_engine.text.tokenizer import Tokenizer

Benchmark = Callable[..., Any]
"""pytest-benchmark's fixture: calls a function and returns what it returned."""

N_VOCAB = 32_064
N_STREAMS, N_STEPS = 8, 64
N_IDS = 1000
N_SLOTS, N_HELD = 64, 2048


def test_anchor(benchmark: Benchmark) -> None:
    """Time what no change here alters: how fast the machine and its Python are at the moment."""
    numbers = list(range(20_000))

    def work() -> int:
        counts: dict[int, int] = {}
        for number in numbers:
            counts[number & 255] = counts.get(number & 255, 0) + number
        return sum(counts.values())

    assert benchmark(work) == sum(numbers)


@pytest.mark.parametrize("n_rows", [1, 8])
@pytest.mark.parametrize("kind", ["flat", "peaked", "greedy"])
def test_sampler(benchmark: Benchmark, kind: str, n_rows: int) -> None:
    """One call that samples rows with penalties over 64 ids, by the default options or greedily."""
    rng = np.random.default_rng(1)
    row = rng.standard_normal(N_VOCAB).astype(np.float32) * np.float32(0.5 if kind == "flat" else 3.0)
    if kind != "flat":
        row[7] = 40
    params = SamplingParams(temperature=0.0) if kind == "greedy" else SamplingParams()
    sampler = Sampler(N_VOCAB, n_rows)
    request = SampleRequest(sampler.prepare(params, 1), array("i"), array("i", range(100, 164)))
    rows = np.tile(row, (n_rows, 1))

    results = benchmark(sampler.sample, rows, [request] * n_rows)
    assert len(results) == n_rows
    assert all(isinstance(result, Sample) for result in results)
    assert kind == "flat" or results[0].token_id == 7


def test_detokenizer(benchmark: Benchmark) -> None:
    """1,000 ids of the bundled tokenizer, pushed one at a time."""
    files = resolve_model("haiku")
    assert files.tokenizer is not None
    tokenizer = Tokenizer.from_file(files.tokenizer)
    text = "The ice is quiet now and a puck slides over the blue line. " * 100
    ids = tokenizer.encode(text, add_bos=False)[:N_IDS]
    assert len(ids) == N_IDS

    def work() -> str:
        detokenizer = Detokenizer(tokenizer)
        return "".join([*map(detokenizer.push, ids), detokenizer.flush()])

    made = benchmark(work)
    assert made
    assert text.startswith(made)


class FreeModel(FakeBackend):
    """A backend whose forward pass costs nothing: what is left is the engine's own work."""

    def __init__(self) -> None:
        super().__init__(n_ctx=256, n_cells=N_STREAMS * 256, n_slots=N_STREAMS, n_batch=256)
        self._row = np.zeros((N_STREAMS, self.n_vocab), np.float32)
        self._row[:, 5] = 9.0

    def forward(self, batch: Batch) -> Rows:
        """Return rows that were made before."""
        self.n_forwards += 1
        return self._row[: batch.n_outputs]


def test_scheduler_step(benchmark: Any) -> None:
    """64 passes over eight running requests: decide, compute for nothing, record."""
    engine = Engine(FreeModel())

    def start() -> None:
        while engine.has_work:
            engine.step()
        for n in range(N_STREAMS):
            request = Request(engine, range(n, n + 16), max_tokens=N_STEPS + 8, temperature=0.0)
            engine.submit(request.sequence)
        for _ in range(4):  # until all of them decode
            engine.step()

    def work() -> int:
        for _ in range(N_STEPS):
            engine.step()
        return engine.backend.n_forwards  # type: ignore[attr-defined, no-any-return]

    assert benchmark.pedantic(work, setup=start, rounds=30, warmup_rounds=1) >= N_STEPS
    engine.close()


@pytest.mark.parametrize("n_vocab", [1_000, N_VOCAB])
def test_header_reader(benchmark: Benchmark, tmp_path: Path, n_vocab: int) -> None:
    """The header of a model with so many tokens."""
    path = write_tiny_model(tmp_path / "m.gguf", n_vocab=n_vocab)
    assert len(benchmark(read_gguf, path).metadata["tokenizer.ggml.tokens"]) == n_vocab


def test_prefix_tree_longest(benchmark: Benchmark) -> None:
    """A text of 2,048 ids looked up among 64 slots that share parts of it."""
    tree, ids = _tree()
    length, slots = benchmark(tree.longest, ids)
    assert (length, slots) == (N_HELD, frozenset({N_SLOTS - 1}))


def test_prefix_tree_extend_and_cut(benchmark: Benchmark) -> None:
    """A slot that takes 2,048 ids and gives them back."""
    tree, ids = _tree()

    def work() -> None:
        tree.cut(0, 0)
        tree.extend(0, ids)

    benchmark(work)
    assert tree.longest(ids) == (N_HELD, frozenset({0, N_SLOTS - 1}))


def _tree() -> tuple[PrefixTree, array[int]]:
    """Return a tree in which slot n holds the first (n + 1) / 64 of some ids, and those ids."""
    ids = array("i", range(N_HELD))
    tree = PrefixTree(range(N_SLOTS))
    for slot in range(N_SLOTS):
        tree.extend(slot, ids[: (slot + 1) * N_HELD // N_SLOTS])
    return tree, ids
