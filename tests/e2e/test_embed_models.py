"""Embeddings of real models: against llama-cpp-python's own, alone and in company, as the file says."""

from __future__ import annotations

import os
import signal
import threading
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from adapter_samples import write_adapter
from encoder_samples import CLS, N_CTX, SEP, write_encoder
from engine_samples import finish
from llama_cpp import Llama

from gguf_engine import LLM, EmbeddingError, llm
from gguf_engine.backend.llama import LlamaBackend
from gguf_engine.engine.embedding import EmbeddingJob, Vectors
from gguf_engine.engine.engine import Engine
from gguf_engine.params import EngineParams, Isolation

pytestmark = pytest.mark.e2e

HAIKU = Path(llm.__file__).parent / "data" / "haiku-q4_k_m.gguf"
TEXTS = (
    "a frog jumps into the old pond",
    "the frog leaps into the pond",
    "Write a haiku about ice hockey",
    "snow",
    "the moon over the wall and the rain in the reeds, " * 30,
)
CLOSE = 0.999
"""Cosine that stands for "equal": llama.cpp rounds activations to 8 bits, and adds up by batch."""

Pooling = gguf.PoolingType
Make = Callable[..., Path]


@pytest.fixture(scope="module", params=["thread", "process"])
def haiku(request: pytest.FixtureRequest) -> Iterator[LLM]:
    isolation: Isolation = request.param
    with LLM.load("haiku", isolation=isolation) as loaded:
        yield loaded


def cosines(a: Any, b: Any) -> Any:
    return (np.asarray(a) * np.asarray(b)).sum(axis=1)


def theirs(path: Path, texts: Sequence[str], **options: Any) -> Any:
    """Return the vectors of llama-cpp-python, each computed in one pass."""
    model = Llama(str(path), embedding=True, verbose=False, n_ctx=0, n_batch=4096, n_ubatch=4096, **options)
    rows = np.array([model.embed(text, normalize=True) for text in texts])
    model.close()
    return rows


def test_the_vectors_are_those_of_llama_cpp(haiku: LLM) -> None:
    rows = haiku.embed(TEXTS)
    assert rows.shape == (len(TEXTS), 256)
    assert cosines(rows, theirs(HAIKU, TEXTS, pooling_type=Pooling.MEAN)).min() > CLOSE


def test_a_text_in_company_is_the_text_alone_and_what_is_alike_is_near(haiku: LLM) -> None:
    rows = haiku.embed(TEXTS)
    alone = np.vstack([haiku.embed(text) for text in TEXTS])
    assert cosines(rows, alone).min() > CLOSE
    assert cosines(rows, haiku.embed(TEXTS[::-1])[::-1]).min() > CLOSE
    frogs, hockey = rows[0] @ rows[1], rows[0] @ rows[2]
    assert frogs > hockey


def test_a_text_longer_than_a_pass_and_than_the_first_cells_is_whole(haiku: LLM) -> None:
    text = "the wind in the reeds and the rain on the pond, " * 200
    n_tokens = len(haiku.encode_texts(text)[0])
    assert 2048 < n_tokens < haiku.n_ctx
    mean = theirs(HAIKU, [text], pooling_type=Pooling.MEAN)
    assert cosines(haiku.embed([text, "snow"])[:1], mean)[0] > CLOSE


def test_answers_are_the_same_beside_embeddings(haiku: LLM) -> None:
    alone = haiku.generate("the old pond", seed=3, max_tokens=40).text
    stream = haiku.stream("the old pond", seed=3, max_tokens=40)
    for _ in range(3):
        haiku.embed(TEXTS)
    assert "".join(piece.text for piece in stream) == alone


def test_ctrl_c_ends_embeddings_and_leaves_the_engine_usable(haiku: LLM) -> None:
    texts = ["the wind in the reeds and the rain on the pond, " * 200] * 200  # a minute of work
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        haiku.embed(texts)
    timer.join()
    assert haiku.embed("snow").shape == (1, 256)
    assert haiku.generate("snow", max_tokens=2).usage.n_completion == 2


def test_an_adapter_is_used_here_too(tmp_path: Path, make_tiny_model: Make) -> None:
    path = make_tiny_model()
    adapter = str(write_adapter(tmp_path / "adapter.gguf", path, fill=0.2))
    with LLM.load(path, lora=[adapter]) as loaded:
        rows = loaded.embed(TEXTS[:4])
    assert (
        cosines(rows, theirs(path, TEXTS[:4], pooling_type=Pooling.MEAN, lora_path=adapter)).min() > CLOSE
    )
    assert cosines(rows, embedded(path, TEXTS[:4])).max() < CLOSE


@pytest.mark.parametrize("pooling", [Pooling.NONE, Pooling.MEAN, Pooling.CLS, Pooling.LAST])
@pytest.mark.parametrize("arch", ["qwen3", "gemma3"])
def test_texts_are_pooled_as_the_file_says(
    make_tiny_model: Make, arch: str, pooling: gguf.PoolingType
) -> None:
    path = make_tiny_model(arch=arch, edit=pooled(pooling))
    rows = embedded(path, TEXTS[:4])
    as_said = Pooling.MEAN if pooling is Pooling.NONE else pooling
    assert cosines(rows, theirs(path, TEXTS[:4], pooling_type=as_said)).min() > CLOSE
    other = Pooling.CLS if pooling is Pooling.LAST else Pooling.LAST
    assert cosines(rows, theirs(path, TEXTS[:4], pooling_type=other)).min() < CLOSE


def test_an_encoder_gets_whole_texts_and_gives_llama_cpp_s_vectors(tmp_path: Path) -> None:
    """Below LLM, which cannot read such a model's vocabulary."""
    path = write_encoder(tmp_path / "bert.gguf")
    texts = [[CLS, 5, 6, 7, SEP], [CLS, 8, SEP], [CLS, *[9, 10] * 50, SEP], [CLS, *range(20, 60), SEP]]
    engine = Engine(LlamaBackend(path, EngineParams(n_threads=1, n_batch=32)))
    rows: dict[int, Any] = {}

    def take(delivered: Vectors | BaseException) -> None:
        assert isinstance(delivered, list)
        rows.update({number: np.frombuffer(vector, "<f4") for number, vector in delivered})

    engine.embeddings.add(EmbeddingJob([array("i", ids) for ids in texts], take))
    finish(engine)
    engine.close()
    model = Llama(str(path), embedding=True, verbose=False, n_ctx=N_CTX, n_batch=N_CTX, n_ubatch=N_CTX)
    model.tokenize = lambda number: texts[int(number)]
    expected = np.array([model.embed(str(i), normalize=True) for i in range(len(texts))])
    model.close()
    ours = np.array([rows[i] / np.linalg.norm(rows[i]) for i in range(len(texts))])
    assert cosines(ours, expected).min() > CLOSE


def test_a_model_that_ranks_makes_no_embeddings(make_tiny_model: Make) -> None:
    with pytest.raises(EmbeddingError, match="it scores how well two texts go together"):
        embedded(make_tiny_model(arch="qwen3", edit=pooled(Pooling.RANK)), ["x"])


def test_a_text_ends_as_the_file_says(make_tiny_model: Make) -> None:
    plain, ending = make_tiny_model(arch="qwen3"), make_tiny_model(arch="qwen3", edit=ended)
    with LLM.load(plain) as one, LLM.load(ending) as other:
        (ids,), (longer,) = one.encode_texts("the pond"), other.encode_texts("the pond")
        assert list(longer) == [*ids, other.tokenizer.eos_id]
        assert cosines(other.embed("the pond"), other.embed([list(longer)]))[0] > CLOSE


def embedded(path: Path, texts: Sequence[str]) -> Any:
    with LLM.load(path) as loaded:
        return loaded.embed(texts)


_EDITS: dict[gguf.PoolingType, Callable[[Any], None]] = {}


def pooled(pooling: gguf.PoolingType) -> Callable[[Any], None]:
    """Return one function for each kind: models are made once for each set of options."""

    def edit(writer: Any) -> None:
        writer.add_pooling_type(pooling)

    return _EDITS.setdefault(pooling, edit)


def ended(writer: Any) -> None:
    writer.add_add_eos_token(True)
