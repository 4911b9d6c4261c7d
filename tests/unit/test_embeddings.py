"""Embeddings on FakeBackend, whose vectors say what a slot holds: who shares, who waits, who is ended."""

from __future__ import annotations

import asyncio
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from engine_samples import Request, alone, finish, thread_of
from server_samples import wait_for
from text_samples import from_json, spm_json

from gguf_engine import (
    LLM,
    BackendError,
    EmbeddingError,
    EngineClosedError,
    OptionError,
    PromptTooLongError,
    embeddings,
)
from gguf_engine.backend.base import Batch, Pooling, Rows
from gguf_engine.backend.fake import FakeBackend, FakeEmbedder
from gguf_engine.engine.embedding import EmbeddingJob, Vectors
from gguf_engine.engine.engine import Engine

TOKENIZER = from_json(spm_json())
N_VOCAB = TOKENIZER.n_vocab
TEXTS = [[5, 6, 7], [5, 6], [9], [7, 6, 5, 4, 3, 2, 1], [5, 6, 7], *([i, i + 1] for i in range(20))]


@pytest.fixture
def make() -> Iterator[Callable[..., LLM]]:
    made: list[LLM] = []

    def make_one(kind: type[FakeBackend] = FakeBackend, **options: Any) -> LLM:
        metadata = options.pop("metadata", None)
        options = {"n_vocab": N_VOCAB, "n_ctx": 2048, **options}
        made.append(LLM(lambda: kind(**options), TOKENIZER, metadata=metadata))
        return made[-1]

    yield make_one
    for llm in made:
        llm.close()


def token_vectors(ids: Sequence[int]) -> Rows:
    """Return a text's vectors, computed in one pass by an embedder of its own."""
    backend = FakeBackend(n_vocab=N_VOCAB, n_ctx=4096, n_batch=4096)
    batch = Batch()
    batch.add(0, 0, ids, len(ids))
    return backend.embedder(4096).forward(batch)


def unit(rows: Any) -> Any:
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


class Job:
    """Texts given to an engine, and what came of them."""

    def __init__(self, engine: Engine, *texts: Sequence[int]) -> None:
        self.vectors: dict[int, bytes] = {}
        self.error: BaseException | None = None
        self.job = EmbeddingJob([array("i", ids) for ids in texts], self._take)
        engine.embeddings.add(self.job)

    def _take(self, delivered: Vectors | BaseException) -> None:
        if isinstance(delivered, BaseException):
            self.error = delivered
        else:
            assert not self.vectors.keys() & {number for number, _ in delivered}
            self.vectors.update(delivered)


def running_in(llm: LLM) -> frozenset[EmbeddingJob]:
    """Return whose texts the pass under way computes, without asking the engine's thread."""
    found: frozenset[EmbeddingJob] = thread_of(llm)._abort_embedding.__self__._computed  # type: ignore[attr-defined]
    return found


class Watched(FakeBackend):
    """Remembers its embedders and the sizes of their passes; fails where it is told to."""

    def __init__(self, fault: BaseException | None = None, **options: Any) -> None:
        super().__init__(**options)
        self.passes: list[list[tuple[int, int]]] = []
        self.made: list[FakeEmbedder] = []
        self.fault, self.is_whole = fault, False

    def embedder(self, n_cells: int) -> FakeEmbedder:
        made = super().embedder(n_cells)
        made.is_whole, plain = self.is_whole, made.forward
        if made.is_whole:
            made.n_batch = n_cells

        def forward(batch: Batch) -> Rows:
            slots = list(dict.fromkeys(batch.slots))
            self.passes.append([(slot, list(batch.slots).count(slot)) for slot in slots])
            fault, self.fault = self.fault, None
            if fault is not None:
                raise fault
            return plain(batch)

        made.forward = forward  # type: ignore[method-assign]
        self.made.append(made)
        return made


def test_a_vector_is_the_mean_of_its_tokens_and_of_length_1(make: Callable[..., LLM]) -> None:
    rows = make().embed(TEXTS)
    assert rows.shape == (len(TEXTS), FakeEmbedder.n_embd)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, [unit(token_vectors(ids).mean(0)) for ids in TEXTS], atol=1e-6)


@pytest.mark.parametrize(("pooling", "taken"), [("cls", 0), ("last", -1)])
def test_a_vector_is_that_of_the_first_or_the_last_token_where_the_model_says_so(
    make: Callable[..., LLM], pooling: Pooling, taken: int
) -> None:
    texts = [*TEXTS, list(range(1, 90))]  # longer than a pass
    rows = make(pooling=pooling, n_batch=32).embed(texts, normalize=False)
    assert (rows == [token_vectors(ids)[taken] for ids in texts]).all()


@pytest.mark.parametrize("n", [63, 64, 65, 512, 513, 2048])
def test_a_long_text_is_cut_into_passes_and_gets_the_cells_it_needs(
    make: Callable[..., LLM], n: int
) -> None:
    long = [i % 90 + 1 for i in range(n)]
    rows = make(n_batch=64).embed([[5, 6], long, [7]], normalize=False)
    np.testing.assert_allclose(rows[1], token_vectors(long).mean(0), atol=1e-6)
    np.testing.assert_allclose(rows[2], token_vectors([7])[0], atol=1e-6)


def test_the_embedder_is_made_at_the_first_use_and_again_only_for_a_longer_text() -> None:
    backend = Watched(n_vocab=N_VOCAB, n_ctx=2048)
    engine = Engine(backend)
    assert not backend.made
    for n in (3, 500, 600, 1000, 1025, 9):
        Job(engine, [1] * n)
        finish(engine)
    assert [each.n_cells for each in backend.made] == [512, 1024, 2048]
    engine.close()
    assert all(each.is_closed for each in backend.made)


def test_texts_of_all_callers_share_passes_one_of_each_caller_at_a_time() -> None:
    backend = Watched(n_vocab=N_VOCAB, n_ctx=256, n_batch=64)
    engine = Engine(backend)
    many, one = Job(engine, *([i + 1] * 2 for i in range(12))), Job(engine, [50])
    engine.step()
    assert set(one.vectors) == {0}
    assert len(many.vectors) == FakeEmbedder.n_slots - 1
    finish(engine)
    assert len(many.vectors) == 12
    assert all(sum(n for _, n in each) <= 64 for each in backend.passes)
    engine.close()


def test_a_model_that_looks_ahead_gets_whole_texts() -> None:
    backend = Watched(n_vocab=N_VOCAB, n_ctx=1024, n_batch=32)
    backend.is_whole = True
    engine = Engine(backend)
    texts = [[1] * 300, [2] * 200, [3] * 400, [4] * 5]
    job = Job(engine, *texts)
    engine.submit(Request(engine, [1, 2], max_tokens=9).sequence)  # beside which passes are short else
    finish(engine)
    assert [[n for _, n in each] for each in backend.passes] == [[300, 200], [400, 5]]
    assert len(job.vectors) == 4
    engine.close()


def test_answers_go_on_beside_texts_and_are_the_same() -> None:
    backend = Watched(n_vocab=97, n_ctx=2048, n_batch=512)
    engine = Engine(backend)
    request = Request(engine, [1, 2, 3], max_tokens=30)
    engine.submit(request.sequence)
    job = Job(engine, [5] * 2000)
    n_passes_until_first = 0
    while not request.delivered:
        engine.step()
        n_passes_until_first = len(backend.passes)
    assert n_passes_until_first < 5  # 2000 ids would be four whole passes
    assert backend.passes[0][0][1] <= 64
    finish(engine)
    assert request.completion.token_ids == alone([1, 2, 3], {"n_ctx": 2048}, max_tokens=30).token_ids
    assert job.error is None
    assert len(job.vectors) == 1
    engine.close()


def test_a_cancelled_job_ends_with_its_pass_and_the_others_are_whole(make: Callable[..., LLM]) -> None:
    llm = make(forward_s=0.01, n_batch=32)
    worker = thread_of(llm)
    ended: list[Vectors | BaseException] = []
    cancel = worker.embed([array("i", [1] * 2000)], ended.append)
    other = threading.Thread(target=lambda: rows.append(llm.embed(TEXTS)))
    rows: list[Any] = []
    other.start()
    wait_for(lambda: worker.call(lambda engine: len(engine.embeddings._texts)) > 1)
    cancel()
    other.join()
    np.testing.assert_allclose(rows[0], [unit(token_vectors(ids).mean(0)) for ids in TEXTS], atol=1e-6)
    assert len(ended) == 1
    assert isinstance(ended[0], EngineClosedError)
    cancel()  # twice is fine
    worker.call(lambda engine: None)
    assert len(ended) == 1


def test_those_who_share_a_pass_that_is_ended_begin_again() -> None:
    engine = Engine(FakeBackend(n_vocab=N_VOCAB, n_batch=16))
    first = Job(engine, list(range(1, 21)))
    engine.step()
    unwanted = Job(engine, [7, 8])
    engine.embeddings.abort(unwanted.job)
    engine.step()
    engine.embeddings.cancel(unwanted.job)
    finish(engine)
    assert isinstance(unwanted.error, EngineClosedError)
    mean = token_vectors(range(1, 21)).mean(0)
    np.testing.assert_allclose(np.frombuffer(first.vectors[0], "<f4"), mean, atol=1e-6)
    engine.close()


def test_a_cancel_does_not_wait_for_the_pass(make: Callable[..., LLM]) -> None:
    """The pass would take ten minutes."""
    llm = make(forward_s=600.0)
    worker = thread_of(llm)
    ended: list[Vectors | BaseException] = []
    cancel = worker.embed([array("i", [1])], ended.append)
    wait_for(lambda: bool(running_in(llm)))
    cancel()
    wait_for(lambda: bool(ended))


def test_an_exception_in_whoever_waits_ends_the_texts(
    make: Callable[..., LLM], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    llm = make(forward_s=0.01)
    monkeypatch.setattr(embeddings, "receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.embed([[1] * 2000])
    wait_for(lambda: not thread_of(llm).call(lambda engine: engine.embeddings.has_work))


def test_an_event_loop_embeds_too_and_a_cancelled_task_ends_its_texts(make: Callable[..., LLM]) -> None:
    llm = make(forward_s=0.001)

    async def ask() -> Any:
        slow = asyncio.ensure_future(llm.aembed([[1] * 2000] * 50))
        both = await asyncio.gather(llm.aembed(TEXTS[:3]), llm.aembed(TEXTS[:3], normalize=False))
        slow.cancel()
        await asyncio.gather(slow, return_exceptions=True)
        return both

    rows, raw = asyncio.run(ask())
    np.testing.assert_allclose(rows, unit(raw), atol=1e-6)
    assert (llm.embed(TEXTS[:3]) == rows).all()
    wait_for(lambda: not thread_of(llm).call(lambda engine: engine.embeddings.has_work))


def test_a_failed_pass_costs_its_texts_and_no_others() -> None:
    backend = Watched(BackendError(-3, "fault asked for"), n_vocab=N_VOCAB)
    engine = Engine(backend)
    first = Job(engine, [1], [2])
    engine.step()
    assert isinstance(first.error, BackendError)
    assert not engine.has_work
    second = Job(engine, [1], [2])
    finish(engine)
    assert second.error is None
    assert len(second.vectors) == 2
    engine.close()


def test_a_vector_that_is_not_finite_is_an_error(make: Callable[..., LLM]) -> None:
    class Broken(FakeBackend):
        def embedder(self, n_cells: int) -> FakeEmbedder:
            made = super().embedder(n_cells)
            plain = made.forward
            made.forward = lambda batch: plain(batch) * np.float32(np.inf)  # type: ignore[method-assign]
            return made

    with pytest.raises(BackendError, match="not finite"):
        make(Broken).embed([[1, 2]])


def test_a_fault_of_the_reader_ends_its_texts_alone() -> None:
    engine = Engine(FakeBackend(n_vocab=N_VOCAB))

    def fail(_: object) -> None:
        raise ZeroDivisionError

    engine.embeddings.add(EmbeddingJob([array("i", [1]), array("i", [2] * 100)], fail))
    other = Job(engine, [1], [3])
    finish(engine)
    assert len(other.vectors) == 2
    engine.close()


def test_a_model_that_makes_none_says_so_and_goes_on_answering(make: Callable[..., LLM]) -> None:
    llm = make(pooling=None)
    with pytest.raises(
        EmbeddingError, match="this model makes no embeddings: it is a fake that was told so"
    ):
        llm.embed("x")
    assert llm.generate([1, 2], max_tokens=2).token_ids


def test_a_closed_engine_embeds_nothing(make: Callable[..., LLM]) -> None:
    llm = make(forward_s=600.0)  # which closing does not wait for
    caught: list[BaseException] = []

    def wait() -> None:
        with pytest.raises(EngineClosedError) as error:
            llm.embed([[1] * 2000])
        caught.append(error.value)

    waiting = threading.Thread(target=wait)
    waiting.start()
    wait_for(lambda: bool(running_in(llm)))
    llm.close()
    waiting.join()
    assert caught
    with pytest.raises(EngineClosedError):
        llm.embed("x")


def test_a_string_gets_the_ends_that_the_model_wants_and_ids_are_taken_as_they_are(
    make: Callable[..., LLM],
) -> None:
    text = "the cat sat"
    plain = TOKENIZER.encode(text)
    assert [*map(list, make().encode_texts(["the cat sat", [3, 4]]))] == [plain, [3, 4]]
    wanted = {"tokenizer.ggml.add_eos_token": True, "tokenizer.ggml.eos_token_id": 2}
    llm = make(metadata=wanted)
    assert [*map(list, llm.encode_texts([text, [3, 4]]))] == [[*plain, 2], [3, 4]]
    assert (llm.embed(text) == llm.embed([array("i", [*plain, 2])])).all()


@pytest.mark.parametrize(
    ("texts", "said"),
    [
        ([], r"texts is \[\]; allowed: a text, or a list of texts"),
        (5, "texts is 5"),
        (b"x", "texts is b'x'"),
        (["x", ""], r"texts\[1\] is ''; allowed: at least one token"),
        (["x", []], r"texts\[1\] is \[\]; allowed: at least one token"),
        ([1, 2], r"texts\[0\] is 1; allowed: a text, or a list of token ids in 0..\d+"),
        ([[1, N_VOCAB]], r"texts\[0\] is"),
        ([array("i", [-1])], r"texts\[0\] is"),
        ([array("d", [1.0])], r"texts\[0\] is"),
        ([b"x"], r"texts\[0\] is b'x'"),
        ([[True]], r"texts\[0\] is \[True\]"),
        ([{"role": "user", "content": "x"}], r"texts\[0\] is"),
    ],
)
def test_what_is_no_text_is_refused_by_number(make: Callable[..., LLM], texts: Any, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        make().embed(texts)


def test_a_text_may_fill_the_context_and_no_more(make: Callable[..., LLM]) -> None:
    llm = make(n_ctx=64)
    assert llm.embed([[1] * 64]).shape == (1, FakeEmbedder.n_embd)
    with pytest.raises(PromptTooLongError, match=r"texts\[1\] is 65 tokens, the context holds 64"):
        llm.embed([[1], [1] * 65])
