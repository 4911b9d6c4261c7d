"""Engine: the loop all requests share. Decide, compute, record. Called from one thread."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gguf_engine.backend.base import (
    Backend,
    Batch,
    ForwardAbortedError,
    OutOfCellsError,
    Placement,
    Rows,
)
from gguf_engine.engine.kv_cache import KVCache
from gguf_engine.engine.scheduler import Chunk, Scheduler
from gguf_engine.engine.sequence import Sequence
from gguf_engine.errors import BackendError, SamplingError
from gguf_engine.sampling.sampler import Sample, Sampler, SampleRequest


class EngineFacts(NamedTuple):
    """What callers may know of an engine, which lives in another thread; see Backend."""

    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    end_ids: frozenset[int]
    placement: Placement | None


class Engine:
    """
    Runs requests on one backend.

    The engine owns the backend: closing the one closes the other.
    """

    def __init__(self, backend: Backend) -> None:
        self.backend = backend
        self.kv_cache = KVCache(backend)
        self.scheduler = Scheduler(self.kv_cache, backend.n_batch, backend.n_ctx)
        self.sampler = Sampler(backend.n_vocab, backend.n_batch)
        self.n_restarts = 0

    def facts(self, candidates: Iterable[int]) -> EngineFacts:
        """Return the facts that do not change; `candidates` are the ids that may end a generation."""
        backend = self.backend
        return EngineFacts(
            backend.n_vocab,
            backend.n_ctx,
            backend.n_ctx_train,
            backend.end_ids(candidates),
            backend.placement,
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self.scheduler.running or self.scheduler.waiting)

    def submit(self, sequence: Sequence) -> None:
        """Queue a request; one that asks for nothing ends here."""
        if sequence.params.max_tokens == 0:
            sequence.finish("length")
        else:
            self.scheduler.waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a request now; nothing happens to one that has ended."""
        if not sequence.finished_at:
            self.scheduler.remove(sequence, keep=True)
            sequence.finish("cancelled")

    def step(self) -> None:
        """Run one forward pass and give its results to their sequences."""
        chunks = self.scheduler.schedule()
        rows = self._forward(chunks) if chunks else None
        if rows is not None:
            self._record(chunks, rows)

    def _forward(self, chunks: list[Chunk]) -> Rows | None:
        """Compute the chunks; None when the pass has to be planned again."""
        batch = Batch()
        for chunk in chunks:
            batch.add(chunk.slot, chunk.start, chunk.token_ids, chunk.n_outputs)
        try:
            return self.backend.forward(batch)
        except ForwardAbortedError:
            for chunk in chunks:
                if not self.kv_cache.undo(chunk.slot):
                    self._restart(chunk.sequence)
        except OutOfCellsError:
            if len(self.scheduler.running) == 1:
                self._fail(chunks, BackendError(1, "no KV cells are left for the only running request"))
            else:
                self.scheduler.preempt_youngest()
        except BackendError as error:
            self._fail(chunks, error)
        return None

    def _restart(self, sequence: Sequence) -> None:
        """Drop a slot that cannot keep a part, and compute it again."""
        self.n_restarts += 1
        self.scheduler.restart(sequence)

    def _fail(self, chunks: list[Chunk], error: BackendError) -> None:
        for chunk in chunks:
            self._end_with_error(chunk.sequence, error)

    def _end_with_error(self, sequence: Sequence, error: BackendError | SamplingError) -> None:
        self.scheduler.remove(sequence, keep=False)
        sequence.fail(error)

    def _record(self, chunks: list[Chunk], rows: Rows) -> None:
        requests: list[SampleRequest] = []
        for chunk in chunks:
            self.kv_cache.append(chunk.slot, chunk.token_ids)
            if chunk.n_outputs:
                requests += _sample_requests(chunk, self.backend.n_vocab)
        samples = self.sampler.sample(rows, requests) if requests else []
        n_taken = 0
        for chunk in chunks:
            if chunk.n_outputs:
                self._accept(chunk, samples[n_taken : n_taken + chunk.n_outputs])
                n_taken += chunk.n_outputs

    def _accept(self, chunk: Chunk, samples: list[Sample | SamplingError]) -> None:
        """Add the drawn ids to their sequence: drafts while they equal the draws, then one more."""
        sequence = chunk.sequence
        drafts = chunk.token_ids[len(chunk.token_ids) - chunk.n_drafts :]
        n_accepted = 0
        for i, sample in enumerate(samples):
            if isinstance(sample, SamplingError):
                self._end_with_error(sequence, sample)
                return
            has_ended = sequence.add(sample, self.backend.n_ctx)
            if has_ended or i == len(drafts) or sample.token_id != drafts[i]:
                break
            n_accepted += 1
        sequence.n_drafted += len(drafts)
        sequence.n_accepted += n_accepted
        n_kept = chunk.start + len(chunk.token_ids) - len(drafts) + n_accepted
        is_whole = self.kv_cache.truncate(chunk.slot, n_kept)
        if has_ended:
            self.scheduler.remove(sequence, keep=is_whole)
        elif not is_whole:
            self._restart(sequence)

    def fail_all(self, error: BaseException) -> None:
        """End every request with `error`."""
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            self.scheduler.remove(sequence, keep=False)
            sequence.fail(error)

    def close(self) -> None:
        """Free the sampler and the backend; twice is fine."""
        self.sampler.close()
        self.backend.close()


def _sample_requests(chunk: Chunk, n_vocab: int) -> list[SampleRequest]:
    """Return what to draw from a chunk's rows: each draft's row sees the drafts before it."""
    sequence = chunk.sequence
    mask = None
    if sequence.constraint is not None:
        bits = bytearray((n_vocab + 31) // 32 * 4)
        sequence.constraint.fill_mask(bits)
        mask = bytes(bits)
    requests = [SampleRequest(sequence.options, sequence.prompt_ids, sequence.token_ids, mask)]
    n_known = len(chunk.token_ids) - chunk.n_drafts
    for i in range(chunk.n_drafts):
        token_ids = sequence.token_ids + chunk.token_ids[n_known : n_known + i + 1]
        requests.append(SampleRequest(sequence.options, sequence.prompt_ids, token_ids, None))
    return requests
