"""
What crosses the pipes between an engine in a child process and the process that asked for it.

Towards the child go pickles: it runs our code. Back come JSON frames, which can only be data: what a
model file has made of the child must not reach further than its own requests.
"""

from __future__ import annotations

import base64
import builtins
import json
import struct
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, BinaryIO

from gguf_engine import errors
from gguf_engine.backend.base import Placement
from gguf_engine.engine.engine import EngineFacts
from gguf_engine.errors import GGUFEngineError
from gguf_engine.outputs import Piece, Timings, TokenLogprob, Usage

MAX_FRAME_BYTES = 2**28

_LENGTH = struct.Struct("<I")
_ENCODER = json.JSONEncoder(ensure_ascii=True, separators=(",", ":"), default=str)


def write_frames(file: BinaryIO, frames: Iterable[bytes]) -> None:
    """Write frames, all at once, and flush."""
    file.write(b"".join([_LENGTH.pack(len(data)) + data for data in frames]))
    file.flush()


def read_frames(file: BinaryIO) -> Iterator[bytes]:
    """Yield frames until the other side has gone; a frame cut short, or too long, is such an end."""
    while len(header := file.read(_LENGTH.size)) == _LENGTH.size:
        (size,) = _LENGTH.unpack(header)
        if size > MAX_FRAME_BYTES:
            return
        data = file.read(size)
        if len(data) < size:
            return
        yield data


def encode(message: list[Any]) -> bytes:
    """Return a message of the child as a frame's bytes."""
    return _ENCODER.encode(message).encode()


def decode(data: bytes) -> list[Any]:
    """
    Return the message in a frame.

    Raises:
        ValueError: It holds none.
    """
    message = json.loads(data)
    if not isinstance(message, list) or not message:
        raise ValueError(f"a frame holds {str(message)[:80]!r}; allowed: a list")
    return message


def encode_piece(piece: Piece) -> list[Any]:
    """Return a piece as JSON can hold it, short where there is little to say."""
    if piece.finish_reason is None and piece.logprob is None:
        return [piece.text, piece.token_id]
    usage = None if piece.usage is None else asdict(piece.usage)
    timings = None if piece.timings is None else asdict(piece.timings)
    return [*piece[:3], [list(top) for top in piece.top_logprobs], piece.finish_reason, usage, timings]


def decode_piece(values: list[Any]) -> Piece:
    """Return the piece that `encode_piece` was given."""
    if len(values) == 2:
        return Piece(*values)
    text, token_id, logprob, tops, reason, usage, timings = values
    return Piece(
        text=text,
        token_id=token_id,
        logprob=logprob,
        top_logprobs=tuple(TokenLogprob(*top) for top in tops),
        finish_reason=reason,
        usage=None if usage is None else Usage(**usage),
        timings=None if timings is None else Timings(**timings),
    )


def encode_vectors(vectors: list[tuple[int, bytes]]) -> list[Any]:
    """Return texts' numbers and vectors as JSON can hold them."""
    return [[number, base64.b64encode(vector).decode()] for number, vector in vectors]


def decode_vectors(values: list[Any]) -> list[tuple[int, bytes]]:
    """
    Return the vectors that `encode_vectors` was given.

    Raises:
        ValueError: There are none in it.
    """
    vectors = [(number, base64.b64decode(text, validate=True)) for number, text in values]
    if any(type(number) is not int or len(vector) % 4 for number, vector in vectors):
        raise ValueError(f"{str(values)[:80]} as vectors")
    return vectors


def encode_facts(facts: EngineFacts) -> list[Any]:
    """Return an engine's facts as JSON can hold them."""
    placements = [None if each is None else asdict(each) for each in facts[-2:]]
    return [*facts[:3], sorted(facts.end_ids), *placements]


def decode_facts(values: list[Any]) -> EngineFacts:
    """Return the facts that `encode_facts` was given."""
    n_vocab, n_ctx, n_ctx_train, end_ids, *placements = values
    placed, draft_placed = (None if each is None else Placement(**each) for each in placements)
    return EngineFacts(n_vocab, n_ctx, n_ctx_train, frozenset(end_ids), placed, draft_placed)


def encode_error(error: BaseException) -> list[Any]:
    """Return an error by class name, arguments and facts."""
    facts = dict(error.__dict__) if isinstance(error, GGUFEngineError) else {}
    return [type(error).__name__, [str(arg) for arg in error.args], facts]


def decode_error(values: list[Any]) -> BaseException:
    """Return the error that `encode_error` was given; of a class unknown here, a RuntimeError."""
    name, args, facts = values
    kind = getattr(errors, name, None)
    if isinstance(kind, type) and issubclass(kind, GGUFEngineError):
        error = kind.__new__(kind, *args)
        error.args = tuple(args)
        error.__dict__.update(facts)
        return error
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, (ArithmeticError, LookupError, MemoryError, TypeError)):
        return kind(*args)
    return RuntimeError(f"{name}: {'; '.join(args)}")
