"""The README's server, started as it says on the port it says; its curl lines, run as they are written."""

from __future__ import annotations

import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from server_samples import HANG_S

pytestmark = pytest.mark.e2e

README = (Path(__file__).resolve().parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = "\n".join(re.findall(r"^```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL))
LINES = BLOCKS.replace("\\\n", " ").splitlines()  # what a shell takes for one line
CURLS = [line for line in LINES if line.startswith("curl ")]
SERVES = [line for line in LINES if line.startswith("gguf-engine serve ")]


def port_of(line: str) -> int:
    """Return the port that a line of the README names."""
    (port,) = set(re.findall(r"http://127\.0\.0\.1:(\d+)", line))
    return int(port)


@pytest.fixture(scope="module")
def served() -> Iterator[int]:
    """Run the README's first `gguf-engine serve`, and return the port that its comment names."""
    port = port_of(SERVES[0])
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            pytest.fail(f"port {port} of the README's example is taken ({error}); end what listens there")
    program, *arguments = shlex.split(SERVES[0], comments=True)
    assert program == "gguf-engine"
    command = [sys.executable, "-m", "gguf_engine", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = []
        for line in process.stderr:
            said.append(line)
            if line.startswith("listening on "):
                break
        assert said, "the README's server ended without a word"
        assert said[-1] == f"listening on http://127.0.0.1:{port}\n", said
        try:
            yield port
        finally:
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=HANG_S)
    assert process.returncode == 0


def test_the_readme_shows_a_server_and_a_curl_line() -> None:
    assert SERVES
    assert CURLS


@pytest.mark.parametrize("line", CURLS)
def test_a_curl_line_of_the_readme_is_answered(served: int, line: str) -> None:
    assert port_of(line) == served
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, timeout=HANG_S)
    assert done.returncode == 0, done.stderr
    assert done.stdout
    assert '"error"' not in done.stdout
    if "/v1/chat/completions" in line and '"stream"' not in line:
        answer = json.loads(done.stdout)
        assert len(answer["choices"][0]["message"]["content"].splitlines()) == 3
