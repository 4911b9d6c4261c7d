"""The program as people and programs run it: processes, pipes, signals, a terminal, the bundled model."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import pytest

from gguf_engine import LLM

pytestmark = pytest.mark.e2e

PROGRAM = (sys.executable, "-m", "gguf_engine")
# Test runners may have been started with Ctrl-C ignored, which children inherit.
HEARS_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
ON_THE_TERMINAL = "import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
MAIN = "from gguf_engine.cli.main import main; main()"
ENDLESS = ("--model", "haiku", "--seed", "1", "--ignore-eos", "--max-tokens", "none")
PROMPT = "Write a haiku about ice hockey"


def run(*args: str, stdin: bytes = b"", **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*PROGRAM, *args], input=stdin, capture_output=True, env={**os.environ, **environment}
    )


@pytest.fixture
def start() -> Iterator[Any]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: str, script: str = HEARS_CTRL_C + MAIN) -> subprocess.Popen[bytes]:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", script, *args]
        # Unbuffered: what a test reads byte by byte and what `communicate` reads follow each other.
        process = subprocess.Popen(command, bufsize=0, stdin=pipe, stdout=pipe, stderr=pipe)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            with contextlib.suppress(BrokenPipeError):
                cast("IO[bytes]", pipe).close()


@pytest.fixture(scope="module")
def answer() -> str:
    """The haiku that the library writes with seed 1."""
    with LLM.load("haiku") as llm:
        return llm.chat([{"role": "user", "content": PROMPT}], seed=1).text


def test_run_prints_the_answer_of_the_library_and_nothing_else(answer: str) -> None:
    done = run("run", "--model", "haiku", "--seed", "1", PROMPT)
    assert (done.returncode, done.stdout.decode(), done.stderr) == (0, answer + "\n", b"")


def test_run_reads_a_pipe_and_gives_the_same_ids_as_json(answer: str) -> None:
    done = run("run", "-m", "haiku", "--seed", "1", "--json", "-", stdin=PROMPT.encode() + b"\n")
    values = json.loads(done.stdout)
    assert (done.returncode, done.stderr, values["text"]) == (0, b"", answer)


def test_text_survives_an_ascii_locale() -> None:
    done = run(
        "run", "-m", "haiku", "--raw", "--json", "-n", "2", "雪", LC_ALL="C", PYTHONIOENCODING="ascii"
    )
    assert (done.returncode, done.stderr) == (0, b"")


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["run", "--model", "nowhere.gguf", "x"], 3),
        (["run", "--model", ".", "x"], 3),
        (["run", "--model", "haiku", "--device", "cuda:99", "x"], 5),
        (["run", "--model", "haiku", "--n-ctx", "8", PROMPT], 6),
        (["run", "--model", "haiku", "--n-ctx", "1000000", "x"], 2),
        (["run", "--model", "haiku", "--chat-template", "nowhere.jinja", "x"], 2),
        (["run", "--offline", "x"], 4),
        (["pull", "phi3-mini", "--endpoint", "http://127.0.0.1:9"], 4),
    ],
)
def test_a_failure_is_one_sentence_and_its_code(args: list[str], code: int, tmp_path: Path) -> None:
    done = subprocess.run([*PROGRAM, *args], capture_output=True, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (code, b"")
    assert done.stderr.startswith(b"gguf-engine: ")
    assert done.stderr.count(b"\n") == 1


def test_pull_prints_the_path_of_the_bundled_model() -> None:
    done = run("pull", "haiku")
    assert Path(done.stdout.decode().removesuffix("\n")).name == "haiku-q4_k_m.gguf"


def test_ctrl_c_ends_an_answer_and_leaves_the_text(start: Any) -> None:
    process = start("run", *ENDLESS, PROMPT)
    first = process.stdout.read(1)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert (process.returncode, errors) == (130, b"")
    whole = run("run", *ENDLESS, PROMPT, "--max-tokens", "400").stdout
    assert (first + rest).endswith(b"\n")
    assert whole.startswith((first + rest)[:-1])


def test_ctrl_c_ends_a_load(start: Any) -> None:
    slow = (
        "import time; from gguf_engine.backend import llama\n"
        "def load(path, params, progress):\n"
        "    print('loading', flush=True)\n"
        "    while progress(0.5): time.sleep(0.01)\n"
        "    raise RuntimeError('ended')\n"
        "llama.LlamaBackend = load\n"
    )
    process = start("run", *ENDLESS, PROMPT, script=HEARS_CTRL_C + slow + MAIN)
    assert process.stdout.readline() == b"loading\n"
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate()
    assert (process.returncode, rest, errors) == (130, b"", b"")


def test_a_reader_that_leaves_ends_the_program_quietly(start: Any) -> None:
    process = start("run", *ENDLESS, PROMPT)
    process.stdout.read(1)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 141


class Terminal:
    """A chat on a terminal of its own."""

    def __init__(self, *args: str) -> None:
        self.screen, theirs = pty.openpty()
        script = ON_THE_TERMINAL + HEARS_CTRL_C + MAIN
        self.process = subprocess.Popen(
            [sys.executable, "-c", script, "chat", *args],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            env={**os.environ, "TERM": "xterm"},
        )
        os.close(theirs)
        self.unread = ""

    def until(self, text: str, seconds: float = 60) -> str:
        """Return what is shown up to and with `text`."""
        deadline = time.monotonic() + seconds
        while text not in self.unread:
            wait = max(0.0, deadline - time.monotonic())
            assert select.select([self.screen], [], [], wait)[0], f"no {text!r} in {self.unread!r}"
            self.unread += os.read(self.screen, 4096).decode("utf-8", "replace").replace("\r", "")
        before, _, self.unread = self.unread.partition(text)
        return before + text

    def type(self, keys: str) -> None:
        """Press these keys."""
        os.write(self.screen, keys.encode())

    def press_ctrl_c_until(self, text: str) -> str:
        """Press Ctrl-C, again after a while: readline overlooks one that comes between two keys."""
        for _ in range(20):
            self.type("\x03")
            try:
                return self.until(text, 2)
            except AssertionError:
                continue
        return self.until(text)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal("--model", "haiku", "--seed", "1")
    terminal.until(">>> ")
    yield terminal
    terminal.process.kill()
    terminal.process.wait()
    os.close(terminal.screen)


def test_a_chat_streams_an_answer_and_ctrl_d_leaves(terminal: Terminal, answer: str) -> None:
    terminal.type(PROMPT + "\n")
    assert answer in terminal.until("\n>>> ")
    terminal.type("\x04")
    assert terminal.process.wait() == 0


def test_ctrl_c_stops_the_answer_and_not_the_chat(terminal: Terminal, answer: str) -> None:
    terminal.type("/set ignore_eos true\n")
    terminal.until(">>> ")
    terminal.type("/set max_tokens none\n")
    terminal.until(">>> ")
    terminal.type(PROMPT + "\n")
    terminal.until(answer.splitlines()[0])
    terminal.press_ctrl_c_until("[stopped; this much stays")
    terminal.until(">>> ")
    terminal.type("/set max_tokens 2\n")
    assert "max_tokens         2" in terminal.until(">>> ")
    terminal.type("/exit\n")
    assert terminal.process.wait() == 0


def test_ctrl_c_at_the_prompt_says_how_to_leave(terminal: Terminal) -> None:
    terminal.type("not sent")
    terminal.until("not sent")
    terminal.press_ctrl_c_until("/exit or Ctrl-D leaves]")
    terminal.until(">>> ")
    terminal.type("/exit\n")
    assert terminal.process.wait() == 0
