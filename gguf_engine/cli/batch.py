"""`gguf-engine batch`: a file or a pipe of inputs, their answers in order, and what it took."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from gguf_engine.cli.errors import LinesFailedError
from gguf_engine.cli.files import check_readable, check_regular, check_writable
from gguf_engine.cli.loading import Raw, System, as_json, check_text, loaded, note
from gguf_engine.cli.options import HubOptions, ModelOptions, parse_number, parse_typed
from gguf_engine.errors import GGUFEngineError, OptionError
from gguf_engine.params import EngineParams, SamplingParams

if TYPE_CHECKING:
    from gguf_engine.batch import Answer, Line, Output

_PIPE = "-"


def batch(
    *,
    model: ModelOptions,
    hub: HubOptions,
    engine: EngineParams,
    sampling: SamplingParams,
    source: Annotated[
        str, typer.Option("--input", "-i", metavar="PATH", help="JSONL, or CSV with --column; - is stdin.")
    ] = _PIPE,
    target: Annotated[
        str, typer.Option("--output", "-o", metavar="PATH", help="JSONL in input order; - is stdout.")
    ] = _PIPE,
    column: Annotated[
        str | None,
        typer.Option(metavar="NAME", help='The input is CSV: this column has the prompts, "id" the ids.'),
    ] = None,
    task: Annotated[
        str,
        typer.Option(
            metavar="generate|score|choose",
            help='generate answers; score: the log-probability of a line\'s "target"; choose: the most '
            'probable of its "choices". [default: generate]',
        ),
    ] = "generate",
    system: System = None,
    raw: Raw = False,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume/--no-resume",
            help="Go on where an output that exists ends; with --no-resume it is written anew.",
        ),
    ] = True,
    window: Annotated[
        str | None,
        typer.Option(
            metavar="INT", help="Lines read ahead of the next answer, 1..65536. [default: 16 a slot]"
        ),
    ] = None,
    engines: Annotated[
        str,
        typer.Option(
            metavar="INT",
            help="Engines that share the lines, 1..64, each with a KV cache and its part of the "
            "processors: faster for small models.",
        ),
    ] = "1",
    record: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write counts and times to this file, as JSON.")
    ] = None,
) -> None:
    """
    Answer many inputs: a JSON object a line in, one a line out, in order, the model loaded once.

    In: {"input": TEXT} or {"messages": [...]} (taken as they are), with any sampling option by its name
    and an "id". Out: the id, or the line's number, with the answer or {"error": {"code", "message"}}.
    A run that was interrupted or killed goes on when it is started again. Exit code 7: some lines failed.
    """
    from gguf_engine.batch import BatchOptions, run_batch

    if column is not None and task != "generate":
        raise OptionError("--column", column, "with --task generate only", f"use JSONL with --task {task}")
    began_at = time.perf_counter()
    for text in (system, column):
        check_text("option", text or "")
    ahead = None if window is None else parse_typed(BatchOptions, "window", window)
    options = BatchOptions(task=task, sampling=sampling, system=system, raw=raw, window=ahead)  # type: ignore[arg-type]
    n_engines = parse_number("--engines", engines, int, 1, 64)
    _check_files(source, target, record)
    identity = (model.model, model.tokenizer, model.chat_template, hub.revision, engine.lora, engine.n_ctx)
    digest = _digest([*identity, column, as_json(replace(options, window=None))])
    engine = _share(replace(engine, preset=engine.preset or "throughput"), n_engines)
    with contextlib.ExitStack() as files:
        stream = files.enter_context(_opened(source))
        lines = _lines(stream, source, column)
        sink = files.enter_context(_sink(target, source, digest, resume=resume))
        run = Run(began_at, sink)
        done = sink.skip(lines) if sink else 0
        # A program that talks over a pipe may send its first line only when the model is loaded.
        rest = _peek(lines) if done else lines
        with run.reported(record, target):
            if rest is not None:
                with contextlib.ExitStack() as models:
                    llms = [models.enter_context(loaded(model, hub, engine)) for _ in range(n_engines)]
                    answers = run_batch(llms, rest, options, run.stats)
                    with contextlib.closing(answers), _bar(done, _size(stream)) as show:
                        run.answer(answers, show)
    if run.n_failed:
        raise LinesFailedError(run.n_failed, run.n_answered)


def _share(engine: EngineParams, n_engines: int) -> EngineParams:
    """Return how each of several engines is loaded: with its part of the processors, if nothing is said."""
    if n_engines == 1:
        return engine
    from gguf_engine.backend.processors import usable_processors

    part = engine.n_threads or max(1, usable_processors() // n_engines)
    return replace(engine, n_threads=part, n_threads_batch=engine.n_threads_batch or part)


def _peek(lines: Iterator[Line]) -> Iterator[Line] | None:
    """Return the same lines, None when there are none."""
    first = next(lines, None)
    return None if first is None else chain([first], lines)


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _check_files(source: str, target: str, record: str | None) -> None:
    if source != _PIPE:
        check_readable("--input", source, "a file of JSONL or CSV that can be read, or - for stdin")
    if target != _PIPE:
        check_writable("--output", target)
        check_regular(
            "--output", target, "a regular file, which a later run can go on with, or - for stdout"
        )
    if record is not None:
        check_writable("--record", record)


@contextlib.contextmanager
def _opened(source: str) -> Iterator[BinaryIO]:
    if source != _PIPE:
        with Path(source).open("rb") as file:
            yield file
        return
    try:
        descriptor = os.dup(sys.stdin.fileno())
    except io.UnsupportedOperation:
        yield sys.stdin.buffer
        return
    # Not sys.stdin itself: the interpreter's end would wait for the thread that reads it. Never closed,
    # for the same reason.
    yield os.fdopen(descriptor, "rb")


def _size(stream: BinaryIO) -> int | None:
    """Return the bytes of a file, None for a pipe."""
    try:
        return os.fstat(stream.fileno()).st_size if stream.seekable() else None
    except (OSError, io.UnsupportedOperation):
        return None


@contextlib.contextmanager
def _sink(target: str, source: str, digest: str, *, resume: bool) -> Iterator[Output | None]:
    """Open the output; None for stdout."""
    if target == _PIPE:
        yield None
        return
    from gguf_engine.batch import Output

    path = Path(target)
    try:
        if source != _PIPE and path.exists() and path.samefile(source):
            raise OptionError("--output", target, "another file than --input")
        output = Output(path, digest, resume=resume)
    except OSError as error:
        allowed, why = "a file that can be written", error.strerror or str(error)
        raise OptionError("--output", target, allowed, f"{why}: choose another") from error
    try:
        yield output
    finally:
        output.close()


def _lines(stream: BinaryIO, source: str, column: str | None) -> Iterator[Line]:
    from gguf_engine.batch import read_csv, read_jsonl
    from gguf_engine.batch.lines import column_names

    if column is not None:
        return read_csv(stream, column)
    if source.lower().endswith(".csv"):
        names = ", ".join(column_names(stream))[:500] or "none"
        allowed = "JSONL, or CSV with --column NAME"
        raise OptionError("--input", source, allowed, f"the columns its first row names: {names}")
    return read_jsonl(stream)


class Run:
    """
    One run: where answers go, and what it took.

    Args:
        began_at: When, on the clock of `time.perf_counter`.
        sink: Where answers go; None for stdout.
    """

    def __init__(self, began_at: float, sink: Output | None) -> None:
        from gguf_engine.batch import BatchStats

        self._began_at, self._sink = began_at, sink
        self._boot_s = 0.0
        self.stats = BatchStats()

    @property
    def n_failed(self) -> int:
        """Lines of the whole output that failed, in earlier runs too."""
        return self.stats.n_failed + (self._sink.n_failed if self._sink else 0)

    @property
    def n_answered(self) -> int:
        """Lines of the whole output."""
        return self.stats.n_answered + (self._sink.n_answered if self._sink else 0)

    def answer(self, answers: Iterator[Answer], show: Callable[[int], None]) -> None:
        """Write the answers; all before them was boot."""
        self._boot_s = time.perf_counter() - self._began_at
        for each in answers:
            self._write(each)
            show(each.line.end)

    def _write(self, answer: Answer) -> None:
        if self._sink is not None:
            self._sink.write(answer.data, answer.line)
            return
        from gguf_engine.batch.output import to_line

        sys.stdout.buffer.write(to_line(answer.data))
        sys.stdout.buffer.flush()

    @contextlib.contextmanager
    def reported(self, path: str | None, target: str) -> Iterator[None]:
        """Report in the end, however it ends, if the model was loaded; after Ctrl-C, say how to go on."""
        has_begun = True
        try:
            yield
        except GGUFEngineError:
            has_begun = self._boot_s > 0
            raise
        except KeyboardInterrupt:
            if self._sink is not None:
                note(f"interrupted; the same command goes on with what {target} lacks")
            raise
        finally:
            if has_begun:
                self._report(path)

    def _report(self, path: str | None) -> None:
        """Print counts and times to stderr, and write them to a file when asked."""
        values = self._figures()
        if path is not None:
            Path(path).write_text(json.dumps(values) + "\n", encoding="utf-8")
        note(*_table(values))

    def _figures(self) -> dict[str, Any]:
        stats, total_s = self.stats, time.perf_counter() - self._began_at
        inference_s = stats.inference_s
        return {
            "n_answered": stats.n_answered,
            "n_answered_before": self._sink.n_answered if self._sink else 0,
            "n_failed": self.n_failed,
            "n_prompt": stats.n_prompt,
            "n_cached": stats.n_cached,
            "n_completion": stats.n_completion,
            "boot_s": self._boot_s,
            "inference_s": inference_s,
            "rest_s": total_s - self._boot_s - inference_s,
            "total_s": total_s,
            "encode_s": stats.encode_s,
            "requests_per_s": stats.n_answered / inference_s if inference_s else 0.0,
            "tokens_per_s": stats.n_completion / inference_s if inference_s else 0.0,
            "peak_memory_bytes": peak_memory_bytes(),
        }


def _table(values: dict[str, Any]) -> list[str]:
    before = f", {values['n_answered_before']} before" if values["n_answered_before"] else ""
    speeds = f"{values['requests_per_s']:.1f} requests/s, {values['tokens_per_s']:.1f} tokens/s"
    prompts = f"{values['n_prompt']} of prompts ({values['n_cached']} from the cache)"
    memory = values["peak_memory_bytes"]
    return [
        f"answered     {values['n_answered']} lines{before}; {values['n_failed']} failed",
        f"tokens       {prompts}, {values['n_completion']} of answers",
        f"boot         {values['boot_s']:9.3f} s",
        f"inference    {values['inference_s']:9.3f} s ({speeds})",
        f"  encode     {values['encode_s']:9.3f} s, most of it beside inference",
        f"rest         {values['rest_s']:9.3f} s",
        f"total        {values['total_s']:9.3f} s",
        *([] if memory is None else [f"peak memory  {memory / 1e6:9.1f} MB"]),
    ]


def peak_memory_bytes() -> int | None:
    """Return the most memory this process has held, or a child that has ended; None where nobody counts."""
    try:
        import resource
    except ImportError:  # pragma: no cover - Windows
        return None
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    peak = max(resource.getrusage(kind).ru_maxrss for kind in kinds)
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def _bar(done: int, size: int | None) -> Iterator[Callable[[int], None]]:
    """Yield what to call with the bytes of input answered; on a terminal, a bar with the time left."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    n_answered = 0
    left = () if size is None else (TextColumn("{task.percentage:3.0f} %"), TimeRemainingColumn())
    columns = (TextColumn("{task.fields[n]} answered", markup=False), BarColumn(), *left)
    with Progress(
        *columns, console=Console(stderr=True), transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bars:
        bar = bars.add_task("", total=size, completed=done, n=0)

        def show(end: int) -> None:
            nonlocal n_answered
            n_answered += 1
            bars.update(bar, completed=end, n=n_answered)

        yield show
