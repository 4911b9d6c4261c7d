"""Embeddings as callers see them: texts to rows of numbers, waited for in a thread or in an event loop."""

from __future__ import annotations

import contextlib
import queue
from array import array
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gguf_engine.engine.embedding import Vectors
from gguf_engine.engine.worker import Worker, receive
from gguf_engine.errors import OptionError
from gguf_engine.text.tokenizer import Tokenizer

Text = str | Sequence[int]
"""A text, or its token ids, which are taken as they are."""

_Delivered = Vectors | BaseException


def encode_texts(
    texts: str | Sequence[Text], tokenizer: Tokenizer, end: list[int], n_vocab: int, name: str
) -> list[array[int]]:
    """
    Return the token ids of texts, checked.

    Args:
        texts: One text or several; see `LLM.embed`.
        tokenizer: What makes ids of a string, the first one that the model wants among them.
        end: Ids that the model wants at the end of a string.
        n_vocab: Ids are 0..n_vocab-1.
        name: What errors call them.

    Raises:
        OptionError: No text, an empty one, or something that is none; says which.
    """
    several: Any = [texts] if isinstance(texts, str) else texts
    if not _is_list(several) or not several:
        raise OptionError(name, texts, "a text, or a list of texts or of lists of token ids, not empty")
    encoded = []
    for i, text in enumerate(several):
        if isinstance(text, str):
            ids = tokenizer.encode(text)
            ids += end if ids else []
        elif isinstance(text, array) and text.typecode == "i" and _are_ids(text, n_vocab):
            encoded.append(text)
            continue
        elif _is_list(text) and all(_is_id(each, n_vocab) for each in text):
            ids = list(text)
        else:
            raise OptionError(f"{name}[{i}]", text, f"a text, or a list of token ids in 0..{n_vocab - 1}")
        if not ids:
            raise OptionError(f"{name}[{i}]", text, "at least one token")
        encoded.append(array("i", ids))
    return encoded


def _is_list(value: object) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (bytes, bytearray))


def _are_ids(ids: array[int], n_vocab: int) -> bool:
    return bool(ids) and min(ids) >= 0 and max(ids) < n_vocab


def _is_id(value: object, n_vocab: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < n_vocab


class _Rows:
    """Collects the vectors of some texts."""

    def __init__(self, n_texts: int) -> None:
        self._vectors: dict[int, bytes] = {}
        self._n_texts = n_texts

    def take(self, delivered: _Delivered) -> bool:
        """Take what came; return whether it was the last."""
        if isinstance(delivered, BaseException):
            raise delivered
        self._vectors.update(delivered)
        return len(self._vectors) == self._n_texts

    def rows(self, *, normalize: bool) -> NDArray[np.float32]:
        """Return all vectors, (n_texts, n_embd) float32, each of length 1 if `normalize`."""
        data = b"".join(self._vectors[number] for number in range(self._n_texts))
        rows = np.frombuffer(data, "<f4").reshape(self._n_texts, -1).astype(np.float32)
        if normalize:
            # In float64: the squares of large numbers are beyond float32.
            lengths = np.linalg.norm(rows.astype(np.float64), axis=1, keepdims=True)
            rows = (rows / np.maximum(lengths, np.finfo(np.float32).tiny)).astype(np.float32)
        return rows


def embed(worker: Worker, texts: Sequence[array[int]], *, normalize: bool) -> NDArray[np.float32]:
    """Embed checked texts; an exception in the waiting thread, Ctrl-C for one, ends it."""
    delivered: queue.SimpleQueue[_Delivered] = queue.SimpleQueue()
    rows = _Rows(len(texts))
    with _ending(worker.embed(texts, delivered.put)):
        while not rows.take(receive(delivered)):
            worker.check_process()
    return rows.rows(normalize=normalize)


async def aembed(worker: Worker, texts: Sequence[array[int]], *, normalize: bool) -> NDArray[np.float32]:
    """Embed checked texts inside a running event loop; cancelling the task ends it."""
    import asyncio  # here, because it takes as long to import as half of this package

    loop = asyncio.get_running_loop()
    delivered: asyncio.Queue[_Delivered] = asyncio.Queue()

    def deliver(vectors: _Delivered) -> None:
        # A loop that is closed, now or meanwhile, has nobody left who reads.
        with contextlib.suppress(RuntimeError):
            loop.call_soon_threadsafe(delivered.put_nowait, vectors)

    rows = _Rows(len(texts))
    with _ending(worker.embed(texts, deliver)):
        while not rows.take(await delivered.get()):
            worker.check_process()
    return rows.rows(normalize=normalize)


@contextlib.contextmanager
def _ending(end: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    except BaseException:
        end()
        raise
