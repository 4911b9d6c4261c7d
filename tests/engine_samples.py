"""Requests on FakeBackend without text: pieces spell ids, so a text is the list of its ids."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceABC
from typing import Any

from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine.engine import Engine
from gguf_engine.engine.sequence import Sequence
from gguf_engine.engine.worker import EngineWorker
from gguf_engine.llm import LLM
from gguf_engine.outputs import Completion, Piece
from gguf_engine.params import SamplingParams
from gguf_engine.streams import join
from gguf_engine.text.stops import StopMatcher


class SpelledIds:
    """A detokenizer whose text is the ids in brackets."""

    def push(self, token_id: int) -> str:
        return f"[{token_id}]"

    def flush(self) -> str:
        return ""


class Request:
    """A sequence, and what it delivered."""

    def __init__(
        self,
        engine: Engine,
        prompt_ids: SequenceABC[int],
        *,
        proposer: Any = None,
        constraint: Any = None,
        whole: Any = False,
        **options: Any,
    ) -> None:
        params = SamplingParams(**{"seed": 7, **options})
        seed = params.chosen_seed()
        self.delivered: list[Piece | BaseException] = []
        self.sequence = Sequence(
            prompt_ids=array("i", prompt_ids),
            params=params,
            seed=seed,
            options=engine.sampler.prepare(params, seed),
            detokenizer=SpelledIds(),  # type: ignore[arg-type]
            stops=StopMatcher(params.stop) if params.stop else None,
            end_ids=engine.backend.end_ids(()),
            deliver=self._take,
            constraint=constraint,
            proposer=proposer,
            whole=whole,
        )

    def _take(self, delivered: list[Piece] | BaseException) -> None:
        self.delivered += delivered if isinstance(delivered, list) else [delivered]

    @property
    def error(self) -> BaseException | None:
        last = self.delivered[-1] if self.delivered else None
        return last if isinstance(last, BaseException) else None

    @property
    def completion(self) -> Completion:
        pieces = [piece for piece in self.delivered if isinstance(piece, Piece)]
        return join(pieces, self.sequence.seed)


def thread_of(llm: LLM) -> EngineWorker:
    """Return the worker of a model that runs in a thread."""
    assert isinstance(llm._worker, EngineWorker)
    return llm._worker


def run(engine: Engine, *requests: Request, max_steps: int = 10_000) -> None:
    """Submit requests together and step until all have ended."""
    for request in requests:
        engine.submit(request.sequence)
    finish(engine, max_steps=max_steps)


def finish(engine: Engine, *, max_steps: int = 10_000) -> None:
    """Step until nothing is left to do."""
    for _ in range(max_steps):
        if not engine.has_work:
            return
        engine.step()
    raise AssertionError(f"still working after {max_steps} steps")


def alone(
    prompt_ids: SequenceABC[int], backend: dict[str, Any] | None = None, **options: Any
) -> Completion:
    """Return what a request gives on a fresh engine, with nothing beside it."""
    engine = Engine(FakeBackend(**(backend or {})))
    request = Request(engine, prompt_ids, **options)
    run(engine, request)
    engine.close()
    return request.completion
