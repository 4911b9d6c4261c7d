"""
Processes that download, to be killed.

As a program it imports once what a download needs, then forks a child for each line of stdin: one model,
fetched into the cache of the environment. It prints the child's id, and the child prints how it ended.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

MODEL = "org/repo:m.gguf"


@contextmanager
def downloaders() -> Iterator[Downloaders]:
    """Yield what starts downloads in processes of their own."""
    command = [sys.executable, "-u", __file__]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        yield Downloaders(process)
        assert process.stdin is not None
        process.stdin.close()


class Downloaders:
    """Starts downloads, one process each."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process

    def start(self, cache: object) -> int:
        """Start one into this cache, and return its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(f"{cache}\n")
        self.process.stdin.flush()
        return int(self._line())

    def wait(self) -> str:
        """Return how the next one to end has ended: "ok", an error's code, or "killed"."""
        return self._line()

    def _line(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline().strip()


def main() -> None:
    import huggingface_hub  # noqa: F401 - so that a child starts at once

    from gguf_engine.errors import HubError
    from gguf_engine.loader import hub  # noqa: F401
    from gguf_engine.loader.resolve import resolve_model

    child = 0
    for line in sys.stdin:
        if child:
            os.waitpid(child, 0)  # only now: until here its id is its own, and can be killed safely
        child = os.fork()
        if child == 0:
            try:
                resolve_model(MODEL, cache_dir=line.strip())
            except HubError:
                os._exit(1)
            os._exit(0)
        print(child)  # noqa: T201
        ended = os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        assert ended is not None
        print({0: "ok", 1: "failed"}.get(ended.si_status, "killed"))  # noqa: T201


if __name__ == "__main__":
    main()
