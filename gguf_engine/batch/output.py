"""The output file of a batch: answers in input order, a line each, so that its length is the state."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from gguf_engine.batch.lines import Line
from gguf_engine.errors import OptionError

FSYNC_S = 1.0
_MAX_ANSWER_BYTES = 256 * 2**20
_FIRST = b'{"id": '
_ANEW = "choose another file, or begin anew with --no-resume"


class Output:
    """
    A file of answers, open for more of them. One process at a time.

    A line reaches the system with one write: a killed process leaves whole lines, and at most one torn
    one, which the next run takes off. It is on the disk after a second at most, and when closed.

    Args:
        path: The file; made if there is none.
        options_digest: Of the options that decide what the answers are.
        resume: Keep the answers it holds; otherwise they are removed.
        clock: For tests.

    Raises:
        OptionError: Another process writes to it.
        OSError: It cannot be opened.

    Attributes:
        n_answered: Answers it had before.
        n_failed: Those of them that are errors.
    """

    def __init__(
        self,
        path: Path,
        options_digest: str,
        *,
        resume: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self._options_digest, self._clock = path, options_digest, clock
        self.n_answered = self.n_failed = 0
        is_new = not path.exists()
        self._file: BinaryIO = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b", buffering=0)
        try:
            _lock(self._file, path)
            if not resume:
                self._file.truncate(0)
            if is_new:
                _fsync_folder(path.parent)
        except BaseException:
            self._file.close()
            raise
        self._synced_at = clock()

    def skip(self, lines: Iterator[Line]) -> int:
        """
        Take from `lines` those that have an answer here, and take a torn last answer off.

        Returns:
            Bytes of the input up to the last line that has an answer.

        Raises:
            OptionError: These answers are of another input or other options, or no answers at all.
        """
        end = done = 0
        with open(self._file.fileno(), "rb", closefd=False) as answers:
            while data := answers.readline(_MAX_ANSWER_BYTES):
                if not data.endswith(b"\n"):
                    if not _FIRST.startswith(data[: len(_FIRST)]):
                        raise self._refusal("no output of a batch", self.n_answered + 1)
                    break
                done = self._check(data, next(lines, None))
                end += len(data)
        self._file.truncate(end)
        self._file.seek(end)
        return done

    def _check(self, data: bytes, line: Line | None) -> int:
        self.n_answered += 1
        answer = _parse(data)
        if answer is None:
            raise self._refusal("no output of a batch", self.n_answered)
        if line is None:
            what = f"the input has changed: it has {self.n_answered - 1} lines, the output has more answers"
            raise self._refusal(what, self.n_answered)
        if answer["options_sha256"] != self._options_digest:
            what = "the model, the task or an option is another one than when this output was begun"
            raise self._refusal(what, self.n_answered)
        if answer["input_sha256"] != line.digest:
            what = f"the input has changed: its line {line.number} is not the one that was answered"
            raise self._refusal(what, self.n_answered)
        self.n_failed += "error" in answer
        return line.end

    def _refusal(self, what: str, number: int) -> OptionError:
        allowed = "a new file, or one begun with the same input and options"
        return OptionError("output", str(self.path), allowed, f"at its line {number}: {what}; {_ANEW}")

    def write(self, data: dict[str, Any], line: Line) -> None:
        """
        Add the answer to a line.

        Raises:
            OSError: The disk is full, or broken.
        """
        signed = {**data, "input_sha256": line.digest, "options_sha256": self._options_digest}
        rest = memoryview(to_line(signed))
        while rest:
            rest = rest[self._file.write(rest) :]
        if self._clock() - self._synced_at >= FSYNC_S:
            self._sync()

    def _sync(self) -> None:
        os.fsync(self._file.fileno())
        self._synced_at = self._clock()

    def close(self) -> None:
        """Bring all to the disk and let go of the file; twice is fine."""
        if not self._file.closed:
            try:
                self._sync()
            finally:
                self._file.close()


def to_line(data: dict[str, Any]) -> bytes:
    """Return a JSON object as one line of UTF-8."""
    return json.dumps(data, ensure_ascii=False).encode() + b"\n"


def _parse(data: bytes) -> dict[str, Any] | None:
    """Return an answer of ours, None for other lines."""
    try:
        answer = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if not isinstance(answer, dict) or not {"id", "input_sha256", "options_sha256"} <= answer.keys():
        return None
    return answer


def _lock(file: BinaryIO, path: Path) -> None:
    if sys.platform == "win32":  # pragma: no cover - no advisory locks there
        return
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        what, help_ = "a file that no other batch writes to", "wait for it, or choose another file"
        raise OptionError("output", str(path), what, help_) from None


def _fsync_folder(folder: Path) -> None:
    if sys.platform == "win32":  # pragma: no cover - folders cannot be opened there
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
