"""A running `gguf-engine serve`, and what it and its engine hold: memory, descriptors, threads."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

from common import PROGRAM

END_S = 60.0
_PAGE_BYTES = os.sysconf("SC_PAGESIZE") if hasattr(os, "sysconf") else 4096


class Held(NamedTuple):
    """What a process holds: resident bytes, open descriptors, threads."""

    rss_bytes: int
    n_fds: int
    n_threads: int


class Program:
    """
    A server process on a free port; a context manager, at whose end it is told to stop.

    Args:
        options: Of `gguf-engine serve`.
        environment: Added to this process's.
    """

    def __init__(self, *options: str, **environment: str) -> None:
        command = [PROGRAM, "serve", "--port", "0", *options]
        self.process = subprocess.Popen(
            command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env={**os.environ, **environment}
        )
        assert self.process.stderr is not None
        self.log: deque[str] = deque(maxlen=400)  # its last lines
        for line in self.process.stderr:
            self.log.append(line.decode("utf-8", "replace"))
            if "listening on " in self.log[-1]:
                break
        else:
            raise SystemExit("the server does not start: " + "".join(self.log))
        self.port = int(self.log[-1].rpartition(":")[2])
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line.decode("utf-8", "replace"))

    @property
    def is_running(self) -> bool:
        """Whether the server has not ended."""
        return self.process.poll() is None

    def engine_pid(self) -> int | None:
        """Return the process of the engine; None while there is none."""
        for path in Path("/proc").glob("[0-9]*/stat"):
            with contextlib.suppress(OSError):
                fields = path.read_text().rpartition(")")[2].split()
                if int(fields[1]) == self.process.pid and fields[0] != "Z":
                    return int(path.parent.name)
        return None

    def end(self) -> int:
        """Tell it to stop, and return its exit code; the second time, return it again."""
        if self.is_running:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(END_S)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code

    def __enter__(self) -> Program:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.end()


def held(pid: int) -> Held:
    """Return what a process holds now; Linux only."""
    place = Path(f"/proc/{pid}")
    pages = int((place / "statm").read_text().split()[1])
    n_fds, n_threads = (sum(1 for _ in (place / what).iterdir()) for what in ("fd", "task"))
    return Held(pages * _PAGE_BYTES, n_fds, n_threads)


def figures(held_: Held) -> dict[str, Any]:
    """Return what a process holds, for a record."""
    return {"rss_mib": round(held_.rss_bytes / 2**20, 1), "fds": held_.n_fds, "threads": held_.n_threads}
