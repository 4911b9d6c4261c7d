"""`lock`, `--lock`, `bundle` and `unbundle`: what they print, and their exit codes."""

from __future__ import annotations

from pathlib import Path

import pytest
from cli_samples import FakeModel, run_cli
from fakehub import FakeHub

from gguf_engine.loader import hub as hub_module
from gguf_engine.loader.download import Limits


@pytest.fixture
def hub(fake_hub: FakeHub, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    monkeypatch.setattr(hub_module, "LIMITS", Limits(retry_wait_s=0.0))
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.endpoint)
    tokenizer = tiny_model.with_name("tokenizer.json").read_bytes()
    fake_hub.add("org/repo", {"m.gguf": tiny_model.read_bytes(), "tokenizer.json": tokenizer})
    return fake_hub


def test_lock_prints_the_lock_file(hub: FakeHub) -> None:
    code, out, err = run_cli("lock", "org/repo:m.gguf", "haiku")
    assert (code, err) == (0, "")
    words = [line.split() for line in out.splitlines()]
    assert [line[0] for line in words] == ["gguf-engine-lock", *2 * ["model", "weights", "tokenizer"]]
    assert words[2][1] == f"org/repo@{hub.repositories['org/repo'].revisions['main']}"


def test_lock_writes_the_file_it_is_told_to(hub: FakeHub, tmp_path: Path) -> None:
    printed = run_cli("lock", "org/repo").out
    code, out, err = run_cli("lock", "org/repo", "--output", str(tmp_path / "lock"))
    assert (code, out, err) == (0, "", "")
    assert (tmp_path / "lock").read_text() == printed


def test_a_lock_file_that_cannot_be_written_is_two(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "lock", tmp_path / "none" / "deep" / "lock", tmp_path):
        code, out, err = run_cli("lock", "org/repo", "-o", str(path))
        assert (code, out) == (2, "")
        assert err.startswith(f"gguf-engine: --output is '{path}'; allowed: a file that can be written; ")
    assert [path.name for path in tmp_path.iterdir() if path.name in ("file", "none")] == ["file"]
    assert hub.requests == []


def test_lock_takes_no_lock(hub: FakeHub, tmp_path: Path) -> None:
    assert run_cli("lock", "haiku", "--lock", str(tmp_path / "lock")).code == 2


def test_a_locked_model_that_changed_is_four_and_one_not_named_is_two(hub: FakeHub, tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    run_cli("lock", "org/repo:m.gguf", "-o", str(lock))
    assert run_cli("pull", "org/repo:m.gguf", "--lock", str(lock)).code == 0
    assert run_cli("inspect", "org/repo:m.gguf", "--json", "--lock", str(lock)).code == 0
    assert run_cli("pull", "haiku", "--lock", str(lock)).code == 2
    lock.write_text(lock.read_text().replace("tokenizer.json ", "tokenizer.json 1"))
    code, out, err = run_cli("pull", "org/repo:m.gguf", "--lock", str(lock))
    assert (code, out) == (4, "")
    assert "the lock file wants" in err


def test_a_verb_that_answers_hands_the_lock_on() -> None:
    model = FakeModel()
    run_cli("run", "--lock", "x.lock", "-n", "1", "Hi", model=model)
    assert model.asked["lock"] == "x.lock"


def test_a_bundle_carries_a_model_to_a_cache_without_a_network(hub: FakeHub, tmp_path: Path) -> None:
    bundle, far = str(tmp_path / "b.tar"), ("--cache-dir", str(tmp_path / "far"))
    assert run_cli("bundle", "org/repo:m.gguf", "--output", bundle) == (0, "", "")
    hub.stop()
    code, out, err = run_cli("unbundle", bundle, *far)
    assert (code, err) == (0, "")
    assert run_cli("pull", "org/repo:m.gguf", "--offline", *far).out == out
    assert run_cli("pull", "org/repo", "--offline", *far).out == out


def test_a_bundle_is_checked_like_a_download(hub: FakeHub, tmp_path: Path) -> None:
    hub.add("org/page", {"m.gguf": b"<html>no model</html>"})
    bundle = str(tmp_path / "b.tar")
    assert run_cli("bundle", "org/page", "-o", bundle).code == 0
    assert run_cli("unbundle", bundle).code == 3
    assert run_cli("unbundle", bundle, "--no-preflight").code == 0


def test_a_bundle_that_cannot_be_written_is_two_before_anything_is_fetched(
    hub: FakeHub, tmp_path: Path
) -> None:
    for path in (tmp_path / "none" / "b.tar", tmp_path):
        code, _, err = run_cli("bundle", "org/repo:m.gguf", "-o", str(path))
        assert (code, hub.requests) == (2, [])
        assert err.startswith(f"gguf-engine: --output is '{path}'; allowed: a file that can be written; ")


def test_a_folder_is_no_bundle(tmp_path: Path) -> None:
    code, _, err = run_cli("unbundle", str(tmp_path))
    assert (code, f"{tmp_path} is a folder, not a file; make one with" in err) == (3, True)


def test_what_is_no_bundle_is_four_and_nothing_three(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "b.tar").write_bytes(b"x" * 10_000)
    assert run_cli("unbundle", str(tmp_path / "b.tar")).code == 4
    assert run_cli("unbundle", str(tmp_path / "none")).code == 3
