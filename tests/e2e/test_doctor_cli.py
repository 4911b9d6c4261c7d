"""`gguf-engine doctor` as people and programs run it: real processes, real llama.cpp."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from fakehub import FakeHub

import gguf_engine

pytestmark = pytest.mark.e2e


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "gguf_engine", "doctor", *args],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
    )


def test_json_has_the_machine_the_build_and_what_follows(fake_hub: FakeHub) -> None:
    done = run("--json", HF_ENDPOINT=fake_hub.endpoint)
    report = json.loads(done.stdout)
    assert (done.returncode, done.stderr, report["broken"]) == (0, "", [])
    facts = report["facts"]
    assert facts["versions"]["gguf-engine"] == gguf_engine.__version__
    assert facts["trial"]["n_tokens"] > 0
    assert facts["hub"]["endpoint"] == fake_hub.endpoint
    assert "hub" in {warning["code"] for warning in report["warnings"]}  # it is empty: 404


def test_people_get_the_same_in_words(tmp_path: Path) -> None:
    done = run(HF_HUB_OFFLINE="1", HF_HOME=str(tmp_path), OMP_WAIT_POLICY="passive")
    assert done.returncode == 0, done.stderr
    assert "offline: not asked" in done.stdout
    assert f"{tmp_path}/hub: 0 models" in done.stdout
    assert "OMP_WAIT_POLICY=passive puts threads to sleep" in done.stdout
    assert "everything works" in done.stdout


def test_a_llama_cpp_that_cannot_be_loaded_ends_with_a_sentence_and_a_code(tmp_path: Path) -> None:
    package = tmp_path / "llama_cpp"
    package.mkdir()
    (package / "__init__.py").write_text("raise RuntimeError('libllama.so: no such file')\n")
    done = run("--json", HF_HUB_OFFLINE="1", PYTHONPATH=str(tmp_path))
    report = json.loads(done.stdout)
    assert done.returncode == 1
    assert "llama.cpp cannot be loaded" in done.stderr
    assert "libllama.so: no such file" in done.stderr
    assert [finding["code"] for finding in report["broken"]] == ["library"]
    assert report["broken"][0]["fix"].startswith("CMAKE_ARGS=")
