"""
The bytes of a blob on their way in: `<etag>.partial` beside the blob to be, hashed as they come.

The file outlives its process, so that another one can go on; `<etag>.partial.etag` beside it is the ETag
of the answer that its bytes came from. Whoever uses it holds the blob's lock.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from gguf_engine.errors import HubError
from gguf_engine.loader.digest import Digest
from gguf_engine.loader.disk import sync_folder, write_all, write_whole, writing

_VALIDATOR_BYTES = 256
_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)


class PartialFile:
    """
    An open partial file; `PartialFile.open` makes one.

    Attributes:
        size: Bytes that there will be.
        n_done: Bytes that there are.
        validator: The ETag of the answer that they came from; "" when that is not known.
        digest: Of the bytes that there are.
        is_pieced: They came from more than one answer, and so may not belong together.
    """

    def __init__(self, blob: Path, size: int, sha256: str | None, descriptor: int) -> None:
        self.blob, self.size, self._sha256, self._file = blob, size, sha256, descriptor
        self._path, self._validator_path = _paths(blob)
        self.n_done, self.validator, self.is_pieced = 0, "", False
        self.digest = Digest(blob.name, size)

    @classmethod
    @contextlib.contextmanager
    def open(cls, blob: Path, size: int, sha256: str | None = None) -> Iterator[PartialFile]:
        """
        Open the partial file of a blob, and hash what an earlier try left in it.

        It stays when the block fails, unless it is empty or its bytes were refused (`integrity`).

        Args:
            blob: What it will be, named by its hash.
            size: In bytes. A partial file that is longer is not of this blob: it starts anew.
            sha256: What the bytes must have too, where the name is git's hash.
        """
        with writing(blob.parent):
            blob.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(_paths(blob)[0], _FLAGS, 0o666)
        partial = cls(blob, size, sha256, descriptor)
        try:
            partial._take_up()
            yield partial
        except HubError as error:
            if error.code == "integrity":
                partial.restart()
            raise
        finally:
            os.close(descriptor)
            if partial.n_done == 0:
                discard(blob)

    def _take_up(self) -> None:
        with writing(self.blob.parent):
            n_found = os.fstat(self._file).st_size
            if n_found > self.size:
                self.restart()
                return
            with open(self._file, "rb", buffering=0, closefd=False) as file:
                self.n_done = self.digest.read(file)
            self.is_pieced = self.n_done > 0
            with contextlib.suppress(OSError), self._validator_path.open("rb") as file:
                text = file.read(_VALIDATOR_BYTES + 1).decode("ascii", "replace")
                self.validator = text if _is_validator(text) else ""

    def restart(self) -> None:
        """Throw away the bytes that are there."""
        with writing(self.blob.parent):
            os.ftruncate(self._file, 0)
            os.lseek(self._file, 0, os.SEEK_SET)
        self.n_done, self.is_pieced = 0, False
        self.digest = Digest(self.blob.name, self.size)

    def begin(self, validator: str) -> None:
        """Take note of the ETag of the answer whose bytes come next."""
        self.is_pieced = self.n_done > 0
        validator = validator if _is_validator(validator) else ""
        if validator != self.validator:
            with writing(self.blob.parent):
                write_whole(self._validator_path, validator)
            self.validator = validator

    def take(self, piece: bytes) -> None:
        """Take the next bytes. The first one too many is counted and not written."""
        fits = memoryview(piece)[: max(self.size - self.n_done, 0)]
        with writing(self.blob.parent):
            write_all(self._file, fits)
        self.digest.update(fits)
        self.n_done += len(piece)

    def check(self, name: str) -> None:
        """
        Return if these are, byte for byte, the file that was announced.

        Raises:
            HubError: network when bytes are missing, integrity when they are others.
        """
        if self.n_done != self.size:
            sent = "more" if self.n_done > self.size else self.n_done
            code = "integrity" if self.n_done > self.size else "network"
            what = f"{name}: the hub announced {self.size} bytes and sent {sent}"
            raise HubError(code, what, "try again")
        if not self.digest.matches():
            what = f"{name}: the bytes that came are not those the hub names ({self.blob.name})"
            raise HubError(
                "integrity", what, "try again; if it stays so, a proxy or mirror alters the file"
            )
        if self._sha256 not in (None, self.digest.sha256):
            what = f"{name}: its sha256 is {self.digest.sha256}, the lock file says {self._sha256}"
            raise HubError("integrity", what, "the hub serves another file than the one that was locked")

    def become_blob(self) -> None:
        """Put the bytes, which were checked, in the blob's place, so that they survive a power failure."""
        with writing(self.blob.parent):
            os.fsync(self._file)
            # First: after a kill between the two, whole bytes need no ETag, and an ETag alone would stay.
            self._validator_path.unlink(missing_ok=True)
            self._path.replace(self.blob)
            sync_folder(self.blob.parent)


def discard(blob: Path) -> None:
    """Remove what an earlier try left of a blob."""
    path, validator_path = _paths(blob)
    with contextlib.suppress(OSError):
        validator_path.unlink(missing_ok=True)
        path.unlink(missing_ok=True)


def n_waiting(blob: Path) -> int:
    """Return how many bytes of a blob an earlier try, or another process, has left so far."""
    try:
        return _paths(blob)[0].stat().st_size
    except OSError:
        return 0


def _paths(blob: Path) -> tuple[Path, Path]:
    return blob.with_name(f"{blob.name}.partial"), blob.with_name(f"{blob.name}.partial.etag")


def _is_validator(text: str) -> bool:
    """Return whether a text can go back to the hub in If-Range: a strong ETag."""
    return len(text) <= _VALIDATOR_BYTES and text.isascii() and text.isprintable() and text[:1] == '"'
