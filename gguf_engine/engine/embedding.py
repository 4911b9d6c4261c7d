"""
Texts to vectors, beside the requests that generate: one pass over texts, one step of the others.

Texts of several callers share a pass, first come, first served, one text of each caller at a time. The
embedder is made when the first text comes, and again, larger, for a longer one.
"""

from __future__ import annotations

import contextlib
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from gguf_engine.backend.base import (
    Backend,
    Batch,
    Embedder,
    ForwardAbortedError,
    OutOfCellsError,
    Pooling,
    Rows,
)
from gguf_engine.engine.presets import PrefillPace
from gguf_engine.errors import BackendError, EngineClosedError

MIN_CELLS = 512

Vectors = list[tuple[int, bytes]]
"""Texts' numbers, and their vectors as little-endian float32."""
DeliverVectors = Callable[["Vectors | BaseException"], None]
"""Where vectors go, from the engine's thread, some at a time; an error ends the job."""


class EmbeddingJob:
    """
    Texts that somebody wants the vectors of.

    Args:
        texts: Their ids, at least one each, and none longer than the context.
        deliver: Takes each text's vector once, in any order.
    """

    def __init__(self, texts: Sequence[array[int]], deliver: DeliverVectors) -> None:
        self.texts, self.deliver = texts, deliver
        self.n_begun = 0
        self.is_unwanted = False

    def fail(self, error: BaseException) -> None:
        """End with an error; a reader that cannot even be told has gone."""
        with contextlib.suppress(Exception):
            self.deliver(error)


class _Text:
    """One text under way in a slot."""

    def __init__(self, job: EmbeddingJob, number: int, slot: int) -> None:
        self.job, self.number, self.slot = job, number, slot
        self.ids = job.texts[number]
        self.n_done = 0
        self._sum: NDArray[np.float64] = np.zeros(0)  # (n_embd,)

    def restart(self) -> None:
        self.n_done = 0

    def add(self, rows: Rows, pooling: Pooling) -> None:
        """Add the vectors of the next ids, (n, n_embd)."""
        if pooling == "mean":
            with np.errstate(invalid="ignore"):  # an infinity is seen in the end
                added = rows.sum(axis=0, dtype=np.float64)
                self._sum = self._sum + added if self.n_done else added
        elif pooling == "last" or not self.n_done:
            self._sum = rows[-1 if pooling == "last" else 0].astype(np.float64)
        self.n_done += len(rows)

    def vector(self, pooling: Pooling) -> bytes:
        """Return the text's vector, (n_embd,) float32, as bytes."""
        with np.errstate(over="ignore"):
            vector = (self._sum / len(self.ids) if pooling == "mean" else self._sum).astype("<f4")
        if not np.isfinite(vector).all():
            raise BackendError(0, "the model computed an embedding that is not finite")
        return vector.tobytes()


class Embeddings:
    """
    All embedding that an engine does. Called from its thread; `abort` alone from any.

    Args:
        backend: Makes the embedder; stays the engine's to close.
        pace: How many ids go into a pass beside running answers.
    """

    def __init__(self, backend: Backend, pace: PrefillPace) -> None:
        self._backend, self._pace = backend, pace
        self._embedder: Embedder | None = None
        self._jobs: deque[EmbeddingJob] = deque()  # with texts that have not begun
        self._texts: list[_Text] = []  # under way
        self._computed: frozenset[EmbeddingJob] = frozenset()  # by the pass under way

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self._jobs or self._texts)

    def add(self, job: EmbeddingJob) -> None:
        """Queue a job."""
        self._jobs.append(job)

    def cancel(self, job: EmbeddingJob) -> None:
        """End a job now; nothing happens to one that has ended."""
        if job in self._jobs or any(text.job is job for text in self._texts):
            self._end(job, EngineClosedError("these embeddings were cancelled"))

    def abort(self, job: EmbeddingJob) -> None:
        """End the pass under way if it computes a text of `job`. From any thread."""
        # First write, then read; `_compute` does it the other way round, so one of the two sees the other.
        job.is_unwanted = True
        if job in self._computed and (embedder := self._embedder) is not None:
            embedder.abort()

    def abort_pass(self) -> None:
        """End the pass under way, or the next. From any thread."""
        if (embedder := self._embedder) is not None:
            embedder.abort()

    def step(self, *, is_busy: bool) -> None:
        """
        Run one pass over texts and deliver what is done.

        Args:
            is_busy: Others wait for their turn, so it should be a short one.
        """
        try:
            embedder = self._begin()
        except Exception as error:  # noqa: BLE001 - no embedder: nobody gets anything
            self.fail_all(error)
            return
        batch, parts = self._plan(embedder, is_busy=is_busy)
        rows = self._compute(embedder, batch, parts)
        if rows is not None:
            self._record(embedder, rows, parts)

    def _begin(self) -> Embedder:
        """Put texts into free slots while there is room; return the embedder, which may be a new one."""
        embedder = self._embedder
        n_cells = sum(len(text.ids) for text in self._texts)
        while self._jobs:
            job = self._jobs[0]
            length = len(job.texts[job.n_begun])
            if embedder is None or (not self._texts and length > embedder.n_cells):
                embedder = self._make(length)
            if len(self._texts) == embedder.n_slots or n_cells + length > embedder.n_cells:
                break
            used = {text.slot for text in self._texts}
            slot = next(slot for slot in range(embedder.n_slots) if slot not in used)
            self._texts.append(_Text(job, job.n_begun, slot))
            n_cells += length
            job.n_begun += 1
            self._jobs.rotate(-1)
            if job.n_begun == len(job.texts):
                self._jobs.remove(job)
        assert embedder is not None
        return embedder

    def _make(self, length: int) -> Embedder:
        self.close()
        self._embedder = self._backend.embedder(max(MIN_CELLS, 1 << (length - 1).bit_length()))
        return self._embedder

    def _plan(self, embedder: Embedder, *, is_busy: bool) -> tuple[Batch, list[tuple[_Text, int]]]:
        """Return the next pass, and how many ids of which texts are in it."""
        room = embedder.n_batch
        if is_busy and not embedder.is_whole:
            room = min(room, self._pace.n_ids)
        batch = Batch()
        parts: list[tuple[_Text, int]] = []
        for text in self._texts:
            n_ids = min(room - len(batch), len(text.ids) - text.n_done)
            if not n_ids:
                break
            batch.add(text.slot, text.n_done, text.ids[text.n_done : text.n_done + n_ids], n_ids)
            parts.append((text, n_ids))
        return batch, parts

    def _compute(self, embedder: Embedder, batch: Batch, parts: list[tuple[_Text, int]]) -> Rows | None:
        self._computed = frozenset(text.job for text, _ in parts)
        if any(job.is_unwanted for job in self._computed):
            embedder.abort()
        started_at = time.perf_counter()
        try:
            rows = embedder.forward(batch)
        except ForwardAbortedError:  # whoever wanted that will say so; the others begin again
            for text, _ in parts:
                embedder.clear(text.slot)
                text.restart()
            return None
        except OutOfCellsError:
            self._fail(parts, BackendError(1, f"no KV cells are left for texts of {len(batch)} tokens"))
            return None
        except BackendError as error:
            self._fail(parts, error)
            return None
        finally:
            self._computed = frozenset()
        self._pace.record(len(batch), time.perf_counter() - started_at)
        return rows

    def _record(self, embedder: Embedder, rows: Rows, parts: list[tuple[_Text, int]]) -> None:
        n_taken = 0
        for text, n_ids in parts:
            text.add(rows[n_taken : n_taken + n_ids], embedder.pooling)
            n_taken += n_ids
        done = [text for text, _ in parts if text.n_done == len(text.ids)]
        for text in done:
            embedder.clear(text.slot)
            self._texts.remove(text)
        for job in dict.fromkeys(text.job for text in done):
            self._deliver(job, [text for text in done if text.job is job], embedder.pooling)

    def _deliver(self, job: EmbeddingJob, done: list[_Text], pooling: Pooling) -> None:
        try:
            job.deliver([(text.number, text.vector(pooling)) for text in done])
        except Exception as error:  # noqa: BLE001 - a job's own fault ends that job
            self._end(job, error)

    def _fail(self, parts: list[tuple[_Text, int]], error: BackendError) -> None:
        for job in dict.fromkeys(text.job for text, _ in parts):
            self._end(job, error)

    def _end(self, job: EmbeddingJob, error: BaseException) -> None:
        if job in self._jobs:
            self._jobs.remove(job)
        for text in [each for each in self._texts if each.job is job]:
            assert self._embedder is not None
            self._embedder.clear(text.slot)
            self._texts.remove(text)
        job.fail(error)

    def fail_all(self, error: BaseException) -> None:
        """End every job with `error`."""
        for job in dict.fromkeys([*self._jobs, *(text.job for text in self._texts)]):
            self._end(job, error)

    def close(self) -> None:
        """Free the embedder; twice is fine."""
        embedder, self._embedder = self._embedder, None
        if embedder is not None:
            embedder.close()
