"""
A session's file: what was said and how, and after it, when there is one, the state of what was computed.

    line 1     gguf-engine session 1 N SHA256      (of the N bytes of the next line, without its end)
    line 2     JSON: model, system, on_full, turns, n_dropped, params, has_state
    the rest   the state, in the format of engine/state.py, where has_state says so
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from gguf_engine.engine.state import open_regular
from gguf_engine.errors import OptionError, StateError
from gguf_engine.params import SamplingParams, build_params

if TYPE_CHECKING:
    from gguf_engine.engine.state import StateOrigin
    from gguf_engine.engine.worker import Worker

OnFull = Literal["raise", "drop_oldest"]

MAGIC = b"gguf-engine session "
_FIRST = re.compile(rb"gguf-engine session (\d{1,9}) (\d{1,9}) ([0-9a-f]{64})\n")
_FORMAT = 1
_MAX_LINE = len(MAGIC) + 9 + 1 + 9 + 1 + 64 + 1
_MAX_BYTES = 2**28


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedSession:
    """
    A session without its model.

    Attributes:
        model: The name it was loaded by, for people.
        system, on_full, params, n_dropped: As in Session.
        turns: Questions and their answers.
    """

    model: str
    system: str | None
    on_full: OnFull
    turns: tuple[tuple[str, str], ...]
    n_dropped: int
    params: SamplingParams


class PrefixFiles:
    """
    What an engine has computed for the beginning of a prompt: to a file, and back into the KV cache.

    Args:
        worker: The engine's.
        origin: Returns what its states belong to, reading the weights if need be; None when nothing
            identifies the model.
    """

    def __init__(self, worker: Worker, origin: Callable[[], StateOrigin] | None) -> None:
        self._worker, self._origin = worker, origin

    @property
    def can_save(self) -> bool:
        """Whether `save` can do anything: what it writes must be known to be this model's."""
        return self._origin is not None

    def save(self, token_ids: Sequence[int], path: Path, front: bytes = b"") -> int:
        """
        Write the state of the longest beginning of some ids that is in the KV cache.

        Args:
            token_ids: As of a prompt.
            path: Of the file; it is replaced whole or stays as it was.
            front: What the file begins with.

        Returns:
            How many of the ids that is; with 0 nothing was written.

        Raises:
            StateError: The file cannot be written.
            EngineClosedError: After `LLM.close`.
        """
        if self._origin is None:
            return 0
        ids = array("i", token_ids)
        return self._worker.save_prefix(ids, self._origin(), str(path.absolute()), front)

    def load(self, path: Path, offset: int = 0) -> int:
        """
        Restore what `save` wrote: the next request that begins with its ids computes only the rest.

        Args:
            path: Of the file.
            offset: How long its front is.

        Returns:
            How many ids were restored; 0 when running requests have all the room, or nothing identifies
            the model.

        Raises:
            StateError: It cannot be read, is damaged, or belongs to another model or other settings.
            EngineClosedError: After `LLM.close`.
        """
        if self._origin is None:
            return 0
        return self._worker.load_prefix(str(path.absolute()), offset, self._origin())


def pack_session(saved: SavedSession, *, has_state: bool) -> bytes:
    """Return the two lines of a session; a state follows them in the file, or nothing."""
    values: dict[str, Any] = {field.name: getattr(saved, field.name) for field in fields(saved)}
    params = {field.name: getattr(saved.params, field.name) for field in fields(saved.params)}
    params["logit_bias"] = {str(token_id): bias for token_id, bias in saved.params.logit_bias.items()}
    line = json.dumps({**values, "params": params, "has_state": has_state}).encode()
    front = f"gguf-engine session {_FORMAT} {len(line)} {hashlib.sha256(line).hexdigest()}\n"
    return front.encode() + line + b"\n"


def read_session(path: Path) -> tuple[SavedSession, int | None]:
    """
    Return the session in a file, and where in it the state begins; None when it has none.

    Raises:
        StateError: It cannot be read, is no session, or is damaged.
    """
    name = str(path)
    try:
        with open_regular(path) as file:
            first = file.readline(_MAX_LINE)
            size, sha256 = _read_first(first, name)
            line = file.read(size + 1)
            n_bytes = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise StateError("file", name, f"it cannot be read: {error}") from error
    offset = len(first) + size + 1
    if len(line) <= size:
        raise StateError("truncated", name, f"it has {n_bytes} bytes, its messages end at {offset}")
    found = hashlib.sha256(line[:-1]).hexdigest()
    if found != sha256 or line[-1:] != b"\n":
        raise StateError("corrupt", name, f"the SHA-256 of its messages is {found}, not {sha256}")
    try:
        saved, has_state = _unpack(json.loads(line))
    except (OptionError, RecursionError, TypeError, ValueError) as error:
        raise StateError("corrupt", name, f"its second line is no session: {error}") from error
    if not has_state and n_bytes != offset:
        raise StateError("corrupt", name, f"it has {n_bytes} bytes where {offset} were saved")
    return saved, offset if has_state else None


def _read_first(first: bytes, name: str) -> tuple[int, str]:
    """Return the size and the SHA-256 that the first line tells of the second."""
    if not first.startswith(MAGIC):
        begin = first[: len(MAGIC)]
        raise StateError("not_a_state", name, f"it begins with {begin!r}, not {MAGIC!r}")
    match = _FIRST.fullmatch(first)
    if match is None or int(match[2]) > _MAX_BYTES:
        raise StateError("corrupt", name, f"its first line is {first!r}")
    if int(match[1]) != _FORMAT:
        what = f"it has version {int(match[1])} of the format, this program reads {_FORMAT}"
        raise StateError("version", name, what)
    return int(match[2]), match[3].decode()


def _unpack(values: Any) -> tuple[SavedSession, bool]:
    """Return what `pack_session` was given; any exception of a wrong type or value says it was not."""
    names = [field.name for field in fields(SavedSession)]
    if not isinstance(values, dict) or set(values) != {*names, "has_state"}:
        raise ValueError(f"it has not exactly {', '.join(names)}, has_state")
    kinds = {"model": str, "system": str | None, "n_dropped": int, "turns": list, "has_state": bool}
    for name, kind in kinds.items():
        if not isinstance(values[name], kind):
            raise TypeError(f"{name} is {str(values[name])[:80]!r}")
    if values["on_full"] not in get_args(OnFull):
        raise ValueError(f"on_full is {str(values['on_full'])[:80]!r}")
    turns = tuple(tuple(turn) for turn in values["turns"])
    if not all(len(turn) == 2 and all(isinstance(text, str) for text in turn) for turn in turns):
        raise TypeError("a turn is not a question and an answer")
    params = values["params"]
    if not isinstance(params, Mapping) or not isinstance(params.get("logit_bias"), Mapping):
        raise TypeError("params is no object of sampling options")
    bias = {int(token_id): value for token_id, value in params["logit_bias"].items()}
    chosen = build_params(SamplingParams, {**params, "logit_bias": bias})
    has_state = values.pop("has_state")
    return SavedSession(**{**values, "turns": turns, "params": chosen}), has_state
