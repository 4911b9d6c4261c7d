"""The child's side of the pipes: what requests deliver in one pass goes out in one write."""

from __future__ import annotations

import io
import pickle
from array import array
from functools import partial
from threading import Condition

from text_samples import from_json, spm_json

from gguf_engine.backend.fake import FakeBackend
from gguf_engine.engine import wire
from gguf_engine.engine.child import _Server
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

    def messages(self) -> list[list[list[object]]]:
        """Return the messages of each write."""
        return [[wire.decode(frame) for frame in wire.read_frames(io.BytesIO(part))] for part in self.parts]


def n_ended(outbox: Writes) -> int:
    return sum(
        message[0] == "pieces" and message[2][-1][4:5] != []  # type: ignore[index]
        for messages in outbox.messages()
        for message in messages
    )


def test_what_requests_deliver_in_one_pass_is_written_at_once() -> None:
    outbox = Writes()
    server = _Server(outbox)
    backend = partial(FakeBackend, n_vocab=TOKENIZER.n_vocab, n_slots=8, forward_s=0.05)
    server.open(pickle.dumps((EngineMaker(backend), TOKENIZER.table(), (), False)))
    for number in range(N_REQUESTS):
        request = Request(
            prompt_ids=array("i", [number + 1, 5]),
            params=SamplingParams(max_tokens=3, ignore_eos=True),
            seed=number,
            end_ids=frozenset(),
            n_vocab=TOKENIZER.n_vocab,
            whole=True,
        )
        server.handle(pickle.dumps(("submit", number, pickle.dumps(request))))
    with outbox.came:
        assert outbox.came.wait_for(lambda: n_ended(outbox) == N_REQUESTS, timeout=30)
    server.close()
    # The first one may have begun a pass before the others came.
    assert max(len(messages) for messages in outbox.messages()) >= N_REQUESTS - 1
