"""
Put a model file before the loader, and before llama.cpp in a child process if the loader lets it pass.

Whatever the file, there are three fair outcomes: a typed refusal, a model that works, or a typed error
later on. A death, a hang, an error of another type and silent nonsense are findings.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

from gguf_engine import GGUFEngineError
from gguf_engine.errors import ModelFileError
from gguf_engine.loader.gguf import read_gguf
from gguf_engine.loader.preflight import has_full_rules, preflight

FAIR = frozenset({"refused", "good", "declined", "contained"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """
    What became of a file.

    Attributes:
        outcome: "refused" by the pre-flight check; "good"; "declined" with a typed error after it;
            "contained", a death of a family without rules, which loads in a child process of its own;
            or a finding: "death", "hang", "untyped", "not_finite".
        code: Of a refusal; else the error's class or the signal.
        where: The key, tensor or offset that a refusal names.
        what: The message, or a dead process's last words.
        seconds: The pre-flight check took.
        family: The architecture, where the file was accepted.
    """

    outcome: str
    code: str = ""
    where: str = ""
    what: str = ""
    seconds: float = 0.0
    family: str = ""

    @property
    def is_fair(self) -> bool:
        """Whether this is an outcome we promise."""
        return self.outcome in FAIR


class _TooLongError(BaseException):
    """Not an Exception: no handler in the code under test may take it for its own."""


@contextlib.contextmanager
def _limit(seconds: float) -> Iterator[None]:
    """Interrupt Python code in the main thread that takes longer."""

    def ring(*_: object) -> None:
        raise _TooLongError

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def ask_preflight(path: Path, limit_s: float) -> Answer:
    """Return what the pre-flight check says: "refused", "hang", "untyped", or "good" if it lets pass."""
    start = time.perf_counter()
    answer = Answer(outcome="good")
    try:
        with _limit(limit_s):
            preflight(path)
    except ModelFileError as error:
        answer = Answer(outcome="refused", code=error.code, where=error.where, what=str(error))
    except GGUFEngineError as error:
        answer = Answer(outcome="refused", code=type(error).__name__, where=str(path), what=str(error))
    except _TooLongError:
        answer = Answer(outcome="hang", what=f"no answer of the pre-flight check within {limit_s} s")
    except Exception as error:  # noqa: BLE001 - that it is none of ours is the finding
        answer = Answer(outcome="untyped", code=type(error).__name__, what=repr(error)[:400])
    return replace(answer, seconds=time.perf_counter() - start)


class Child:
    """A process that loads models and may die of it; see gguf_child.py."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self._folder = tempfile.TemporaryDirectory(prefix="gguf-child-")
        self._errors = Path(self._folder.name, "stderr")
        environment = os.environ | {"XDG_CACHE_HOME": self._folder.name}
        with self._errors.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, str(Path(__file__).with_name("gguf_child.py"))],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, bufsize=0, env=environment,
            )  # fmt: skip
        self._serving = 0
        self._unread = b""

    def run(self, path: Path, *, preflight: bool) -> Answer:
        """Load and use a model; a death that follows from files before it says so."""
        answer = self._ask(path, preflight=preflight)
        if answer.outcome != "death":
            return answer
        again = self._ask(path, preflight=preflight)
        return (
            answer if again.outcome == "death" else replace(answer, what=f"not when alone: {answer.what}")
        )

    def _ask(self, path: Path, *, preflight: bool) -> Answer:
        assert self._process.stdin is not None
        os.truncate(self._errors, 0)
        request = json.dumps({"path": str(path), "preflight": preflight})
        self._process.stdin.write(request.encode() + b"\n")
        deadline = time.monotonic() + self.limit_s
        while True:
            facts = self._read(deadline)
            if facts is None:
                os.kill(self._serving, signal.SIGKILL)
                self._read(time.monotonic() + self.limit_s)  # the death that was just ordered
                return Answer(outcome="hang", what=f"no answer of the child within {self.limit_s} s")
            if "serving" in facts:
                self._serving = facts["serving"]
                continue
            if facts["outcome"] == "death":
                facts["what"] = self._last_words()
            return Answer(**facts)

    def _read(self, deadline: float) -> dict[str, Any] | None:
        assert self._process.stdout is not None
        while b"\n" not in self._unread:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._process.stdout], [], [], left)[0]:
                return None
            data = self._process.stdout.read(65_536)
            if not data:
                raise RuntimeError(f"the child ended: {self._last_words()}")
            self._unread += data
        line, self._unread = self._unread.split(b"\n", 1)
        facts: dict[str, Any] = json.loads(line)
        return facts

    def _last_words(self) -> str:
        lines = self._errors.read_text("utf-8", "replace").strip().splitlines()
        asserted = [line for line in lines if "GGML_" in line or "terminate called" in line]
        return (asserted or lines or [""])[-1][-300:]

    def close(self) -> None:
        """End the process and remove its folder."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        try:
            self._process.wait(self.limit_s)
        except subprocess.TimeoutExpired:
            os.kill(self._serving, signal.SIGKILL)
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._folder.cleanup()


class Judge:
    """
    Answers for files, one after the other. From the main thread: a timer interrupts what hangs.

    Args:
        limit_s: A file may take this long in the check, and again in the child, before it counts as a hang.
        bypass: Give every file to llama.cpp, whatever the check would say.
    """

    def __init__(self, *, limit_s: float = 20.0, bypass: bool = False) -> None:
        self.limit_s, self.bypass = limit_s, bypass
        self.child = Child(limit_s)

    def __enter__(self) -> Judge:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.child.close()

    def judge(self, path: Path) -> Answer:
        """Return what becomes of a file."""
        if self.bypass:
            return self.child.run(path, preflight=False)
        first = ask_preflight(path, self.limit_s)
        if first.outcome != "good":
            return first
        gguf = read_gguf(path)
        answer = self.child.run(path, preflight=True)
        if answer.outcome in {"death", "hang"} and not has_full_rules(gguf):
            answer = replace(answer, outcome="contained")
        return replace(answer, seconds=first.seconds, family=str(gguf.metadata["general.architecture"]))
