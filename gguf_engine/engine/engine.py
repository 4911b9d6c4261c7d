"""Engine: the loop all requests share. Decide, compute, record. Called from one thread."""

from __future__ import annotations

import copy
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

from gguf_engine.backend.base import (
    Backend,
    Batch,
    ForwardAbortedError,
    OutOfCellsError,
    Placement,
    Rows,
)
from gguf_engine.engine.embedding import Embeddings
from gguf_engine.engine.kv_cache import KVCache
from gguf_engine.engine.prefix_store import PrefixCache, PrefixStore
from gguf_engine.engine.presets import IDLE_PASSES, PRESETS, PrefillPace
from gguf_engine.engine.scheduler import Chunk, Scheduler
from gguf_engine.engine.sequence import RequestFaultError, Sequence
from gguf_engine.engine.speculative import DraftMaker, Speculation, make_mask
from gguf_engine.errors import BackendError, GGUFEngineError, SamplingError
from gguf_engine.outputs import FinishReason
from gguf_engine.params import PresetName
from gguf_engine.sampling.sampler import Sample, Sampler, SampleRequest


class EngineFacts(NamedTuple):
    """What callers may know of an engine, which lives in another thread; see Backend."""

    n_vocab: int
    n_ctx: int
    n_ctx_train: int
    end_ids: frozenset[int]
    placement: Placement | None
    draft_placement: Placement | None  # of the draft model; None without one


class EngineStats(NamedTuple):
    """
    What an engine is doing.

    Attributes:
        n_running, n_waiting: Requests with a slot, and without one yet.
        n_slots: Requests that can run at once.
        n_cells, n_cells_used: KV cells, and those that hold something, kept prefixes included.
        n_crashes: Times that its process died; 0 for an engine in a thread.
        pid: Of the process it runs in.
        n_draft_faults: Times that guessing at the next ids failed and was turned off, for some requests
            or for all; their answers are the same without.
    """

    n_running: int
    n_waiting: int
    n_slots: int
    n_cells: int
    n_cells_used: int
    n_crashes: int
    pid: int
    n_draft_faults: int = 0


@dataclass(frozen=True, slots=True)
class EngineMaker:
    """
    How to make an engine, where it will run; can cross to another process if what it holds can.

    Attributes:
        make_backend: Makes the backend; called with the progress callback when there is one.
        draft: Where guesses at the next ids come from; None for none.
        preset: What the engine is tuned for; see EngineParams.
        prefix_cache: Where prefixes are kept on disk; None for nowhere.
    """

    make_backend: Callable[..., Backend]
    draft: DraftMaker | None = None
    preset: PresetName | None = None
    prefix_cache: PrefixCache | None = None

    def __call__(self, *on_load: Callable[[float], bool]) -> Engine:
        """Make it. `on_load` takes the share that is loaded, 0..1, and returns whether to go on."""
        backend = self.make_backend(*on_load)
        try:
            prefixes = None if self.prefix_cache is None else self.prefix_cache.open(backend)
            speculation = None if self.draft is None else self.draft(backend.n_vocab, *on_load)
        except BaseException:
            backend.close()
            raise
        return Engine(backend, speculation, preset=self.preset, prefixes=prefixes)


class Engine:
    """
    Runs requests on one backend.

    The engine owns the backend and what guesses: closing it closes them.

    Args:
        backend: The model.
        speculation: What guesses at the next ids; None leaves that to requests with a proposer.
        preset: What it is tuned for.
        prefixes: Where prefixes are kept on disk; None for nowhere.
    """

    def __init__(
        self,
        backend: Backend,
        speculation: Speculation | None = None,
        *,
        preset: PresetName | None = None,
        prefixes: PrefixStore | None = None,
    ) -> None:
        assert backend.n_slots <= backend.n_batch
        self.backend = backend
        chosen = PRESETS[preset]
        self.kv_cache = KVCache(backend, int(chosen.idle_share * backend.n_cells), _idle_passes(backend))
        self.speculation = speculation or Speculation(backend.n_vocab)
        self.scheduler = Scheduler(
            self.kv_cache,
            backend.n_batch,
            backend.n_ctx,
            self.speculation,
            PrefillPace(chosen.pass_s, backend.n_batch),
        )
        self.embeddings = Embeddings(backend, PrefillPace(chosen.pass_s, backend.n_batch))
        self.flush: Callable[[], None] = lambda: None
        """Called before a long pass, when what was handed over is not to wait for its end."""
        self._prefixes = prefixes
        self._prompts: frozenset[Sequence] = frozenset()  # computed by the pass under way
        try:
            self.sampler = Sampler(backend.n_vocab, backend.n_batch)
        except BaseException:
            self.speculation.close()
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
            self.speculation.placement,
        )

    def stats(self) -> EngineStats:
        """Return what the engine is doing."""
        scheduler = self.scheduler
        return EngineStats(
            n_running=len(scheduler.running),
            n_waiting=len(scheduler.waiting),
            n_slots=self.backend.n_slots,
            n_cells=self.backend.n_cells,
            n_cells_used=self.backend.n_cells - self.kv_cache.n_free_cells,
            n_crashes=0,
            pid=os.getpid(),
            n_draft_faults=self.speculation.n_faults,
        )

    @property
    def has_work(self) -> bool:
        """Whether `step` would do anything."""
        return bool(self.scheduler.running or self.scheduler.waiting or self.embeddings.has_work)

    def submit(self, sequence: Sequence) -> None:
        """Queue a request; one that asks for nothing ends here."""
        if sequence.params.max_tokens == 0:
            self._finish(sequence, "length")
            return
        if self._prefixes is None:
            sequence.n_keep = 0
        else:
            self._prefixes.prepare(sequence, self.kv_cache)
        self.scheduler.add(sequence)

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

    def abort(self) -> None:
        """End the pass under way, whatever it computes. From any thread."""
        self.backend.abort()
        self.embeddings.abort_pass()

    def abort_prompt(self, sequence: Sequence) -> None:
        """
        End the pass under way if it computes a prompt of `sequence`. From any thread.

        Other passes are short, and ending them would cost those who share them.
        """
        # First write, then read; `_compute` does it the other way round, so one of the two sees the other.
        sequence.is_unwanted = True
        if sequence in self._prompts:
            self.backend.abort()

    def step(self) -> None:
        """Run one forward pass and give its results to their sequences; before it, one over texts."""
        if self.embeddings.has_work:
            for sequence in self.scheduler.running:
                sequence.hand_over_rest()
            self.flush()
            self.embeddings.step(is_busy=self.scheduler.is_busy)
        if self._prefixes is not None:
            self._prefixes.restore(self.kv_cache, is_busy=self.scheduler.is_busy)
        chunks, requests = self._decide()
        rows = self._compute(chunks) if chunks else None
        if rows is not None:
            self._record(chunks, requests, rows)
            n_drafts = sum(chunk.n_drafts for chunk in chunks)
            if sum(len(chunk.token_ids) for chunk in chunks) == len(chunks) + n_drafts:
                self.speculation.learn(len(chunks), n_drafts)

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
            self._prepare_prompts(chunks)
        started_at = time.perf_counter()
        try:
            rows = self.backend.forward(batch)
            if self._prompts:
                self.scheduler.pace.record(len(batch), time.perf_counter() - started_at)
            return rows
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

    def _prepare_prompts(self, chunks: list[Chunk]) -> None:
        """Note whose prompts the pass computes: they make it a long one, which `abort_prompt` may end."""
        self._prompts = frozenset(
            chunk.sequence for chunk in chunks if len(chunk.token_ids) - chunk.n_drafts > 1
        )
        if any(sequence.is_unwanted for sequence in self._prompts):
            self.backend.abort()
        if self._prompts:
            for chunk in chunks:
                chunk.sequence.hand_over_rest()
            self.flush()

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
            if self._prefixes is not None and chunk.sequence.n_keep:
                self._prefixes.keep(chunk.sequence, chunk.slot, self.kv_cache)
        self.kv_cache.age()
        samples = self.sampler.sample(rows, requests) if requests else []
        n_taken = 0
        for chunk in chunks:
            if chunk.n_outputs:
                try:
                    if chunk.n_drafts:
                        self._accept_drafts(chunk, samples[n_taken : n_taken + chunk.n_outputs])
                    else:
                        self._accept(chunk.sequence, samples[n_taken])
                except Exception as error:  # noqa: BLE001 - a request's own fault ends that request
                    self._end_with_error(chunk.sequence, error)
                n_taken += chunk.n_outputs

    def _accept(self, sequence: Sequence, sample: Sample | SamplingError) -> None:
        """Add the drawn id to its sequence."""
        if isinstance(sample, SamplingError):
            self._end_with_error(sequence, sample)
        elif sequence.add(sample, self.backend.n_ctx):
            self.scheduler.remove(sequence, keep=True)

    def _accept_drafts(self, chunk: Chunk, samples: list[Sample | SamplingError]) -> None:
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
        n_right = n_kept - (chunk.start + len(chunk.token_ids) - len(drafts))
        self.speculation.note(sequence, n_right, int(not (is_accepted or has_ended)))
        is_whole = self.kv_cache.truncate(chunk.slot, n_kept)
        if not is_whole:
            self.speculation.stop("this model cannot forget a part of what it holds")
        if has_ended:
            self.scheduler.remove(sequence, keep=is_whole)
        elif not is_whole:
            self.scheduler.requeue(sequence)

    def fail_all(self, error: BaseException) -> None:
        """End every request with `error`."""
        for sequence in [*self.scheduler.running, *self.scheduler.waiting]:
            self._end_with_error(sequence, error)
        self.embeddings.fail_all(error)

    def close(self) -> None:
        """Free the sampler and the backend; twice is fine."""
        self.sampler.close()
        self.speculation.close()
        self.embeddings.close()
        if self._prefixes is not None:
            self._prefixes.close()
        self.backend.close()


def _idle_passes(backend: Backend) -> int | None:
    """Return for how many passes to keep what nobody asks for; None where it costs the others nothing."""
    placement = backend.placement
    return None if placement is None or placement.flash_attention else IDLE_PASSES


def _sample_requests(chunk: Chunk, n_vocab: int) -> list[SampleRequest]:
    """
    Return what to draw from a chunk's rows: each draft's row sees the drafts before it.

    Raises:
        RequestFaultError: The sequence's constraint failed.
    """
    sequence = chunk.sequence
    masks = chunk.masks or [_mask(sequence, n_vocab)]
    requests = [SampleRequest(sequence.options, sequence.prompt_ids, sequence.token_ids, masks[0])]
    n_known = len(chunk.token_ids) - chunk.n_drafts
    for i in range(1, chunk.n_drafts + 1):
        token_ids = sequence.token_ids + chunk.token_ids[n_known : n_known + i]
        mask = masks[i] if chunk.masks else None
        requests.append(SampleRequest(sequence.options, sequence.prompt_ids, token_ids, mask))
    return requests


def _mask(sequence: Sequence, n_vocab: int) -> bytes | None:
    if sequence.constraint is None:
        return None
    try:
        return make_mask(sequence.constraint, n_vocab)
    except Exception as error:
        raise RequestFaultError(sequence, error) from error
