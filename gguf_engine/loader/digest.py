"""Hashes that name files: sha256 of a large file, git's sha1 of a small one."""

from __future__ import annotations

import hashlib
import io
import re
from pathlib import Path

COMMIT = re.compile(r"[0-9a-f]{40}")
SHA256 = re.compile(r"[0-9a-f]{64}")
ETAG = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_READ_BYTES = 2**20


class Digest:
    """
    The hash that names a blob, fed piece by piece, and its sha256 in any case.

    Args:
        etag: sha256 (64 digits), or git's blob hash (40 digits).
        size: Of the whole file in bytes; git hashes it too.
    """

    def __init__(self, etag: str, size: int) -> None:
        self.etag = etag
        self._sha256 = hashlib.sha256()
        self._named = self._sha256
        if len(etag) == 40:
            self._named = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)

    def update(self, data: bytes | memoryview) -> None:
        """Take the next bytes of the file."""
        self._sha256.update(data)
        if self._named is not self._sha256:
            self._named.update(data)

    def read(self, file: io.RawIOBase) -> int:
        """Take the rest of an open file, and return its bytes' number."""
        buffer = bytearray(_READ_BYTES)
        view, n_total = memoryview(buffer), 0
        while n_read := file.readinto(buffer):
            self.update(view[:n_read])
            n_total += n_read
        return n_total

    @property
    def sha256(self) -> str:
        """Return the sha256 of the bytes so far, in hexadecimal."""
        return self._sha256.hexdigest()

    def matches(self) -> bool:
        """Return whether the bytes so far are the file that the ETag names."""
        return self._named.hexdigest() == self.etag


def digest_of(path: Path, etag: str = "") -> Digest:
    """Return the digest of a file; without an ETag its sha256 alone."""
    with path.open("rb", buffering=0) as file:
        digest = Digest(etag, path.stat().st_size)
        digest.read(file)
    return digest
