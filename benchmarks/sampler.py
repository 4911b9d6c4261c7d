"""
Microseconds from a row of logits to a token id, against llama.cpp's own samplers and NumPy.

What bounds it: a row of 32,064 float32 is 128 KB, about 1 us a pass from the second-level cache; one
exponential an id is some 20 vector operations, 5 to 10 us; a full sort is hundreds. A forward pass of a
small model takes milliseconds, so this is the part of a token that must not be noticed.

    python benchmarks/sampler.py [--record]

Everything goes through Python: ours through cffi, llama.cpp's through ctypes. All use the same rows, a
repeat penalty of 1.2 over 64 ids, temperature 1 and top-p 0.95, but for the pair marked "default",
which uses the options that llama.cpp starts with. llama.cpp samples in place in an array of candidates,
which its own llama_sampler_sample fills anew for each token: that is included here, as one memcpy, and
shown apart. Ours leaves its row as it was, so nothing has to be restored.

The methods take turns, five calls each time, so that a busy machine slows all of them; figures are
medians of all calls. The table goes to stderr; the last line of stdout is one JSON object.
"""

from __future__ import annotations

import argparse
import ctypes
import statistics
import time
from array import array
from collections.abc import Callable
from typing import Any

import numpy as np
from common import finish, say
from llama_cpp import llama_cpp as library
from numpy.typing import NDArray

from gguf_engine.params import SamplingParams
from gguf_engine.sampling.sampler import Sample, Sampler, SampleRequest

N_TURNS, N_CALLS = 60, 5
N_BATCH = 8
TOP_P, PENALTY, WINDOW = 0.95, 1.2, 64
KINDS = ("peaked", "flat")

Row = NDArray[np.float32]
Method = Callable[[int], int]
"""Samples draw t, returns an id."""

SAME_ORDER = SamplingParams(top_p=TOP_P, repeat_penalty=PENALTY, repeat_last_n=WINDOW)
LLAMA_CPP_DEFAULT = SamplingParams(
    temperature=0.8, top_k=40, top_p=0.95, min_p=0.05, repeat_penalty=1.0, order="llama.cpp"
)


def make_row(kind: str, n_vocab: int) -> Row:
    """
    Return a row with a fixed seed.

    Peaked is a model that nearly knows: noise, and twenty ids far above it. Flat is one that does not.
    """
    rng = np.random.default_rng(n_vocab)
    row: Row = rng.standard_normal(n_vocab).astype(np.float32)
    row *= np.float32(3.0 if kind == "peaked" else 0.5)
    if kind == "peaked":
        row[rng.integers(0, n_vocab, 20)] = np.linspace(16, 25, 20, dtype=np.float32)
    return row


def ours(row: Row, params: SamplingParams, history: list[int], n_rows: int = 1) -> Method:
    """Return a method over `Sampler`; with n_rows it samples that many equal rows a call."""
    sampler = Sampler(len(row), n_rows)
    options = sampler.prepare(params, 1)
    rows = np.tile(row, (n_rows, 1))
    prompt = array("i")
    histories = [array("i", [*range(t), *history]) for t in range(64)]

    def sample(t: int) -> int:
        request = SampleRequest(options, prompt, histories[t % 64])
        result = sampler.sample(rows, [request] * n_rows)[-1]
        assert isinstance(result, Sample)
        return result.token_id

    return sample


class Candidates:
    """llama.cpp's array of candidates, and what it is filled from before each token."""

    def __init__(self, row: Row) -> None:
        kind = np.dtype([("id", np.int32), ("logit", np.float32), ("p", np.float32)])
        self._fresh = np.zeros(len(row), kind)
        self._fresh["id"], self._fresh["logit"] = np.arange(len(row)), row
        self._used = self._fresh.copy()
        self._from, self._to = self._fresh.ctypes.data, self._used.ctypes.data
        data = self._used.ctypes.data_as(ctypes.POINTER(library.llama_token_data))
        self.array = library.llama_token_data_array(data, len(row), -1, False)
        self.pointer = ctypes.byref(self.array)

    def refill(self) -> None:
        """Make the array what it was."""
        ctypes.memmove(self._to, self._from, self._fresh.nbytes)
        self.array.size, self.array.selected, self.array.sorted = len(self._fresh), -1, False


def _chain(samplers: list[Any], history: list[int]) -> Any:
    chain = library.llama_sampler_chain_init(library.llama_sampler_chain_default_params())
    for sampler in samplers:
        library.llama_sampler_chain_add(chain, sampler)
    for token_id in history:
        library.llama_sampler_accept(chain, token_id)
    return chain


def llama_same_order(n_vocab: int, history: list[int]) -> Any:
    """Return the chain of our order: penalties, temperature, top-p, draw."""
    samplers = [
        library.llama_sampler_init_penalties(n_vocab, WINDOW, PENALTY, 0.0, 0.0),
        library.llama_sampler_init_temp(1.0),
        library.llama_sampler_init_top_p(TOP_P, 1),
        library.llama_sampler_init_dist(1),
    ]
    return _chain(samplers, history)


def llama_default(history: list[int]) -> Any:
    """Return the chain that llama.cpp's programs start with, without what is off in it."""
    samplers = [
        library.llama_sampler_init_top_k(40),
        library.llama_sampler_init_top_p(0.95, 1),
        library.llama_sampler_init_min_p(0.05, 1),
        library.llama_sampler_init_temp(0.8),
        library.llama_sampler_init_dist(1),
    ]
    return _chain(samplers, history)


def llama_cpp_chain(row: Row, chain: Any) -> Method:
    """Return a method that does what llama_sampler_sample does: fill, apply, read, accept."""
    candidates = Candidates(row)

    def sample(_: int) -> int:
        candidates.refill()
        library.llama_sampler_apply(chain, candidates.pointer)
        token_id = int(candidates.array.data[candidates.array.selected].id)
        library.llama_sampler_accept(chain, token_id)
        return token_id

    return sample


def llama_cpp_refill(row: Row) -> Method:
    """Return the part of `llama_cpp_chain` that fills the candidates."""
    candidates = Candidates(row)

    def sample(_: int) -> int:
        candidates.refill()
        return 0

    return sample


def _penalised(row: Row, window: NDArray[np.int32]) -> Row:
    logits: Row = row.copy()
    seen = np.unique(window)
    values = logits[seen]
    logits[seen] = np.where(values > 0, values / np.float32(PENALTY), values * np.float32(PENALTY))
    return logits


def numpy_sort(row: Row, history: list[int]) -> Method:
    """Return the textbook way in NumPy: softmax, sort everything, cut, draw."""
    window, rng = np.array(history, dtype=np.int32), np.random.default_rng(1)

    def sample(_: int) -> int:
        logits = _penalised(row, window)
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        ids = np.argsort(-probs)
        cumulative = np.cumsum(probs[ids])
        n_kept = int(np.searchsorted(cumulative, TOP_P)) + 1
        return int(ids[np.searchsorted(cumulative, rng.random() * cumulative[n_kept - 1], side="right")])

    return sample


def numpy_partition(row: Row, history: list[int]) -> Method:
    """Return the quick way in NumPy: sort the 1,024 best, and everything only if they do not reach."""
    window, rng = np.array(history, dtype=np.int32), np.random.default_rng(1)

    def sample(_: int) -> int:
        logits = _penalised(row, window)
        probs = np.exp(logits - logits.max())
        probs /= probs.sum()
        best = np.argpartition(-probs, 1024)[:1024]
        ids = best[np.argsort(-probs[best])]
        cumulative = np.cumsum(probs[ids])
        if cumulative[-1] < TOP_P:
            ids = np.argsort(-probs)
            cumulative = np.cumsum(probs[ids])
        n_kept = int(np.searchsorted(cumulative, TOP_P)) + 1
        return int(ids[np.searchsorted(cumulative, rng.random() * cumulative[n_kept - 1], side="right")])

    return sample


def methods(row: Row, history: list[int]) -> dict[str, Method]:
    """Return all that is compared on a row."""
    return {
        "ours": ours(row, SAME_ORDER, history),
        "ours, 8 rows a call": ours(row, SAME_ORDER, history, N_BATCH),
        "ours, greedy": ours(row, SamplingParams(temperature=0.0), history),
        "llama.cpp, same order": llama_cpp_chain(row, llama_same_order(len(row), history)),
        "ours, default": ours(row, LLAMA_CPP_DEFAULT, history),
        "llama.cpp, default": llama_cpp_chain(row, llama_default(history)),
        "llama.cpp, its fill alone": llama_cpp_refill(row),
        "NumPy, sort": numpy_sort(row, history),
        "NumPy, argpartition": numpy_partition(row, history),
    }


def measure(row: Row, history: list[int]) -> dict[str, float]:
    """Return method -> median microseconds a row."""
    compared = methods(row, history)
    times: dict[str, list[int]] = {name: [] for name in compared}
    for turn in range(N_TURNS):
        for name, method in compared.items():
            for call in range(N_CALLS):
                start = time.perf_counter_ns()
                method(turn * N_CALLS + call)
                times[name].append(time.perf_counter_ns() - start)
    medians = {name: statistics.median(values) / 1000 for name, values in times.items()}
    medians["ours, 8 rows a call"] /= N_BATCH
    return {name: round(value, 2) for name, value in medians.items()}


def nucleus(row: Row) -> int:
    """Return how many ids top-p leaves."""
    probs = np.sort(np.exp(row.astype(np.float64) - row.max()))[::-1]
    return int(np.searchsorted(np.cumsum(probs / probs.sum()), TOP_P)) + 1


def main() -> None:
    """Measure, print, record."""
    parser = argparse.ArgumentParser(description="Microseconds from a row of logits to a token id.")
    parser.add_argument("--record", action="store_true")
    record = parser.parse_args().record
    cases = []
    for n_vocab in (32_064, 128_256):
        for kind in KINDS:
            row = make_row(kind, n_vocab)
            history = np.random.default_rng(1).integers(0, n_vocab, WINDOW).tolist()
            us = measure(row, history)
            cases.append(
                {
                    "n_vocab": n_vocab,
                    "row": kind,
                    "n_nucleus": nucleus(row),
                    "us_per_row": us,
                    "same_order_speedup": round(us["llama.cpp, same order"] / us["ours"], 1),
                    "default_speedup": round(us["llama.cpp, default"] / us["ours, default"], 1),
                }
            )
            say(f"{n_vocab} {kind}, top-p leaves {cases[-1]['n_nucleus']}")
            for name, value in us.items():
                say(f"  {name:28}{value:10.2f} us{value / us['ours']:9.1f} x")
    finish("sampler", {"cases": cases}, record)


if __name__ == "__main__":
    main()
