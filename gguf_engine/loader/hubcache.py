"""
One repository's folder in the hub cache, in the layout of huggingface_hub: refs, snapshots, blobs.

A blob is named by its hash (sha256 of a large file, git's sha1 of a small one), so it can be checked
without asking anybody. Beside it, `.verified` remembers size, time and inode of what was hashed: a hit
costs one stat. Nothing here opens a connection.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gguf_engine.errors import HubError

COMMIT = re.compile(r"[0-9a-f]{40}")
ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_READ_BYTES = 2**20


class Digest:
    """The hash that names a blob, fed piece by piece."""

    def __init__(self, etag: str, size: int) -> None:
        self.etag = etag
        self._hash = hashlib.sha256()
        if len(etag) == 40:
            self._hash = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the file."""
        self._hash.update(data)

    def matches(self) -> bool:
        """Return whether the bytes so far are the file that the ETag names."""
        return self._hash.hexdigest() == self.etag


class RepoCache:
    """
    The files of one repository in the cache.

    Args:
        root: The cache folder, such as ~/.cache/huggingface/hub.
        repo: "organisation/name", already checked.
    """

    def __init__(self, root: Path, repo: str) -> None:
        self.folder = root / ("models--" + repo.replace("/", "--"))

    def commit_of(self, revision: str) -> str | None:
        """Return the commit that a revision resolved to last, if that is remembered."""
        if COMMIT.fullmatch(revision):
            return revision
        try:
            commit = (self.folder / "refs" / revision).read_text(encoding="ascii").strip()
        except (OSError, UnicodeDecodeError):
            return None
        return commit if COMMIT.fullmatch(commit) else None

    def remember(self, revision: str, commit: str) -> None:
        """Write down what a revision resolved to. A cache that cannot be written keeps what it has."""
        if revision != commit and self.commit_of(revision) != commit:
            with contextlib.suppress(OSError):
                _write_whole(self.folder / "refs" / revision, commit)

    def files(self, commit: str) -> list[str]:
        """Return the names of the files that are here of a commit."""
        snapshot = self.folder / "snapshots" / commit
        return sorted(
            path.relative_to(snapshot).as_posix() for path in snapshot.rglob("*") if path.is_file()
        )

    def snapshot(self, commit: str, file: str) -> Path:
        """Return where a file of a commit is, or would be."""
        return self.folder / "snapshots" / commit / file

    def blob(self, etag: str) -> Path:
        """Return where the bytes with this ETag are, or would be."""
        return self.folder / "blobs" / etag

    def find(self, commit: str, file: str) -> Path | None:
        """
        Return the cached file if it is here and its bytes are what its name says.

        Bytes that are not are set aside as `.bad`, so that the file is fetched again.
        """
        path = self.snapshot(commit, file)
        if not path.is_file():
            return None
        record = self._record(commit, file)
        etag = record.get("etag") or path.resolve().name
        if not ETAG.fullmatch(etag):
            return None
        if record == _fingerprint(path, etag):
            return path
        if _has_digest(path, etag):
            self.mark_verified(commit, file, etag)
            return path
        blob = path.resolve()
        blob.replace(blob.with_name(blob.name + ".bad"))
        path.unlink(missing_ok=True)
        return None

    def adopt(self, commit: str, file: str, etag: str) -> Path | None:
        """Return the file under this commit if a good blob is here already, from another commit."""
        blob = self.blob(etag)
        if not blob.is_file() or not _has_digest(blob, etag):
            return None
        return self.link(commit, file, etag)

    @contextlib.contextmanager
    def new_blob(self, etag: str) -> Iterator[BinaryIO]:
        """
        Open a file for the bytes of a blob; it becomes the blob when the block ends well.

        An exception inside leaves nothing behind.
        """
        blobs = self.folder / "blobs"
        with writing(blobs):
            blobs.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=blobs, prefix=etag[:16], suffix=".incomplete")
        path = Path(name)
        try:
            with open(descriptor, "w+b") as file:  # noqa: PTH123 (a descriptor, not a path)
                yield file
                with writing(blobs):
                    file.flush()
                    os.fsync(file.fileno())
            with writing(blobs):
                path.chmod(0o644)
                path.replace(self.blob(etag))
                _sync_folder(blobs)
        finally:
            path.unlink(missing_ok=True)

    def link(self, commit: str, file: str, etag: str) -> Path:
        """Make a verified blob appear under its name in a commit, and return that path."""
        path = self.snapshot(commit, file)
        blob = self.blob(etag)
        with writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Under another name first: a second process may be making the same link.
            fresh = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
            fresh.unlink(missing_ok=True)
            try:
                fresh.symlink_to(os.path.relpath(blob, path.parent))
            except (NotImplementedError, OSError):
                os.link(blob, fresh)
            fresh.replace(path)
        self.mark_verified(commit, file, etag)
        return path

    def mark_verified(self, commit: str, file: str, etag: str) -> None:
        """Remember that these bytes were hashed. In a read-only cache they are hashed every time."""
        with contextlib.suppress(OSError):
            record = json.dumps(_fingerprint(self.snapshot(commit, file), etag))
            _write_whole(self._record_path(commit, file), record)

    def _record_path(self, commit: str, file: str) -> Path:
        return self.folder / ".verified" / commit / f"{file}.json"

    def _record(self, commit: str, file: str) -> dict[str, Any]:
        try:
            record = json.loads(self._record_path(commit, file).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return {}
        return record if isinstance(record, dict) and isinstance(record.get("etag", ""), str) else {}


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """
    Turn what a disk can refuse into a `HubError`.

    Raises:
        HubError: disk_full, or cache when the folder cannot be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
            what = f"no space left in {folder}"
            raise HubError("disk_full", what, "free some, or set HF_HOME to a larger disk") from error
        what = f"cannot write to the cache {folder}: {error.strerror or error}"
        raise HubError("cache", what, "set HF_HOME to a folder that can be written") from error


def _fingerprint(path: Path, etag: str) -> dict[str, Any]:
    status = path.stat()
    return {
        "etag": etag,
        "size": status.st_size,
        "mtime_ns": status.st_mtime_ns,
        "inode": status.st_ino,
    }


def _has_digest(path: Path, etag: str) -> bool:
    digest = Digest(etag, path.stat().st_size)
    buffer = bytearray(_READ_BYTES)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while n_read := file.readinto(buffer):
            digest.update(view[:n_read])
    return digest.matches()


def _write_whole(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", encoding="ascii", dir=path.parent, delete=False) as file:
        file.write(text)
    Path(file.name).replace(path)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
