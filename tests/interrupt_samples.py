"""Processes that are interrupted at random moments, and what they must leave behind."""

from __future__ import annotations

import contextlib
import random
import select
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import IO, NamedTuple, cast

HANG_S = 30.0
PIPE = subprocess.PIPE
# Test runners may have been started with Ctrl-C ignored, which children inherit.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
SHOWS_STACKS = "import faulthandler; faulthandler.register(signal.SIGUSR1)\n"
CLI = HEARS_CTRL_C + "import os; from gguf_engine.cli.main import main; os.write(1, b'.'); main()"

# Does what a line of stdin says, until it is interrupted; says when it begins and when it has noticed.
LIBRARY = f"""{HEARS_CTRL_C}{SHOWS_STACKS}
import sys, time
from pathlib import Path
from gguf_engine import LLM
model, n_ctx = sys.argv[1], int(sys.argv[2])
llm = LLM.load(model, n_ctx=n_ctx)
long = [300 + n * 7 % 200 for n in range(n_ctx - 10)]

def forget(engine):
    for slot in list(engine.kv_cache._idle):
        engine.kv_cache.drop(slot)

def load():
    LLM.load(model, n_ctx=n_ctx).close()

def prompt():
    llm._worker.call(forget)
    llm.generate(long, max_tokens=1)

def generation():
    llm.generate(long[:20], max_tokens=n_ctx - 100, ignore_eos=True)

def stream():
    for _ in llm.stream(long[:20], max_tokens=n_ctx - 100, ignore_eos=True):
        pass

for line in sys.stdin:
    work = globals()[line.strip()]
    try:
        print("begun", flush=True)
        while True:
            work()
    except KeyboardInterrupt:
        print(time.monotonic(), flush=True)
    assert llm.generate("again", max_tokens=2, ignore_eos=True).finish_reason == "length"
"""


class Interrupted(NamedTuple):
    """One Ctrl-C: during what, and the seconds until the program noticed it; None for never."""

    phase: str
    seconds: float | None


class Program:
    """
    A process with pipes, which is ended with the block that uses it.

    Attributes:
        out: What was left on stdout at its end.
    """

    def __init__(self, script: str, *args: str, hang_s: float = HANG_S) -> None:
        self.hang_s = hang_s
        self.out = b""
        command = [sys.executable, "-c", script, *args]
        # Unbuffered: what is read line by line and what `communicate` reads follow each other.
        self.process = subprocess.Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=PIPE)

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout, self.process.stderr):
            with contextlib.suppress(BrokenPipeError):
                cast("IO[bytes]", pipe).close()

    def line(self, n_bytes: int | None = None) -> str:
        """Return the next line of stdout, or as many bytes; "" when none comes."""
        out = cast("IO[bytes]", self.process.stdout)
        if not select.select([out], [], [], HANG_S)[0]:
            return ""
        return (out.readline() if n_bytes is None else out.read(n_bytes)).decode().strip()

    def say(self, line: str) -> None:
        """Write a line to its stdin."""
        cast("IO[bytes]", self.process.stdin).write(line.encode() + b"\n")

    def end(self) -> tuple[int, str]:
        """Close its stdin; return its exit code and what is on stderr: its stacks, if it hangs."""
        try:
            self.out, errors = self.process.communicate(timeout=self.hang_s)
        except subprocess.TimeoutExpired:
            self.process.send_signal(signal.SIGUSR1)
            time.sleep(1)
            self.process.kill()
            self.out, errors = self.process.communicate()
        return self.process.returncode, errors.decode()


def interrupt_library(
    model: str | Path, n_ctx: int, phases: list[str], longest_s: float, seed: int
) -> tuple[list[Interrupted], int, str]:
    """
    Interrupt one program that uses the library, once a phase, each 0..longest_s seconds after its begin.

    Returns:
        What was noticed, the exit code and stderr; the rounds end with the first that was not noticed.
    """
    random_ = random.Random(seed)
    seen = []
    with Program(LIBRARY, str(model), str(n_ctx)) as program:
        for phase in phases:
            program.say(phase)
            if program.line() != "begun":
                break
            time.sleep(random_.uniform(0, longest_s))
            sent = time.monotonic()
            program.process.send_signal(signal.SIGINT)
            noticed = program.line()
            seen.append(Interrupted(phase, float(noticed) - sent if noticed else None))
            if not noticed:
                break
        return seen, *program.end()


def interrupt_cli(args: list[str], wait_s: float) -> tuple[float, int, str]:
    """
    Interrupt one command `wait_s` seconds after its `main` began.

    Returns:
        The seconds until it had ended, its exit code, stderr.
    """
    with Program(CLI, *args) as program:
        assert program.line(1) == "."
        time.sleep(wait_s)
        sent = time.monotonic()
        program.process.send_signal(signal.SIGINT)
        code, errors = program.end()
        return time.monotonic() - sent, code, errors
