"""
One process at a time per blob. The kernel's lock, which ends with its holder however that dies; the text
in the file only says who holds it.
"""

from __future__ import annotations

import contextlib
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from gguf_engine.errors import HubError
from gguf_engine.loader.deadline import Deadline
from gguf_engine.loader.disk import write_all, writing

POLL_S = 0.05
_OWNER_BYTES = 200

if sys.platform == "win32":  # pragma: no cover
    import msvcrt

    def _lock(descriptor: int) -> None:
        # Far behind the text: a locked byte cannot be read by others.
        os.lseek(descriptor, 2**30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        os.lseek(descriptor, 0, os.SEEK_SET)

    def _unlock(descriptor: int) -> None:
        os.lseek(descriptor, 2**30, os.SEEK_SET)
        msvcrt.locking(descriptor, msvcrt.LK_UNLCK, 1)

else:
    import fcntl

    def _lock(descriptor: int) -> None:
        # flock, not lockf: it also keeps the threads of one process apart.
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(descriptor: int) -> None:
        # Closing is not enough where a forked child has the descriptor too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)


@contextlib.contextmanager
def hold(
    path: Path, *, wait_s: float, deadline: Deadline, sign_of_life: Callable[[], object]
) -> Iterator[None]:
    """
    Hold a lock file while the block runs; it is gone afterwards.

    Args:
        path: The lock file; its folder is made.
        wait_s: How long to wait for another holder that shows no sign of life.
        deadline: How long to wait in all.
        sign_of_life: What the holder changes while it works, such as the size of its file.

    Raises:
        HubError: busy, naming the holder; timeout; cache or disk_full when there can be no lock file.
    """
    sign, since = sign_of_life(), time.monotonic()
    while (descriptor := _try_lock(path)) is None:
        deadline.check()
        last, sign = sign, sign_of_life()
        if sign != last:
            since = time.monotonic()
        if time.monotonic() - since >= wait_s:
            what = f"{_owner(path)} holds {path} and made no progress in {wait_s:g} s"
            raise HubError("busy", what, "wait for it, or end that process, and try again")
        time.sleep(POLL_S)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            path.unlink()
        _unlock(descriptor)
        os.close(descriptor)


def _try_lock(path: Path) -> int | None:
    """Return a descriptor that holds the lock, None while somebody else does."""
    with writing(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        try:
            _lock(descriptor)
            if not _is_at(path, descriptor):  # its last holder has just removed it
                os.close(descriptor)
                return None
        except (BlockingIOError, PermissionError):
            os.close(descriptor)
            return None
        except BaseException:
            os.close(descriptor)
            raise
    with contextlib.suppress(OSError):
        os.ftruncate(descriptor, 0)
        write_all(descriptor, f"process {os.getpid()} on {platform.node()}".encode())
    return descriptor


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _owner(path: Path) -> str:
    try:
        with path.open("rb") as file:
            text = file.read(_OWNER_BYTES).decode("utf-8", "replace")
    except OSError:
        text = ""
    return "".join(char for char in text if char.isprintable()) or "another process"
