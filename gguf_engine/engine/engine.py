"""Engine: the loop all requests share. Decide, compute, record. Called from one thread."""

from __future__ import annotations

import copy
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
from gguf_engine.engine.sequence import RequestFaultError, Sequence
from gguf_engine.errors import BackendError, GGUFEngineError, OptionError, SamplingError
from gguf_engine.outputs import FinishReason
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
        assert backend.n_slots <= backend.n_batch
        self.backend = backend
        self.kv_cache = KVCache(backend)
        self.scheduler = Scheduler(self.kv_cache, backend.n_batch, backend.n_ctx)
        self._prompts: frozenset[Sequence] = frozenset()  # computed by the pass under way
        try:
            self.sampler = Sampler(backend.n_vocab, backend.n_batch)
        except BaseException:
            backend.close()
            raise

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
            self._finish(sequence, "length")
        else:
            self.scheduler.waiting.append(sequence)

    def cancel(self, sequence: Sequence) -> None:
        """End a request now; nothing happens to one that has ended."""
        if not sequence.finished_at:
            self.scheduler.remove(sequence, keep=True)
            self._finish(sequence, "cancelled")

    def _finish(self, sequence: Sequence, reason: FinishReason) -> None:
        try:
            sequence.finish(reason)
        except Exception as error:  # noqa: BLE001 - a reader's fault ends its own request
            sequence.fail(error)

    def abort_prompt(self, sequence: Sequence) -> None:
        """
        End the pass under way if it computes a prompt of `sequence`. From any thread.

        Other passes are short, and ending them would cost those who share them.
        """
        if sequence in self._prompts:
            self.backend.abort()

    def step(self) -> None:
        """Run one forward pass and give its results to their sequences."""
        chunks, requests = self._decide()
        rows = self._compute(chunks) if chunks else None
        if rows is not None:
            self._record(chunks, requests, rows)

    def _decide(self) -> tuple[list[Chunk], list[SampleRequest]]:
        """Return what to compute, and what to draw from its rows."""
        try:
            chunks = self.scheduler.schedule()
            requests = [
                request
                for chunk in chunks
                if chunk.n_outputs
                for request in _sample_requests(chunk, self.backend.n_vocab)
            ]
        except RequestFaultError as fault:
            self._end_with_error(fault.sequence, fault.error)
            return [], []
        return chunks, requests

    def _compute(self, chunks: list[Chunk]) -> Rows | None:
        """Compute the chunks; None when the pass has to be planned again."""
        batch = Batch()
        for chunk in chunks:
            batch.add(chunk.slot, chunk.start, chunk.token_ids, chunk.n_outputs)
        if len(batch) > len(chunks):
            self._prompts = frozenset(
                chunk.sequence for chunk in chunks if len(chunk.token_ids) - chunk.n_drafts > 1
            )
        try:
            return self.backend.forward(batch)
        except ForwardAbortedError:
            for chunk in chunks:
                if not self.kv_cache.undo(chunk.slot):
                    self.scheduler.requeue(chunk.sequence)
        except OutOfCellsError:
            if len(self.scheduler.running) == 1:
                self._fail(chunks, BackendError(1, "no KV cells are left for the only running request"))
            else:
                self.scheduler.preempt_youngest()
        except BackendError as error:
            self._fail(chunks, error)
        finally:
            self._prompts = frozenset()
        return None

    def _fail(self, chunks: list[Chunk], error: BackendError) -> None:
        for chunk in chunks:
            self._end_with_error(chunk.sequence, error)

    def _end_with_error(self, sequence: Sequence, error: BaseException) -> None:
        self.scheduler.remove(sequence, keep=False)
        # A copy: several readers raise it, and each raise adds to an exception's traceback. Only of our
        # own classes: somebody else's may not survive copying.
        sequence.fail(copy.copy(error) if isinstance(error, GGUFEngineError) else error)

    def _record(self, chunks: list[Chunk], requests: list[SampleRequest], rows: Rows) -> None:
        for chunk in chunks:
            self.kv_cache.append(chunk.slot, chunk.token_ids)
            if not chunk.sequence.token_ids:
                chunk.sequence.n_prefilled += len(chunk.token_ids)
        samples = self.sampler.sample(rows, requests) if requests else []
        n_taken = 0
        for chunk in chunks:
            if chunk.n_outputs:
                try:
                    self._accept(chunk, samples[n_taken : n_taken + chunk.n_outputs])
                except Exception as error:  # noqa: BLE001 - a request's own fault ends that request
                    self._end_with_error(chunk.sequence, error)
                n_taken += chunk.n_outputs

    def _accept(self, chunk: Chunk, samples: list[Sample | SamplingError]) -> None:
        """Add the drawn ids to their sequence: drafts while they equal the draws, then one more."""
        sequence = chunk.sequence
        drafts = chunk.token_ids[len(chunk.token_ids) - chunk.n_drafts :]
        n_kept = chunk.start + len(chunk.token_ids) - len(drafts)
        sequence.n_drafted += len(drafts)
        for i, sample in enumerate(samples):
            if isinstance(sample, SamplingError):
                self._end_with_error(sequence, sample)
                return
            is_accepted = i < len(drafts) and sample.token_id == drafts[i]
            n_kept += is_accepted
            sequence.n_accepted += is_accepted
            has_ended = sequence.add(sample, self.backend.n_ctx)
            if has_ended or not is_accepted:
                break
        is_whole = self.kv_cache.truncate(chunk.slot, n_kept)
        if has_ended:
            self.scheduler.remove(sequence, keep=is_whole)
        elif not is_whole:
            self.scheduler.requeue(sequence)

    def fail_all(self, error: BaseException) -> None:
        """End every request with `error`."""
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            self._end_with_error(sequence, error)

    def close(self) -> None:
        """Free the sampler and the backend; twice is fine."""
        self.sampler.close()
        self.backend.close()


def _sample_requests(chunk: Chunk, n_vocab: int) -> list[SampleRequest]:
    """
    Return what to draw from a chunk's rows: each draft's row sees the drafts before it.

    Raises:
        RequestFaultError: The sequence's constraint failed, or a draft is no id of the vocabulary.
    """
    sequence = chunk.sequence
    mask = _mask(sequence, n_vocab)
    requests = [SampleRequest(sequence.options, sequence.prompt_ids, sequence.token_ids, mask)]
    n_known = len(chunk.token_ids) - chunk.n_drafts
    for i in range(chunk.n_drafts):
        if not 0 <= chunk.token_ids[n_known + i] < n_vocab:
            bad = OptionError("draft", chunk.token_ids[n_known + i], f"token ids in 0..{n_vocab - 1}")
            raise RequestFaultError(sequence, bad)
        token_ids = sequence.token_ids + chunk.token_ids[n_known : n_known + i + 1]
        requests.append(SampleRequest(sequence.options, sequence.prompt_ids, token_ids, None))
    return requests


def _mask(sequence: Sequence, n_vocab: int) -> bytes | None:
    if sequence.constraint is None:
        return None
    bits = bytearray((n_vocab + 31) // 32 * 4)
    try:
        sequence.constraint.fill_mask(bits)
    except Exception as error:
        raise RequestFaultError(sequence, error) from error
    return bytes(bits)
