"""
run_batch: lines in, answers out, in order. One thread reads and submits, the caller's reads the answers.

The queue between them is the window: lines that wait, run or are done ahead of the answer that is due.
"""

from __future__ import annotations

import contextlib
import queue
import re
import threading
import time
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from itertools import cycle
from typing import TYPE_CHECKING, Any, NamedTuple

from gguf_engine.batch.lines import Line, read_id, read_values
from gguf_engine.batch.tasks import BatchOptions, Running, start
from gguf_engine.errors import EngineClosedError, GGUFEngineError, OptionError

if TYPE_CHECKING:
    from gguf_engine.llm import LLM

_LINES_A_SLOT = 16
_PULSE_S = 0.1  # a wait that is cut up hears Ctrl-C, and that the other side has gone


class Answer(NamedTuple):
    """
    What became of one line.

    Attributes:
        line: The line.
        data: A JSON object: `id`, and what the task gives, or `error` with a stable `code` and a `message`.
    """

    line: Line
    data: dict[str, Any]

    @property
    def is_error(self) -> bool:
        """Whether the line failed."""
        return "error" in self.data


@dataclass(slots=True)
class BatchStats:
    """
    Counts and times of a run, kept while it runs.

    Attributes:
        n_answered: Lines answered, failed ones among them.
        n_failed: Lines that failed.
        n_prompt, n_cached, n_completion: Tokens of prompts, those of them not computed again, and of
            answers.
        encode_s: Time of reading, checking, templates, encoding and submitting; most of it passes while
            the model computes.
        inference_s: Time from the first request to the last answer; what the caller does with the answers
            meanwhile is in it.
    """

    n_answered: int = 0
    n_failed: int = 0
    n_prompt: int = 0
    n_cached: int = 0
    n_completion: int = 0
    encode_s: float = 0.0
    inference_s: float = 0.0


def run_batch(
    llm: LLM | Sequence[LLM],
    lines: Iterable[Line],
    options: BatchOptions | None = None,
    stats: BatchStats | None = None,
) -> Generator[Answer, None, None]:
    """
    Answer every line, in order, with as many requests at once as the engine has slots.

    Args:
        llm: The model; or one model loaded several times, whose engines take the lines in turn. Engines
            with a thread each wait for nobody: with small models they get more done than one engine with
            all threads.
        lines: Read in another thread, a window ahead; see `read_jsonl`, `read_csv`.
        options: What holds for every line.
        stats: Counts and times are added to it.

    Yields:
        An answer a line; a line that cannot be served has one with an error. Leave the loop whenever you
        like: requests that run are ended.

    Raises:
        OptionError: No model; before anything is read.
        EngineClosedError: An engine was closed meanwhile.
        Exception: Whatever `lines` raises.
    """
    options = options or BatchOptions()
    llms = tuple(llm) if isinstance(llm, Sequence) else (llm,)
    if not llms:
        raise OptionError("llm", llms, "a model, or several")
    feeder = _Feeder(llms, lines, options, stats if stats is not None else BatchStats())
    return feeder.answers()


class _Entry(NamedTuple):
    """A line on its way: its requests, or the error it has met."""

    line: Line
    line_id: str | int
    work: Running | GGUFEngineError


class _Feeder:
    """Reads lines and submits them, in a thread of its own that ends with the iteration."""

    def __init__(
        self, llms: tuple[LLM, ...], lines: Iterable[Line], options: BatchOptions, stats: BatchStats
    ) -> None:
        self._llms, self._lines, self._options, self._stats = cycle(llms), lines, options, stats
        window = options.window or _LINES_A_SLOT * sum(llm.stats().n_slots for llm in llms)
        self._entries: queue.Queue[_Entry | BaseException | None] = queue.Queue(window)
        self._is_over = threading.Event()

    def answers(self) -> Generator[Answer, None, None]:
        thread = threading.Thread(target=self._feed, name="gguf-engine-batch", daemon=True)
        begun_at = time.perf_counter()
        thread.start()
        try:
            while (entry := self._next()) is not None:
                answer = Answer(entry.line, {"id": entry.line_id, **self._finish(entry)})
                self._stats.n_answered += 1
                self._stats.n_failed += answer.is_error
                self._stats.inference_s = time.perf_counter() - begun_at
                yield answer
        finally:
            self._is_over.set()
            with contextlib.suppress(queue.Empty):
                while True:
                    _close(self._entries.get_nowait())

    def _next(self) -> _Entry | None:
        while True:
            with contextlib.suppress(queue.Empty):
                entry = self._entries.get(timeout=_PULSE_S)
                if isinstance(entry, BaseException):
                    raise entry
                return entry

    def _finish(self, entry: _Entry) -> dict[str, Any]:
        if isinstance(entry.work, GGUFEngineError):
            return _failure(entry.work)
        try:
            completions = [stream.completion() for stream in entry.work.streams]
        except EngineClosedError:
            raise
        except GGUFEngineError as error:
            return _failure(error)
        for completion in completions:
            self._stats.n_prompt += completion.usage.n_prompt
            self._stats.n_cached += completion.usage.n_cached
            self._stats.n_completion += completion.usage.n_completion
        return entry.work.answer(completions)

    def _feed(self) -> None:
        try:
            for line in self._lines:
                if self._is_over.is_set():
                    return
                began_at = time.perf_counter()
                entry = self._start(line)
                self._stats.encode_s += time.perf_counter() - began_at
                self._put(entry)
            self._put(None)
        except BaseException as error:  # noqa: BLE001 - raised where the answers are read
            self._put(error)

    def _start(self, line: Line) -> _Entry:
        line_id: str | int = line.number
        try:
            values = read_values(line)
            line_id = read_id(values, line)
            return _Entry(line, line_id, start(next(self._llms), values, self._options))
        except EngineClosedError:
            raise
        except GGUFEngineError as error:
            return _Entry(line, line_id, error)

    def _put(self, entry: _Entry | BaseException | None) -> None:
        while not self._is_over.is_set():
            with contextlib.suppress(queue.Full):
                self._entries.put(entry, timeout=_PULSE_S)
                return
        _close(entry)


def _close(entry: _Entry | BaseException | None) -> None:
    """End the requests of a line that nobody reads any more."""
    if isinstance(entry, _Entry) and isinstance(entry.work, Running):
        for stream in entry.work.streams:
            stream.close()


def _failure(error: GGUFEngineError) -> dict[str, Any]:
    return {"error": {"code": error_code(error), "message": str(error)}}


def error_code(error: GGUFEngineError) -> str:
    """Return a stable identifier of the kind of an error, such as "prompt_too_long"."""
    name = type(error).__name__.removesuffix("Error")
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).lower()
