"""
A locked model in one file, to carry where there is no network.

A tar file, so that `tar` can look inside: `gguf-engine.lock`, then `blobs/<sha256>` for each file in the
order of the lock. What is read has to be exactly that, header for header and byte for byte: there is no
name, link, device or size left for a stranger to choose.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from gguf_engine.errors import HubError, ModelNotFoundError, OptionError
from gguf_engine.loader.bloblock import hold
from gguf_engine.loader.catalog import DEFAULT_REVISION, parse_model
from gguf_engine.loader.deadline import Deadline
from gguf_engine.loader.digest import Digest
from gguf_engine.loader.disk import check_space, name_beside
from gguf_engine.loader.hub import Hub
from gguf_engine.loader.hubcache import RepoCache
from gguf_engine.loader.lockfile import (
    LOCK_NAME,
    MAX_LOCK_BYTES,
    LockedFile,
    LockedModel,
    find_locked,
    format_lock,
    parse_lock,
    read_lock,
)
from gguf_engine.loader.partial import PartialFile, n_waiting

_BLOCK = 512
_READ_BYTES = 2**20
_MAX_OCTAL = 8**11 - 1


def write_bundle(
    model: str,
    output: str | Path,
    hub: Hub,
    *,
    revision: str | None = None,
    lock: str | Path | None = None,
) -> LockedModel:
    """
    Write a model of the hub into a file, which appears when it is complete; return what it holds.

    Args:
        model: A catalog name or org/repo:file@revision; downloaded first if it is not here.
        output: The file.
        hub: Where the model comes from.
        revision: Branch, tag or commit; overrides the one in the name.
        lock: A lock file that the model has to agree with.

    Raises:
        OptionError: A local or bundled model, which needs no carrying; an output that cannot be written.
        HubError: The download failed, a file is not the locked one, or the disk is full.
    """
    spec = parse_model(model, revision=revision)
    if isinstance(spec, Path) or spec.bundled:
        raise OptionError(
            "model", model, "a model of a hub", "copy a file as it is; haiku is in the package"
        )
    locked = None if lock is None else find_locked(read_lock(lock), spec, model, lock)
    fetched = hub.fetch(spec, locked)
    locked = locked or fetched.locked(spec)
    files = fetched.weights if fetched.tokenizer is None else (*fetched.weights, fetched.tokenizer)
    path = Path(output)
    if path.parent.is_dir():
        check_space(path.parent, sum(file.size for file in locked.files), path.name)
    fresh = name_beside(path)
    try:
        with fresh.open("xb") as target:
            _write_members(target, locked, [file.path for file in files], hub)
        fresh.replace(path)
    except OSError as error:
        why = error.strerror or str(error)
        raise OptionError("output", str(output), "a file that can be written", why) from error
    finally:
        fresh.unlink(missing_ok=True)
    return locked


def unpack_bundle(bundle: str | Path, hub: Hub, *, lock: str | Path | None = None) -> Path:
    """
    Put a bundled model into the cache, and return the path of its weights there.

    Every byte is checked before the first one is written. That makes the files what the bundle's own
    lock says, no more: pass `lock`, which came another way, where the bundle itself is not trusted.

    Args:
        bundle: The file.
        hub: Its cache is filled; no connection is opened.
        lock: A lock file that the bundle has to agree with.

    Raises:
        ModelNotFoundError: No such file, or none that is regular.
        HubError: integrity: it is no bundle, or holds other bytes than it says; disk_full, busy or
            cache: the cache cannot take it.
    """
    path = Path(bundle)
    if not path.is_file():
        what = "is no regular file" if path.exists() else "does not exist"
        what = "is a folder, not a file" if path.is_dir() else what
        raise ModelNotFoundError(str(bundle), f"{path} {what}", "make one with `gguf-engine bundle`")
    with path.open("rb") as source:
        reader = _Reader(source, path)
        locked = reader.lock()
        if lock is not None:
            _check_agreement(locked, lock)
        for file in locked.files:
            _check_member(reader, file, hub)
        reader.end()
        source.seek(0)
        reader.lock()
        for file in locked.files:
            _enter(reader, file, hub)
    for file in reversed(locked.files):
        revision = locked.revision if file in locked.weights else DEFAULT_REVISION
        RepoCache(hub.cache, file.repo).remember(revision, file.commit)
    first = locked.weights[0]
    return RepoCache(hub.cache, first.repo).snapshot(first.commit, first.file)


def _write_members(target: BinaryIO, locked: LockedModel, paths: Sequence[Path], hub: Hub) -> None:
    text = format_lock([locked]).encode("ascii")
    target.write(_header(LOCK_NAME, len(text)) + text + _padding(len(text)))
    for file, path in zip(locked.files, paths, strict=True):
        target.write(_header(f"blobs/{file.sha256}", file.size))
        digest, n_done = Digest(file.sha256, file.size), 0
        with path.open("rb") as source:
            while piece := source.read(_READ_BYTES):
                digest.update(piece)
                target.write(piece)
                n_done += len(piece)
                hub.report(file.file, n_done, file.size)
        file.check(n_done, digest.sha256, str(path))
        target.write(_padding(file.size))
    target.write(bytes(2 * _BLOCK))


def _header(name: str, size: int) -> bytes:
    """Return the tar header of a file; sizes from 8 GiB on are written as GNU tar does."""
    digits = b"%011o\0" % size if size <= _MAX_OCTAL else b"\x80" + size.to_bytes(11, "big")
    before = (
        name.encode("ascii").ljust(100, b"\0")
        + b"0000644\0"
        + 2 * b"0000000\0"
        + digits
        + b"0" * 11
        + b"\0"
    )
    after = b"0" + bytes(100) + b"ustar  \0"
    checksum = sum(before) + 8 * ord(" ") + sum(after)
    return (before + b"%06o\0 " % checksum + after).ljust(_BLOCK, b"\0")


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


@dataclass(frozen=True, slots=True)
class _Reader:
    """A bundle, member after member."""

    source: BinaryIO
    path: Path

    def lock(self) -> LockedModel:
        """Read the first member."""
        header = self.source.read(_BLOCK)
        digits = header[124:135]
        size = (
            int(digits, 8)
            if len(digits) == 11 and digits.isdigit() and not set(digits) & set(b"89")
            else -1
        )
        if not 0 <= size <= MAX_LOCK_BYTES or header != _header(LOCK_NAME, size):
            raise self._broken("does not begin with a lock file")
        data = self._read(size)
        self._skip_padding(size)
        try:
            models = parse_lock(data, self.path)
        except OptionError as error:
            raise self._broken(f"has no good lock file: {error}") from None
        if len(models) != 1 or not all(file.repo for file in models[0].files):
            raise self._broken("does not hold one model of a hub")
        return models[0]

    def member(self, file: LockedFile) -> Iterator[bytes]:
        """Yield the bytes of the next member, which has to be this file."""
        if self.source.read(_BLOCK) != _header(f"blobs/{file.sha256}", file.size):
            raise self._broken(f"does not go on with {file.file}, as its lock file says")
        left = file.size
        while left:
            piece = self._read(min(left, _READ_BYTES))
            left -= len(piece)
            yield piece
        self._skip_padding(file.size)

    def end(self) -> None:
        """Refuse what follows the last member; other programs of tar fill up to 10 KiB."""
        rest = self.source.read(20 * _BLOCK + 1)
        if not 2 * _BLOCK <= len(rest) <= 20 * _BLOCK or any(rest):
            raise self._broken("has no end, or goes on after it")

    def _read(self, size: int) -> bytes:
        data = self.source.read(size)
        if len(data) != size:
            raise self._broken("ends too early")
        return data

    def _skip_padding(self, size: int) -> None:
        if any(self._read(len(_padding(size)))):
            raise self._broken("has bytes between its files")

    def _broken(self, what: str) -> HubError:
        return HubError("integrity", f"{self.path} {what}", "make it anew with `gguf-engine bundle`")


def _check_agreement(locked: LockedModel, lock: str | Path) -> None:
    """Refuse a bundle that is not of the files that a lock file names."""
    first = locked.weights[0]
    for model in read_lock(lock):
        if (model.weights[0].repo, model.weights[0].file) == (first.repo, first.file):
            if model.files != locked.files:
                wanted, found = (
                    format_lock([model]).splitlines()[1:],
                    format_lock([locked]).splitlines()[1:],
                )
                other = [line for line in found if line not in wanted] or found
                what = f"the bundle holds {other[0]!r}, which {lock} does not say of {model.name}"
                raise HubError("integrity", what, "use the bundle that was made of the locked files")
            return
    raise HubError("integrity", f"{lock} does not name {first.repo}:{first.file}, which the bundle holds")


def _check_member(reader: _Reader, file: LockedFile, hub: Hub) -> None:
    """Hash a member, and see that the cache holds nothing else under its name."""
    digest = Digest(file.sha256, file.size)
    for piece in reader.member(file):
        digest.update(piece)
    file.check(file.size, digest.sha256, f"{file.file} in {reader.path}")
    cache = RepoCache(hub.cache, file.repo)
    here = cache.find(file.commit, file.file)
    if here is not None:
        file.check(here.stat().st_size, cache.sha256_of(file.commit, file.file), str(here))


def _enter(reader: _Reader, file: LockedFile, hub: Hub) -> None:
    """Write a member into the cache, unless it is there."""
    cache = RepoCache(hub.cache, file.repo)
    blob, pieces, n_done = cache.blob(file.sha256), reader.member(file), 0
    with hold(
        cache.lock(file.sha256),
        wait_s=hub.limits.lock_wait_s,
        deadline=Deadline(hub.limits.deadline_s),
        sign_of_life=lambda: n_waiting(blob),
    ):
        if cache.find(file.commit, file.file) or cache.adopt(file.commit, file.file, file.sha256):
            for _ in pieces:
                pass
            return
        check_space(hub.cache, file.size, file.file)
        with PartialFile.open(blob, file.size) as partial:
            partial.restart()
            for piece in pieces:
                partial.take(piece)
                n_done += len(piece)
                hub.report(file.file, n_done, file.size)
            partial.check(file.file)
            partial.become_blob()
        cache.link(file.commit, file.file, partial.digest)
