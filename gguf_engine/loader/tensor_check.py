"""
The bytes of a model's tensors, read once: hashed, and looked through for what poisons every answer.

llama.cpp offers the same check while it loads (`check_tensors`), with one thread a tensor and no way to
stop. Here its own function is called piece by piece, so that a progress bar moves and Ctrl-C works, and
one reading serves the hash too.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NoReturn

from gguf_engine.errors import ModelFileError
from gguf_engine.loader.gguf import TENSOR_TYPES, GGUFFile, TensorInfo
from gguf_engine.loader.preflight import RULES
from gguf_engine.loader.verdicts import Verdict, Verdicts, combined

_CHUNK_BYTES = 2**24
_TYPE_IDS = {name: number for number, (name, _, _) in TENSOR_TYPES.items()}
_BLOCK_BYTES = {name: n_bytes for name, _, n_bytes in TENSOR_TYPES.values()}
_FAULT = "holds a NaN, an infinity or a broken block scale"

Progress = Callable[[str, int, int | None], None]
"""Called with a file's name, the bytes read so far and the bytes in all, of all parts."""

Validate = Callable[[int, memoryview], bool]
"""Says whether blocks of a tensor type (its number) hold finite numbers: llama.cpp's own function."""


def check_tensors(
    parts: Sequence[GGUFFile],
    verdicts: Verdicts,
    validate: Validate,
    *,
    blobs: bool = False,
    progress: Progress | None = None,
) -> Verdict:
    """
    Return the verdict on a model whose tensors are good; read it unless its bytes are known.

    Args:
        parts: Its headers, from `read_parts`.
        verdicts: What is remembered; the outcome is added.
        validate: See Validate.
        blobs: The files were just verified in a hub cache; see `Verdicts.identify`.
        progress: See Progress.

    Raises:
        ModelFileError: "tensor_data" names the tensor; "killed_before" quotes the last words of the
            process that this file ended; "truncated" if the file shrinks while it is read.
    """
    paths = [part.path for part in parts]
    try:
        verdict = verdicts.of(paths, blobs=blobs)
        if verdict is None or (verdict.tensors is None and not _is_killer(verdict)):
            verdict = _read(parts, verdicts, validate, progress)
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ModelFileError(str(paths[0]), "unreadable", "", what, "check its permissions") from error
    if _is_killer(verdict):
        what = f"ended a process that loaded it before: {verdict.killed}"
        raise ModelFileError(
            str(paths[0]), "killed_before", "", what, "load without preflight to try again"
        )
    if verdict.tensors == "bad":
        raise ModelFileError(str(paths[0]), "tensor_data", verdict.where, verdict.what, "download it again")
    return verdict


def _is_killer(verdict: Verdict) -> bool:
    return verdict.killed is not None and verdict.rules >= RULES


def _read(
    parts: Sequence[GGUFFile], verdicts: Verdicts, validate: Validate, progress: Progress | None
) -> Verdict:
    size = sum(part.size for part in parts)
    reading = _Reading(validate, progress, size)
    sha256s: list[str] = []
    for part in parts:
        sha256 = reading.of(part)
        verdicts.remember(part.path, sha256)
        sha256s.append(sha256)
    sha256 = combined(sha256s)
    before = verdicts.of_sha256(sha256)
    verdict = Verdict(
        sha256=sha256,
        size=size,
        rules=RULES,
        tensors="good" if reading.fault is None else "bad",
        where="" if reading.fault is None else reading.fault[0].name,
        what="" if reading.fault is None else f"{_FAULT}, at or after byte {reading.fault[1]}",
        killed=before.killed if before is not None and _is_killer(before) else None,
    )
    verdicts.record(verdict)
    return verdict


class _Reading:
    """One pass over the parts; `fault` is the first bad tensor and where in its file the piece began."""

    def __init__(self, validate: Validate, progress: Progress | None, size: int) -> None:
        self.validate, self.progress, self.size = validate, progress, size
        self.n_done = 0
        self.buffer = memoryview(bytearray(min(_CHUNK_BYTES, size)))
        self.fault: tuple[TensorInfo, int] | None = None

    def of(self, part: GGUFFile) -> str:
        """Read one part and return its sha256."""
        digest = hashlib.sha256()
        with part.path.open("rb", buffering=0) as file:
            for at, n_bytes, tensor in _pieces(part, len(self.buffer)):
                piece = self.buffer[:n_bytes]
                n_read = 0
                while n_read < n_bytes:
                    n_more = file.readinto(piece[n_read:])
                    if not n_more:
                        _fail_short(part.path, at + n_read, part.size)
                    n_read += n_more
                digest.update(piece)
                if tensor is not None and self.fault is None and not self._is_good(tensor, piece):
                    self.fault = tensor, at
                self.n_done += n_bytes
                if self.progress is not None:
                    self.progress(part.path.name, self.n_done, self.size)
        return digest.hexdigest()

    def _is_good(self, tensor: TensorInfo, piece: memoryview) -> bool:
        return self.validate(_TYPE_IDS[tensor.type], piece)


def _pieces(part: GGUFFile, limit: int) -> Iterator[tuple[int, int, TensorInfo | None]]:
    """Yield every byte of a file once, as (offset, length, tensor); of a tensor, whole blocks."""
    at = 0
    for tensor in part.tensors:
        begin = part.data_offset + tensor.offset
        yield from _cut(at, begin, limit, None)
        at = begin + tensor.n_bytes
        yield from _cut(begin, at, limit // _BLOCK_BYTES[tensor.type] * _BLOCK_BYTES[tensor.type], tensor)
    yield from _cut(at, part.size, limit, None)


def _cut(
    begin: int, end: int, step: int, tensor: TensorInfo | None
) -> Iterator[tuple[int, int, TensorInfo | None]]:
    for at in range(begin, end, step):
        yield at, min(step, end - at), tensor


def _fail_short(path: Path, at: int, size: int) -> NoReturn:
    what = f"ended while it was read; it had {size} bytes"
    raise ModelFileError(str(path), "truncated", f"byte {at}", what, "do not change a model in use")
