"""
What a slot of the KV cache holds, to a file and back.

llama.cpp restores damaged bytes without a word, so its bytes travel inside ours, and nothing is handed
to it that is not what was saved, for this model, under these settings:

    offset  size  what
    0       8     magic
    8       4     version of this format
    12      4     n_header
    16      4     n_ids
    20      8     n_state
    28      32    SHA-256 of all the other bytes
    60            header (JSON), ids (int32), state of the backend

Numbers are little-endian. The digest finds damage, not malice: whoever can write the file can write a
digest, so a state is to be trusted like the program that made it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import struct
import sys
import tempfile
from array import array
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from io import BufferedReader
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from gguf_engine.backend.base import Bytes
from gguf_engine.engine.kv_cache import KVCache
from gguf_engine.errors import StateError

MAGIC = b"\x89GEKV\r\n\x1a"  # like PNG's: a transfer that changes line ends or the top bit breaks it
FORMAT = 1
MAX_STATE_BYTES = 2**36

_PREFIX = struct.Struct("<8sIIIQ32s")
_AT_DIGEST = _PREFIX.size - 32
_MAX_HEADER = 4096
_AGAIN = "start the conversation anew: the ids are computed again"


@dataclass(frozen=True, slots=True, kw_only=True)
class StateOrigin:
    """
    All that decides what the bytes of a state mean; a state is restored where all of it is the same.

    Attributes:
        model_sha256: Of the file with the weights, 64 hexadecimal digits; of all parts for a split one.
        library: The backend and its version: llama.cpp changes its state format without notice.
        n_vocab, n_ctx: Of the engine. Scaled rotary positions depend on n_ctx.
        kv_cache_type, flash_attention: As in EngineParams.
    """

    model_sha256: str
    library: str
    n_vocab: int
    n_ctx: int
    kv_cache_type: str
    flash_attention: str


class State(NamedTuple):
    """
    What a slot held.

    Attributes:
        token_ids: The ids, position by position.
        data: What `Backend.save` returned.
    """

    token_ids: array[int]
    data: Bytes


def save_slot(kv_cache: KVCache, slot: int, origin: StateOrigin) -> bytes:
    """Return the packed state of a slot. On the engine's thread: see `EngineWorker.call`."""
    return pack_state(State(kv_cache.held(slot), kv_cache.save(slot)), origin)


def load_slot(kv_cache: KVCache, packed: Bytes, origin: StateOrigin) -> int | None:
    """
    Restore a packed state into an idle slot, for the next request that begins with its ids to share.

    On the engine's thread: see `EngineWorker.call`.

    Returns:
        The slot; None when running requests have all slots or cells, and nothing was changed.

    Raises:
        StateError: See `unpack_state`.
        BackendError: The backend refused it all the same.
    """
    state = unpack_state(packed, origin)
    return kv_cache.load(state.token_ids, state.data)


def take_prefix(kv_cache: KVCache, token_ids: array[int]) -> State | None:
    """
    Return the state of the longest beginning of some ids that a slot holds, and of nothing beyond it.

    On the engine's thread.

    Returns:
        None when no slot holds a beginning worth the name, or none is free to cut it out in.

    Raises:
        BackendError: The backend failed to save it.
    """
    wanted = array("i", [*token_ids, 0])  # the last id of a prompt is never shared
    n_held, source = kv_cache.find(wanted)
    if source is None:
        return None
    if kv_cache.n_held(source) == n_held:
        return State(kv_cache.held(source)[:], kv_cache.save(source))
    if not kv_cache.has_room_for_request:
        return None
    slot, n_held = kv_cache.open(wanted)
    try:
        return State(kv_cache.held(slot)[:], kv_cache.save(slot)) if n_held else None
    finally:
        kv_cache.release(slot)


def pack_state(state: State, origin: StateOrigin) -> bytes:
    """Return a state as the bytes of a file."""
    header = json.dumps(asdict(origin), sort_keys=True).encode()
    assert len(header) <= _MAX_HEADER
    ids = _little_endian(state.token_ids).tobytes()
    body = (header, ids, state.data)
    sizes = (len(header), len(state.token_ids), len(state.data))
    front = _PREFIX.pack(MAGIC, FORMAT, *sizes, b"")[:_AT_DIGEST]
    digest = hashlib.sha256(front)
    for part in body:
        digest.update(part)
    return b"".join((front, digest.digest(), *body))


def unpack_state(packed: Bytes, origin: StateOrigin, name: str = "state") -> State:
    """
    Return what was packed, once every byte of it is known to be as it was.

    Args:
        packed: What `pack_state` returned; the state's data is a part of it, not a copy.
        origin: Of the engine that is to restore it.
        name: What to call it in an error.

    Raises:
        StateError: It is damaged, or was saved by another model or under other settings.
    """
    n_header, n_ids, _ = _read_prefix(packed, len(packed), name)
    digest = hashlib.sha256(packed[:_AT_DIGEST])
    body = memoryview(packed)[_PREFIX.size :]
    digest.update(body)
    if digest.digest() != packed[_AT_DIGEST : _PREFIX.size]:
        raise StateError(
            "corrupt", name, f"its SHA-256 is {digest.hexdigest()}, not the one it was saved with", _AGAIN
        )
    _compare(bytes(body[:n_header]), origin, name)
    at_state = n_header + 4 * n_ids
    token_ids = array("i", bytes(body[n_header:at_state]))
    return State(_little_endian(token_ids), body[at_state:])


def _read_prefix(packed: Bytes, n_bytes: int, name: str) -> tuple[int, int, int]:
    """Return n_header, n_ids and n_state of a state that has `n_bytes` in all."""
    if packed[: len(MAGIC)] != MAGIC[: len(packed)]:
        begin = bytes(packed[: len(MAGIC)])
        raise StateError("not_a_state", name, f"it begins with {begin!r}, not {MAGIC!r}")
    if len(packed) < _PREFIX.size:
        raise StateError("truncated", name, f"it has {n_bytes} bytes, fewer than its first fields", _AGAIN)
    _, version, n_header, n_ids, n_state, _ = _PREFIX.unpack_from(packed)
    if version != FORMAT:
        what = f"it has version {version} of the format, this program reads {FORMAT}"
        raise StateError("version", name, what, _AGAIN)
    wanted = _PREFIX.size + n_header + 4 * n_ids + n_state
    if n_bytes < wanted:
        raise StateError("truncated", name, f"it has {n_bytes} of {wanted} bytes", _AGAIN)
    if n_bytes > wanted or n_header > _MAX_HEADER:
        what = f"it has {n_bytes} bytes, {n_header} of them header, where {wanted} were saved"
        raise StateError("corrupt", name, what, _AGAIN)
    return n_header, n_ids, n_state


def _compare(header: bytes, origin: StateOrigin, name: str) -> None:
    """Refuse what was saved elsewhere, naming what differs."""
    try:
        saved: Any = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise StateError("corrupt", name, f"its header is no JSON: {error}", _AGAIN) from None
    names = [field.name for field in fields(origin)]
    if not isinstance(saved, dict) or sorted(saved) != sorted(names):
        raise StateError("corrupt", name, f"its header has not exactly {', '.join(names)}", _AGAIN)
    for key in names:
        ours, theirs = getattr(origin, key), saved[key]
        if ours == theirs and type(ours) is type(theirs):
            continue
        what = f"it was saved with {key}={theirs!r}, this engine has {ours!r}"
        if key == "library":
            raise StateError("version", name, what, _AGAIN)
        if key == "model_sha256":
            raise StateError("other_model", name, what, "load the model that it belongs to")
        raise StateError("other_settings", name, what, f"load with {key}={theirs!r}")


def _little_endian(token_ids: Iterable[int]) -> array[int]:
    """Return ids as int32 with the bytes in the order of the file, or back."""
    ids = array("i", token_ids)
    if sys.byteorder == "big":
        ids.byteswap()
    return ids


def write_state(path: Path, packed: bytes, front: bytes = b"") -> None:
    """
    Put a packed state into a file, all of it or nothing, and read it back.

    Args:
        path: Of the file.
        packed: What `pack_state` returned.
        front: What the file is to begin with; `read_state` is then given its length.

    Raises:
        StateError: The file reads back differently; the one that was there before stays.
        OSError: It cannot be written.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=".state-", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(front)
            file.write(packed)
            file.flush()
            os.fsync(file.fileno())
        if Path(temporary).read_bytes() != front + packed:
            raise StateError("corrupt", str(path), "it reads back differently from what was written")
        Path(temporary).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(temporary).unlink()
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a rename last: without it a power cut may bring the old file back."""
    with suppress(OSError):  # not every system can open or sync a folder
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def open_regular(path: Path) -> BufferedReader:
    """
    Open a file to read; nothing that would wait, as a FIFO does for a writer.

    Raises:
        StateError: It is no regular file.
        OSError: It cannot be opened.
    """
    descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise StateError("not_a_state", str(path), "it is no regular file")
    return os.fdopen(descriptor, "rb")


def read_state(path: Path, *, offset: int = 0, max_bytes: int = MAX_STATE_BYTES) -> memoryview:
    """
    Return the packed state in a file; what it says of its sizes is checked before it is read.

    Args:
        path: A regular file.
        offset: Where in it the state begins.
        max_bytes: Refuse a larger one, unread: no state is larger than the KV cache and a little.

    Raises:
        StateError: No regular file, no state, too large, or cut off.
        OSError: It cannot be read.
    """
    name = str(path)
    with open_regular(path) as file:
        file.seek(offset)
        n_bytes = max(0, os.fstat(file.fileno()).st_size - offset)
        prefix = file.read(_PREFIX.size)
        _read_prefix(prefix, n_bytes, name)
        if n_bytes > max_bytes:
            what = f"it has {n_bytes} bytes, at most {max_bytes} can belong to this engine"
            raise StateError("corrupt", name, what, _AGAIN)
        buffer = np.empty(n_bytes, np.uint8)  # in large pages, where there are some: half the time
        file.seek(offset)
        packed = buffer.data[: file.readinto(buffer.data)]
    _read_prefix(packed, len(packed), name)
    return packed
