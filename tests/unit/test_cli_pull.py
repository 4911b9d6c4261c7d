"""`pull`: the path of verified weights on stdout, whatever cache and hub; every failure is four or two."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_samples import run_cli
from fakehub import FakeHub, answer

from gguf_engine.loader import hub as hub_module
from gguf_engine.loader.download import Limits


@pytest.fixture
def weights(tiny_model: Path) -> bytes:
    return tiny_model.read_bytes()


@pytest.fixture
def hub(fake_hub: FakeHub, weights: bytes, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr(hub_module, "LIMITS", Limits(retry_wait_s=0.0))
    fake_hub.add("org/repo", {"m.gguf": weights})
    return fake_hub


def test_stdout_is_the_path_and_nothing_else(hub: FakeHub, weights: bytes, tmp_path: Path) -> None:
    args = ("pull", "org/repo:m.gguf", "--endpoint", hub.endpoint, "--cache-dir", str(tmp_path))
    code, out, err = run_cli(*args)
    path = Path(out.removesuffix("\n"))
    assert (code, err) == (0, "")
    assert path.read_bytes() == weights
    assert path.is_relative_to(tmp_path)


def test_the_environment_chooses_hub_and_cache(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch, clean_environment: Path
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", hub.endpoint)
    out = run_cli("pull", "org/repo:m.gguf").out
    assert Path(out.strip()).is_relative_to(clean_environment)


def test_what_is_here_is_found_offline(hub: FakeHub) -> None:
    first = run_cli("pull", "org/repo:m.gguf", "--endpoint", hub.endpoint)
    n_requests = len(hub.requests)
    offline = run_cli("pull", "org/repo:m.gguf", "--endpoint", hub.endpoint, "--offline")
    assert (offline.code, offline.out) == (0, first.out)
    assert len(hub.requests) == n_requests


def test_a_token_opens_a_gated_repository(hub: FakeHub, weights: bytes) -> None:
    hub.add("org/gated", {"m.gguf": weights}, gated=True)
    args = ("pull", "org/gated:m.gguf", "--endpoint", hub.endpoint)
    refused = run_cli(*args)
    assert (refused.code, refused.out) == (4, "")
    assert run_cli(*args, "--token", hub.token).code == 0


def test_a_revision_is_asked_for(hub: FakeHub, weights: bytes) -> None:
    hub.add("org/repo", {"m.gguf": weights}, revision="v1")
    args = ("pull", "org/repo:m.gguf", "--endpoint", hub.endpoint)
    assert run_cli(*args, "--revision", "v1").code == 0
    code, out, err = run_cli(*args, "--revision", "v2")
    assert (code, out) == (4, "")
    assert "v2" in err


def test_a_hub_that_fails_is_four(hub: FakeHub) -> None:
    hub.faults.append(answer(503))
    code, out, err = run_cli("pull", "org/repo:m.gguf", "--endpoint", hub.endpoint)
    assert (code, out) == (4, "")
    assert err.startswith("gguf-engine: ")
    assert err.count("\n") == 1


def test_no_network_and_nothing_cached_is_four_and_says_what_helps() -> None:
    code, out, err = run_cli("pull", "phi3-mini", "--offline")
    assert (code, out) == (4, "")
    assert "--model haiku" in err


def test_a_bundled_model_needs_no_hub() -> None:
    code, out, _ = run_cli("pull", "haiku", "--offline")
    assert code == 0
    assert Path(out.strip()).is_file()


@pytest.mark.parametrize(("name", "expected"), [("haikuu", 3), ("../x", 3), ("org/re po:m.gguf", 2)])
def test_a_name_that_is_none_is_refused(name: str, expected: int) -> None:
    code, out, err = run_cli("pull", name)
    assert (code, out) == (expected, "")
    assert err.count("\n") == 1


def test_a_file_that_would_crash_llama_cpp_is_three_unless_told_otherwise(hub: FakeHub) -> None:
    hub.add("org/page", {"m.gguf": b"<html>no model</html>"})
    args = ("pull", "org/page", "--endpoint", hub.endpoint)
    code, out, err = run_cli(*args)
    assert (code, out) == (3, "")
    assert "[magic]" in err
    assert run_cli(*args, "--no-preflight").code == 0
