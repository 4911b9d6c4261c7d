"""
PrefixStore: states of prefixes that come again (system prompts), on disk, across restarts.

A folder holds one folder a model and its settings, in it a file a prefix, named by the number and the
SHA-256 of its ids. A file is read and verified, packed and written in a thread of its own; the engine's
thread only takes a slot's bytes, or puts them into one. What cannot be used is logged, removed and, when
its ids have been computed, written again: a request is never worse off than without the store.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import time
from array import array
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_engine.engine.state import (
    State,
    StateOrigin,
    pack_state,
    read_state,
    unpack_state,
    write_state,
)
from gguf_engine.errors import BackendError, OptionError, StateError

if TYPE_CHECKING:
    from gguf_engine.backend.base import Backend
    from gguf_engine.engine.kv_cache import KVCache
    from gguf_engine.engine.sequence import Sequence

# Fewer ids are computed in less time than a file is worth.
MIN_IDS = 64
# Bytes that may wait to be written; a prefix that comes on top of them is kept the next time.
MAX_PENDING_BYTES = 2**30

_FILE = re.compile(r"(\d+)-[0-9a-f]{32}\.state")
_FOLDER = re.compile(r"[0-9a-f]{16}")
_UNFINISHED_S = 3600.0
_WAIT_S = 0.02
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class PrefixCache:
    """
    Where an engine keeps prefixes, and for which model; can cross to another process.

    Attributes:
        folder: Made when there is none. Whoever can write to it can make the engine say anything.
        max_bytes: Of all files in it, other models' too; those unused for longest are removed.
        model_sha256, library, kv_cache_type, flash_attention: See StateOrigin.
    """

    folder: Path
    max_bytes: int
    model_sha256: str
    library: str
    kv_cache_type: str
    flash_attention: str

    def open(self, backend: Backend) -> PrefixStore:
        """
        Return the store for a backend that runs this model.

        Raises:
            OSError: The folder cannot be made or read.
        """
        origin = StateOrigin(
            model_sha256=self.model_sha256,
            library=self.library,
            n_vocab=backend.n_vocab,
            n_ctx=backend.n_ctx,
            kv_cache_type=self.kv_cache_type,
            flash_attention=self.flash_attention,
        )
        return PrefixStore(self.folder, self.max_bytes, origin)


def make_folder(folder: Path) -> None:
    """
    Make a folder for prefixes, if it is not there.

    Raises:
        OptionError: It cannot be made, or nothing can be written there.
    """
    try:
        # What was said to a model: nobody else's business.
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        allowed = "a folder that can be made, read and written"
        raise OptionError("prefix_cache", str(folder), allowed, error.strerror or str(error)) from error


class PrefixStore:
    """
    The prefixes kept for one model. All methods are called from the engine's thread.

    Args:
        folder, max_bytes: See PrefixCache.
        origin: What the engine's states belong to.

    Raises:
        OSError: The folder cannot be made or read.
    """

    def __init__(self, folder: Path, max_bytes: int, origin: StateOrigin) -> None:
        self._root, self._max_bytes, self._origin = folder, max_bytes, origin
        name = hashlib.sha256(json.dumps(asdict(origin), sort_keys=True).encode()).hexdigest()[:16]
        self._folder = folder / name
        make_folder(self._folder)
        found = (_FILE.fullmatch(path.name) for path in self._folder.iterdir())
        self._known = {match[0]: int(match[1]) for match in found if match}  # file -> ids in it
        self._reading: dict[Sequence, tuple[str, Future[State]]] = {}
        self._n_pending: dict[str, int] = {}  # file -> bytes that wait to be written
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="gguf-engine-prefixes")

    def prepare(self, sequence: Sequence, kv_cache: KVCache) -> None:
        """Begin to read the longest kept prefix of a new request, if no slot holds nearly as much."""
        ids = sequence.prompt_ids
        if sequence.n_keep < MIN_IDS or self._name(ids[: sequence.n_keep]) in self._known:
            sequence.n_keep = 0
        least = kv_cache.find(ids)[0] + MIN_IDS
        for n_ids in sorted({n for n in list(self._known.values()) if least <= n < len(ids)}, reverse=True):
            name = self._name(ids[:n_ids])
            if name in self._known:
                same = (future for known, future in self._reading.values() if known == name)
                future = next(same, None) or self._thread.submit(self._read, name)
                self._reading[sequence] = (name, future)
                sequence.is_restoring = True
                return

    def _name(self, ids: array[int]) -> str:
        return f"{len(ids)}-{hashlib.sha256(ids.tobytes()).hexdigest()[:32]}.state"

    def _read(self, name: str) -> State:
        path = self._folder / name
        state = unpack_state(read_state(path), self._origin, str(path))
        if self._name(state.token_ids) != name:
            raise StateError("corrupt", str(path), "it holds other ids than its name says")
        with suppress(OSError):
            os.utime(path)
        return state

    def restore(self, kv_cache: KVCache, *, is_busy: bool) -> None:
        """
        Put what has been read into idle slots, so that the requests that wait for it share it.

        Args:
            is_busy: There is other work: do not wait. Else wait a moment for the first that is read.
        """
        if not self._reading:
            return
        if not is_busy:
            wait([future for _, future in self._reading.values()], _WAIT_S, FIRST_COMPLETED)
        for sequence, (name, future) in list(self._reading.items()):
            if sequence.finished_at or sequence.slot is not None:
                del self._reading[sequence]
            elif future.done():
                sequence.is_restoring = False  # from now on it stands in line, whether there is room or not
                if self._put(kv_cache, sequence, name, future):
                    del self._reading[sequence]

    def _put(self, kv_cache: KVCache, sequence: Sequence, name: str, future: Future[State]) -> bool:
        """Put a prefix into a slot; False when there is no room for it now."""
        try:
            state = future.result()
            if kv_cache.find(sequence.prompt_ids)[0] >= len(state.token_ids):
                return True
            return kv_cache.load(state.token_ids, state.data) is not None
        except FileNotFoundError:  # another process has made room
            self._known.pop(name, None)
        except (StateError, BackendError, OSError) as error:
            self._refuse(sequence, name, error)
        return True

    def _refuse(self, sequence: Sequence, name: str, error: Exception) -> None:
        if self._known.pop(name, None) is None:
            return
        _log.warning("a kept prefix is not used, and computed again: %s", error)
        with suppress(OSError):
            (self._folder / name).unlink()
        # The ids of its file are a prefix of its prompt: they are kept again.
        sequence.n_keep = int(name.partition("-")[0])

    def keep(self, sequence: Sequence, slot: int, kv_cache: KVCache) -> None:
        """Take the state of a slot when it holds just what is to be kept of its sequence, to be written."""
        if kv_cache.n_held(slot) != sequence.n_keep:
            return
        sequence.n_keep = 0
        ids = kv_cache.held(slot)[:]
        name = self._name(ids)
        if name in self._known or sum(self._n_pending.values()) >= MAX_PENDING_BYTES:
            return
        state = State(ids, kv_cache.save(slot))
        self._known[name] = len(ids)
        self._n_pending[name] = len(state.data)
        self._thread.submit(self._write, name, state)

    def _write(self, name: str, state: State) -> None:
        path = self._folder / name
        try:
            packed = pack_state(state, self._origin)
            if len(packed) > self._max_bytes:
                self._known.pop(name, None)
                _log.warning(
                    "a prefix of %d ids is not kept: it has %d bytes, %d are allowed (prefix_cache_mb)",
                    len(state.token_ids), len(packed), self._max_bytes,
                )  # fmt: skip
                return
            self._make_room(len(packed))
            write_state(path, packed)
        except (StateError, OSError) as error:
            self._known.pop(name, None)
            _log.warning("a prefix is not kept: %s", error)
        finally:
            del self._n_pending[name]

    def _make_room(self, n_bytes: int) -> None:
        """Remove files, unused for longest first, until `n_bytes` more are within the limit."""
        files: list[tuple[float, int, Path]] = []
        for folder in self._root.iterdir():
            if not _FOLDER.fullmatch(folder.name) or folder.is_symlink() or not folder.is_dir():
                continue
            for path in folder.iterdir():
                with suppress(FileNotFoundError):
                    status = path.lstat()
                    if _FILE.fullmatch(path.name):
                        files.append((status.st_mtime, status.st_size, path))
                    elif path.name.startswith(".state-") and time.time() - status.st_mtime > _UNFINISHED_S:
                        path.unlink()  # of a process that was killed while it wrote
        n_over = sum(size for _, size, _ in files) + n_bytes - self._max_bytes
        for _, size, path in sorted(files):
            if n_over <= 0:
                return
            path.unlink(missing_ok=True)
            n_over -= size
            if path.parent == self._folder:
                self._known.pop(path.name, None)

    def close(self) -> None:
        """Write what is still to be written; twice is fine."""
        self._thread.shutdown(wait=True)
