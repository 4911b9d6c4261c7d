"""
`gguf-engine run PROMPT` with its default model: fetched once by revision, then from the cache.

A hub on loopback serves the bundled model under Phi-3-mini's names; the program, its HTTP and the cache
are the real ones.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakehub import FakeHub

from gguf_engine.loader.resolve import resolve_model

pytestmark = pytest.mark.e2e

PROMPT = "Write a haiku about ice hockey"


@pytest.fixture
def hub(fake_hub: FakeHub) -> FakeHub:
    bundled = resolve_model("haiku")
    assert bundled.tokenizer is not None
    weights = {"Phi-3-mini-4k-instruct-q4.gguf": bundled.weights.read_bytes()}
    fake_hub.add("microsoft/Phi-3-mini-4k-instruct-gguf", weights)
    fake_hub.add("microsoft/Phi-3-mini-4k-instruct", {"tokenizer.json": bundled.tokenizer.read_bytes()})
    return fake_hub


def run(hub: FakeHub, *args: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint}
    command = [sys.executable, "-m", "gguf_engine", *args]
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def test_the_default_model_is_fetched_once_and_then_answers_offline(hub: FakeHub) -> None:
    first = run(hub, "run", "--seed", "1", PROMPT)
    assert first.returncode == 0, first.stderr
    assert len(first.stdout.splitlines()) == 3
    assert sum("Phi-3-mini-4k-instruct-q4.gguf" in line and "GET" in line for line in hub.requests) == 1
    hub.requests.clear()
    second = run(hub, "run", "--seed", "1", "--offline", PROMPT)
    assert second.stdout == first.stdout
    assert hub.requests == []


def test_pull_prints_the_path_of_the_weights_and_nothing_else(hub: FakeHub) -> None:
    pulled = run(hub, "pull", "phi3-mini", "--revision", "main")
    assert pulled.returncode == 0, pulled.stderr
    (path,) = pulled.stdout.splitlines()
    assert Path(path).read_bytes() == resolve_model("haiku").weights.read_bytes()


def test_a_revision_that_is_not_there_is_a_sentence(hub: FakeHub) -> None:
    failed = run(hub, "run", "--revision", "v9", PROMPT)
    assert (failed.returncode, failed.stdout) == (4, "")
    assert "v9" in failed.stderr
    assert "Traceback" not in failed.stderr
