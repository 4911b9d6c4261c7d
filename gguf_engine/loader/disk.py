"""Files written whole or not at all, and a disk's refusals as `HubError`."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from gguf_engine.errors import HubError

SPARE_BYTES = 2**26
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


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
        if error.errno in _FULL:
            what = f"no space left in {folder}"
            raise HubError("disk_full", what, "free some, or set HF_HOME to a larger disk") from error
        what = f"cannot write to the cache {folder}: {error.strerror or error}"
        raise HubError("cache", what, "set HF_HOME to a folder that can be written") from error


def check_space(folder: Path, n_bytes: int, name: str) -> None:
    """
    Return if a file still fits on the disk, with some bytes to spare; the folder is made.

    Raises:
        HubError: disk_full, or cache when the folder cannot be made.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < n_bytes + SPARE_BYTES:
        what = f"{name} needs {n_bytes} bytes, {folder} has {free} free"
        raise HubError("disk_full", what, "free some, or set HF_HOME to a larger disk")


def name_beside(path: Path) -> Path:
    """Return a name in the same folder that no other process or thread uses."""
    return path.with_name(f".{os.getpid()}.{threading.get_ident()}.new")


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that readers see the old one or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = name_beside(path)
    try:
        fresh.write_text(text, encoding="ascii")
        fresh.replace(path)
    finally:
        fresh.unlink(missing_ok=True)


def write_all(file: int, data: bytes | memoryview) -> None:
    """Write all the bytes to a descriptor, which may take them in parts."""
    view = memoryview(data)
    while view:
        view = view[os.write(file, view) :]


def sync_folder(folder: Path) -> None:
    """Make the names in a folder outlive a power failure."""
    if os.name == "nt":  # pragma: no cover - a folder cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
