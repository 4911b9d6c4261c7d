"""`gguf-engine batch` as a process: killed at random, interrupted, behind pipes, on a terminal."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from interrupt_samples import HANG_S, HEARS_CTRL_C
from promises import report
from thoroughness import rounds

pytestmark = pytest.mark.e2e

MAIN = HEARS_CTRL_C + "from gguf_engine.cli.main import main; main()"
N_LINES = 300
HAIKU = ("batch", "--model", "haiku", "--n-threads", "1")
MOMENTS = random.Random(3)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    options = {"max_tokens": 12}
    values = [{"id": f"n{n}", "input": f"Write a haiku about {n}", **options} for n in range(N_LINES)]
    source.write_text("".join(json.dumps(value) + "\n" for value in values))
    return source, target


@pytest.fixture
def start() -> Iterator[Any]:
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: object, **streams: Any) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-c", MAIN, *HAIKU, *map(str, args)]
        process = subprocess.Popen(command, bufsize=0, **{"stderr": subprocess.PIPE, **streams})
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def wait_for_bytes(path: Path, n_bytes: int, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + HANG_S
    while not (path.exists() and path.stat().st_size >= n_bytes) and process.poll() is None:
        assert time.monotonic() < end
        time.sleep(0.001)


def ids(path: Path) -> list[str]:
    return [json.loads(line)["id"] for line in path.read_bytes().splitlines()]


EVERY_ID_ONCE = [f"n{n}" for n in range(N_LINES)]


def test_every_id_is_there_once_however_often_it_is_killed(start: Any, files: tuple[Path, Path]) -> None:
    source, target = files
    n_kills = rounds(quick=4, thorough=100)
    for n in range(n_kills):
        process = start("-i", source, "-o", target)
        now = target.stat().st_size if target.exists() else 0
        # The first ones before, or long before, there is an answer; the next after some more of them.
        wait_for_bytes(target, 0 if n % 4 == 0 else now + MOMENTS.randrange(1, 6000), process)
        process.kill()
        process.wait()
        whole = target.read_bytes().count(b"\n")
        assert ids_of_whole_lines(target) == EVERY_ID_ONCE[:whole]
        if whole == N_LINES:
            target.unlink()
    process = start("-i", source, "-o", target)
    assert process.wait(HANG_S) == 0
    assert ids(target) == EVERY_ID_ONCE
    assert not any("error" in json.loads(line) for line in target.read_bytes().splitlines())
    report("Every id once after kill -9", n_kills, f"{n_kills} of {n_kills} outputs could be gone on with")


def ids_of_whole_lines(path: Path) -> list[str]:
    whole = [line for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n")]
    return [json.loads(line)["id"] for line in whole]


def test_ctrl_c_leaves_an_output_to_go_on_with(start: Any, files: tuple[Path, Path]) -> None:
    source, target = files
    process = start("-i", source, "-o", target)
    wait_for_bytes(target, 3000, process)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=HANG_S)
    assert process.returncode == 130
    assert b"interrupted; the same command goes on" in errors
    n_done = len(ids(target))
    assert ids(target) == EVERY_ID_ONCE[:n_done]
    assert start("-i", source, "-o", target).wait(HANG_S) == 0
    assert ids(target) == EVERY_ID_ONCE


def test_a_program_may_wait_for_each_answer_before_it_asks_again(start: Any) -> None:
    process = start(stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    for n in range(3):
        process.stdin.write(json.dumps({"input": "Write a haiku about ice", "seed": 1}).encode() + b"\n")
        answer = json.loads(process.stdout.readline())
        assert (answer["id"], answer["seed"]) == (n + 1, 1)
    process.send_signal(signal.SIGINT)  # while it waits for a line
    assert process.wait(HANG_S) == 130
    assert b"answered     3 lines" in process.stderr.read()


def test_a_reader_that_leaves_ends_it(start: Any, files: tuple[Path, Path]) -> None:
    process = start("-i", files[0], stdout=subprocess.PIPE)
    process.stdout.readline()
    process.stdout.close()
    process.stderr.read()
    assert process.wait(HANG_S) == 141


def test_a_terminal_shows_a_bar_and_files_stay_clean(start: Any, files: tuple[Path, Path]) -> None:
    source, target = files
    screen, theirs = pty.openpty()
    terminal = {"stderr": theirs, "stdout": theirs, "env": {**os.environ, "TERM": "xterm"}}
    process = start("-i", source, "-o", target, **terminal)
    os.close(theirs)
    seen = b""
    with contextlib.suppress(OSError):  # when the other side has ended
        while select.select([screen], [], [], HANG_S)[0]:
            seen += os.read(screen, 4096)
    os.close(screen)
    assert process.wait(HANG_S) == 0
    assert b"answered" in seen
    assert b"%" in seen
    assert seen.count(b"peak memory") == 1
    assert ids(target) == EVERY_ID_ONCE
