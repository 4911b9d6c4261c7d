"""The child's side of the pipes: what requests deliver in one pass goes out in one write."""

from __future__ import annotations

import io
import math
import os
import pickle
import time
from array import array
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from threading import Condition
from typing import Any, ClassVar

import pytest
from text_samples import from_json, spm_json

from gguf_engine.backend.base import Batch, Rows
from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import wire
from gguf_engine.engine.child import _Server, trim
from gguf_engine.engine.engine import EngineMaker
from gguf_engine.engine.request import Request
from gguf_engine.params import SamplingParams

TOKENIZER = from_json(spm_json())
N_REQUESTS = 4


class Writes(io.BytesIO):
    """Keeps what is written, write by write."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: list[bytes] = []
        self.came = Condition()

    def write(self, data: object) -> int:
        assert isinstance(data, bytes)
        with self.came:
            self.parts.append(data)
            self.came.notify_all()
        return len(data)

    def messages(self) -> list[list[list[Any]]]:
        """Return the messages of each write."""
        return [[wire.decode(frame) for frame in wire.read_frames(io.BytesIO(part))] for part in self.parts]


class Noting(FakeBackend):
    """Notes, for each pass, how many ids it computes and how many pieces have been written before it."""

    outbox: ClassVar[Writes]
    passes: ClassVar[list[tuple[int, int]]] = []

    def forward(self, batch: Batch) -> Rows:
        pieces = [
            message for messages in self.outbox.messages() for message in messages if message[0] == "pieces"
        ]
        self.passes.append((len(batch), sum(len(message[2]) for message in pieces)))
        return super().forward(batch)


def submit(server: _Server, number: int, prompt_ids: Sequence[int], n_tokens: int, *, whole: bool) -> None:
    request = Request(
        prompt_ids=array("i", prompt_ids),
        params=SamplingParams(max_tokens=n_tokens, ignore_eos=True),
        seed=number,
        end_ids=frozenset(),
        n_vocab=TOKENIZER.n_vocab,
        whole=whole,
    )
    server.handle(pickle.dumps(("submit", number, pickle.dumps(request))))


def n_ended(outbox: Writes) -> int:
    return sum(
        message[0] == "pieces" and message[2][-1][4:5] != []
        for messages in outbox.messages()
        for message in messages
    )


def test_what_nobody_will_read_is_cut_off(tmp_path: Path) -> None:
    with (tmp_path / "words").open("w+b", buffering=0) as file:
        file.write(b"x" * 100)
        trim(file.fileno(), 100)
        assert file.seek(0, os.SEEK_END) == 100
        file.write(b"y")
        trim(file.fileno(), 100)
        file.write(b"last words")
        assert (tmp_path / "words").read_bytes() == b"last words"
    reading, writing = os.pipe()
    trim(writing, 0)
    os.close(reading)
    os.close(writing)


def test_what_requests_deliver_in_one_pass_is_written_at_once() -> None:
    outbox = Writes()
    server = _Server(outbox)
    backend = partial(FakeBackend, n_vocab=TOKENIZER.n_vocab, n_slots=8, forward_s=0.05)
    server.open(pickle.dumps((EngineMaker(backend), TOKENIZER.table(), (), False)))
    for number in range(N_REQUESTS):
        submit(server, number, [number + 1, 5], 3, whole=True)
    with outbox.came:
        assert outbox.came.wait_for(lambda: n_ended(outbox) == N_REQUESTS, timeout=30)
    server.close()
    # The first one may have begun a pass before the others came.
    assert max(len(messages) for messages in outbox.messages()) >= N_REQUESTS - 1


def test_what_a_reader_waits_for_is_written_before_a_pass_with_a_prompt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("gguf_engine.engine.sequence.HAND_OVER_S", math.inf)
    Noting.outbox = outbox = Writes()
    server = _Server(outbox)
    backend = partial(Noting, n_vocab=TOKENIZER.n_vocab, forward_s=0.01)
    server.open(pickle.dumps((EngineMaker(backend), TOKENIZER.table(), (), False)))
    submit(server, 0, [1, 2], 1000, whole=False)
    while len(Noting.passes) < 10:
        time.sleep(0.005)
    submit(server, 1, range(20), 1, whole=False)
    with outbox.came:
        assert outbox.came.wait_for(lambda: n_ended(outbox) == 1, timeout=30)
    server.close()
    n_passes, n_written = next((i, n) for i, (n_ids, n) in enumerate(Noting.passes) if i and n_ids > 1)
    assert n_passes >= 10
    assert n_written == n_passes
