"""
One repository's folder in the hub cache, in the layout of huggingface_hub: refs, snapshots, blobs.

A blob is named by its hash (sha256 of a large file, git's sha1 of a small one), so it can be checked
without asking anybody. Beside it, `.verified` remembers size, time and inode of what was hashed: a hit
costs one stat. Nothing here opens a connection.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from gguf_engine.loader.catalog import DEFAULT_REVISION, is_later_part
from gguf_engine.loader.digest import COMMIT, ETAG, SHA256, Digest, digest_of
from gguf_engine.loader.disk import name_beside, write_whole, writing


class RepoCache:
    """
    The files of one repository in the cache.

    Args:
        root: The cache folder, such as ~/.cache/huggingface/hub.
        repo: "organisation/name", already checked.
    """

    def __init__(self, root: Path, repo: str) -> None:
        name = "models--" + repo.replace("/", "--")
        self.folder = root / name
        self._locks = root / ".locks" / name

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
                write_whole(self.folder / "refs" / revision, commit)

    def remember_absent(self, commit: str, file: str) -> None:
        """Write down that a commit has no such file, where huggingface_hub does."""
        with contextlib.suppress(OSError):
            write_whole(self._absent(commit, file), "")

    def is_absent(self, commit: str, file: str) -> bool:
        """Return whether a commit is known to have no such file."""
        return self._absent(commit, file).is_file()

    def _absent(self, commit: str, file: str) -> Path:
        return self.folder / ".no_exist" / commit / file

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

    def lock(self, etag: str) -> Path:
        """Return the lock file of a blob, not huggingface_hub's: to that, one that exists may be held."""
        return self._locks / f"{etag}.gguf-engine.lock"

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
        if _is_of(record, path):
            return path
        digest = digest_of(path, etag)
        if digest.matches():
            self.mark_verified(commit, file, digest)
            return path
        with writing(self.folder), contextlib.suppress(FileNotFoundError):
            blob = path.resolve()
            blob.replace(blob.with_name(blob.name + ".bad"))
            path.unlink(missing_ok=True)
        return None

    def sha256_of(self, commit: str, file: str) -> str:
        """Return the sha256 of a file that `find` returned."""
        path, record = self.snapshot(commit, file), self._record(commit, file)
        etag = record.get("etag") or path.resolve().name
        if SHA256.fullmatch(etag):
            return str(etag)
        if _is_of(record, path) and SHA256.fullmatch(record.get("sha256", "")):
            return str(record["sha256"])
        digest = digest_of(path, etag)
        self.mark_verified(commit, file, digest)
        return digest.sha256

    def adopt(self, commit: str, file: str, etag: str) -> Path | None:
        """Return the file under this commit if a good blob is here already, from another commit."""
        blob = self.blob(etag)
        if not blob.is_file():
            return None
        digest = digest_of(blob, etag)
        return self.link(commit, file, digest) if digest.matches() else None

    def link(self, commit: str, file: str, digest: Digest) -> Path:
        """Make a blob whose bytes have this digest appear under its name in a commit; return that path."""
        path = self.snapshot(commit, file)
        blob = self.blob(digest.etag)
        with writing(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            # Under another name first: a second process may be making the same link.
            fresh = name_beside(path)
            fresh.unlink(missing_ok=True)
            try:
                fresh.symlink_to(os.path.relpath(blob, path.parent))
            except (NotImplementedError, OSError):
                os.link(blob, fresh)
            fresh.replace(path)
        self.mark_verified(commit, file, digest)
        return path

    def mark_verified(self, commit: str, file: str, digest: Digest) -> None:
        """Remember that these bytes were hashed. In a read-only cache they are hashed every time."""
        status = _status(self.snapshot(commit, file))
        record = {"etag": digest.etag, **status, "sha256": digest.sha256, "verified_at": int(time.time())}
        with contextlib.suppress(OSError):
            write_whole(self._record_path(commit, file), json.dumps(record))

    def _record_path(self, commit: str, file: str) -> Path:
        return self.folder / ".verified" / commit / f"{file}.json"

    def _record(self, commit: str, file: str) -> dict[str, Any]:
        try:
            record = json.loads(self._record_path(commit, file).read_text(encoding="ascii"))
        except (OSError, ValueError):
            return {}
        texts = isinstance(record, dict) and [record.get("etag", ""), record.get("sha256", "")]
        return record if texts and all(isinstance(text, str) for text in texts) else {}


def cached_models(root: Path) -> list[str]:
    """Return the GGUF files in a cache, named as `LLM.load` takes them; their bytes are not looked at."""
    names = []
    for folder in sorted(root.glob("models--*--*")):
        repo = "/".join(folder.name.removeprefix("models--").split("--"))
        cache = RepoCache(root, repo)
        refs = sorted(path for path in (folder / "refs").rglob("*") if path.is_file())
        for revision in (path.relative_to(folder / "refs").as_posix() for path in refs):
            at = "" if revision == DEFAULT_REVISION else f"@{revision}"
            files = cache.files(cache.commit_of(revision) or "-")
            models = [file for file in files if file.lower().endswith(".gguf") and not is_later_part(file)]
            names += [f"{repo}:{file}{at}" for file in models]
    return names


def _is_of(record: dict[str, Any], path: Path) -> bool:
    """Return whether a file is still as it was when it was hashed."""
    status = _status(path)
    return status == {name: record.get(name) for name in status}


def _status(path: Path) -> dict[str, int]:
    status = path.stat()
    return {"size": status.st_size, "mtime_ns": status.st_mtime_ns, "inode": status.st_ino}
