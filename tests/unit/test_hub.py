"""Downloads over real HTTP from a hub on loopback that behaves, and what the cache makes of them."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from fakehub import FakeHub, answer, etag_of
from hub_samples import PHI3, TOKENIZER, WEIGHTS, everything_in, failure

from gguf_engine.errors import OptionError
from gguf_engine.loader.hub import Hub
from gguf_engine.loader.resolve import resolve_model


def test_the_default_model_arrives_with_its_tokenizer_and_its_commit(
    hub: FakeHub, clean_environment: Path
) -> None:
    files = resolve_model("phi3-mini")
    assert files.weights.read_bytes() == WEIGHTS
    assert files.tokenizer is not None
    assert files.tokenizer.read_bytes() == TOKENIZER
    assert files.weights.is_relative_to(clean_environment)
    assert (files.revision, files.commit) == ("main", hub.repositories[PHI3].revisions["main"])


def test_a_revision_is_resolved_once_and_files_are_fetched_by_commit(hub: FakeHub) -> None:
    commit = resolve_model("org/repo:m.gguf").commit
    assert hub.requests == [
        "GET /api/models/org/repo/revision/main",
        f"HEAD /org/repo/resolve/{commit}/m.gguf",
        f"GET /org/repo/resolve/{commit}/m.gguf",
        f"HEAD /org/repo/resolve/{commit}/tokenizer.json",
        f"GET /org/repo/resolve/{commit}/tokenizer.json",
    ]


def test_the_cache_is_laid_out_as_huggingface_hub_reads_it(hub: FakeHub, clean_environment: Path) -> None:
    from huggingface_hub import scan_cache_dir, try_to_load_from_cache

    files = resolve_model("org/repo:m.gguf")
    assert try_to_load_from_cache("org/repo", "m.gguf", cache_dir=clean_environment) == str(files.weights)
    info = scan_cache_dir(clean_environment)
    assert not info.warnings
    assert [repo.repo_id for repo in info.repos] == ["org/repo"]
    assert files.weights.resolve().name == etag_of("m.gguf", WEIGHTS)


def test_what_is_cached_is_not_fetched_again(hub: FakeHub) -> None:
    first = resolve_model("org/repo:m.gguf")
    hub.requests.clear()
    assert resolve_model("org/repo:m.gguf") == first
    assert hub.requests == ["GET /api/models/org/repo/revision/main"]


def test_a_cached_commit_needs_no_request_at_all(hub: FakeHub) -> None:
    commit = resolve_model("org/repo:m.gguf").commit
    hub.requests.clear()
    resolve_model(f"org/repo:m.gguf@{commit}")
    assert hub.requests == []


def test_cached_files_work_after_the_network_is_gone(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    files = resolve_model("phi3-mini")
    hub.stop()
    with caplog.at_level(logging.WARNING):
        assert resolve_model("phi3-mini") == files
    assert "using the cached commit" in caplog.text


@pytest.mark.parametrize("way", ["argument", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_offline_opens_no_connection(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
    files = resolve_model("phi3-mini")
    hub.requests.clear()
    if way != "argument":
        monkeypatch.setenv(way, "1")
    assert resolve_model("phi3-mini", offline=way == "argument") == files
    assert hub.requests == []


def test_offline_with_nothing_cached_says_what_to_do(hub: FakeHub) -> None:
    error = failure("phi3-mini", offline=True)
    assert error.code == "offline"
    assert "run `gguf-engine pull phi3-mini` where there is a network" in str(error)
    assert "--model haiku" in str(error)
    assert hub.requests == []


def test_no_network_and_nothing_cached_says_what_to_do(hub: FakeHub) -> None:
    hub.stop()
    error = failure("phi3-mini")
    assert error.code == "network"
    assert "where there is a network, or use --model haiku, which needs no download" in str(error)


def test_progress_is_told_from_the_first_byte_to_the_last(hub: FakeHub) -> None:
    calls = []
    resolve_model("org/repo:m.gguf", progress=lambda *call: calls.append(call))
    done = [n_done for name, n_done, total in calls if name == "m.gguf" and total == len(WEIGHTS)]
    assert done[0] == 0
    assert done == sorted(done)
    assert done[-1] == len(WEIGHTS)
    assert calls[-1] == ("tokenizer.json", len(TOKENIZER), len(TOKENIZER))


def test_an_exception_in_the_progress_hook_is_that_exception_and_leaves_no_file(
    hub: FakeHub, clean_environment: Path
) -> None:
    def hook(name: str, n_done: int, total: int | None) -> None:
        raise LookupError(name)

    with pytest.raises(LookupError, match=r"m\.gguf"):
        resolve_model("org/repo:m.gguf", progress=hook)
    assert everything_in(clean_environment) == []


def test_nothing_is_printed(hub: FakeHub, capfd: pytest.CaptureFixture[str]) -> None:
    resolve_model("phi3-mini")
    assert capfd.readouterr() == ("", "")


def test_a_repository_with_one_model_needs_no_file_name(hub: FakeHub) -> None:
    assert resolve_model("org/repo").weights.name == "m.gguf"
    assert resolve_model("org/repo", offline=True).weights.name == "m.gguf"
    commit = hub.repositories["org/repo"].revisions["main"]
    assert resolve_model(f"org/repo@{commit}", cache_dir=Path(os.environ["HF_HOME"]) / "x").commit == commit


def test_of_several_models_one_must_be_named(hub: FakeHub) -> None:
    hub.add("org/two", {"a.gguf": b"a", "b.gguf": b"b"})
    with pytest.raises(OptionError, match=r"one file of a\.gguf, b\.gguf; write org/two:a\.gguf"):
        resolve_model("org/two")


def test_a_repository_without_models_is_refused(hub: FakeHub) -> None:
    hub.add("org/none", {"README.md": b"-"})
    assert failure("org/none").code == "not_found"


def test_a_repository_without_a_tokenizer_gives_none(hub: FakeHub) -> None:
    hub.add("org/bare", {"m.gguf": WEIGHTS})
    commit = resolve_model("org/bare:m.gguf").commit
    for model in ("org/bare:m.gguf", f"org/bare:m.gguf@{commit}"):
        assert resolve_model(model).tokenizer is None
        assert resolve_model(model, offline=True).tokenizer is None


def test_that_a_commit_has_no_tokenizer_is_remembered(hub: FakeHub) -> None:
    hub.add("org/bare", {"m.gguf": WEIGHTS})
    commit = hub.repositories["org/bare"].revisions["main"]
    for _ in range(2):
        assert resolve_model(f"org/bare:m.gguf@{commit}").tokenizer is None
    assert sum("tokenizer.json" in line for line in hub.requests) == 1


def test_a_pinned_model_whose_tokenizer_cannot_be_fetched_says_so(
    hub: FakeHub, caplog: pytest.LogCaptureFixture
) -> None:
    commit = hub.repositories["org/repo"].revisions["main"]
    hub.faults.append(answer(503, path="tokenizer.json"))
    with caplog.at_level(logging.WARNING):
        assert resolve_model(f"org/repo:m.gguf@{commit}").tokenizer is None
    assert "going on without the tokenizer.json of org/repo" in caplog.text


def test_a_pinned_default_model_that_is_cached_needs_no_request(hub: FakeHub) -> None:
    commit = resolve_model("phi3-mini").commit
    hub.requests.clear()
    assert resolve_model("phi3-mini", revision=commit).tokenizer is not None
    assert hub.requests == []


def test_a_new_commit_is_followed_and_equal_bytes_are_not_fetched_again(hub: FakeHub) -> None:
    old = resolve_model("org/repo:m.gguf")
    hub.add("org/repo", {"m.gguf": WEIGHTS, "tokenizer.json": b"{}"})
    hub.requests.clear()
    new = resolve_model("org/repo:m.gguf")
    assert new.commit != old.commit
    assert new.tokenizer is not None
    assert new.tokenizer.read_bytes() == b"{}"
    assert [line for line in hub.requests if line.startswith("GET") and "m.gguf" in line] == []


@pytest.mark.parametrize(
    ("model", "code"),
    [
        ("org/missing:m.gguf", "not_found"),
        ("org/repo:missing.gguf", "not_found"),
        ("org/repo:m.gguf@v9", "revision"),
    ],
)
def test_what_the_hub_does_not_have_is_named(hub: FakeHub, model: str, code: str) -> None:
    assert failure(model).code == code


def test_a_private_repository_opens_with_the_token(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/secret", {"m.gguf": WEIGHTS}, private=True)
    assert "HF_TOKEN" in str(failure("org/secret:m.gguf"))
    monkeypatch.setenv("HF_TOKEN", hub.token)
    assert resolve_model("org/secret:m.gguf").weights.read_bytes() == WEIGHTS


def test_a_gated_repository_says_that_its_terms_come_first(hub: FakeHub) -> None:
    hub.add("org/gated", {"m.gguf": WEIGHTS}, gated=True)
    error = failure("org/gated:m.gguf")
    assert error.code == "gated"
    assert "accept the terms on its page" in str(error)
    assert resolve_model("org/gated:m.gguf", token=hub.token).commit


def test_the_saved_login_is_used_and_the_token_never_shown(hub: FakeHub, clean_environment: Path) -> None:
    (clean_environment.parent / "token").write_text(hub.token + "\n")
    resolve_model("org/repo:m.gguf")
    assert set(hub.tokens_seen) == {f"Bearer {hub.token}"}
    assert hub.token not in repr(Hub.open())


def test_a_token_that_cannot_be_one_is_refused_unseen(hub: FakeHub) -> None:
    with pytest.raises(OptionError) as caught:
        resolve_model("org/repo:m.gguf", token="two words\n")  # noqa: S106
    assert "two words" not in str(caught.value)


def test_a_large_file_on_another_host_is_followed_without_the_token(hub: FakeHub) -> None:
    with FakeHub() as cdn:
        cdn.objects = hub.objects
        hub.cdn = cdn.endpoint.replace("127.0.0.1", "localhost")
        assert resolve_model("org/repo:m.gguf", token=hub.token).weights.read_bytes() == WEIGHTS
        assert set(cdn.tokens_seen) == {None}
        assert set(hub.tokens_seen) == {f"Bearer {hub.token}"}


def test_a_cached_file_that_was_altered_is_set_aside_and_fetched_again(hub: FakeHub) -> None:
    weights = resolve_model("org/repo:m.gguf").weights
    blob = weights.resolve()
    blob.write_bytes(WEIGHTS[:-1] + b"?")
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert blob.with_name(blob.name + ".bad").exists()


def test_an_altered_file_is_not_used_offline_either(hub: FakeHub) -> None:
    weights = resolve_model("org/repo:m.gguf").weights
    weights.resolve().write_bytes(b"short")
    assert failure(offline=True).code == "offline"


def test_a_file_that_another_program_downloaded_is_checked_and_used(
    hub: FakeHub, clean_environment: Path
) -> None:
    # In a process of its own: huggingface_hub reads HF_ENDPOINT once, when it is imported.
    code = (
        "import huggingface_hub, sys; "
        "huggingface_hub.hf_hub_download('org/repo', 'm.gguf', cache_dir=sys.argv[1])"
    )
    environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    subprocess.run([sys.executable, "-c", code, str(clean_environment)], env=environment, check=True)
    assert any("m.gguf" in line for line in hub.requests)
    hub.requests.clear()
    resolve_model("org/repo:m.gguf")
    assert [line for line in hub.requests if "m.gguf" in line] == []


def test_where_links_cannot_be_made_the_cache_works_all_the_same(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Path, target: str) -> None:
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    files = resolve_model("org/repo:m.gguf")
    assert not files.weights.is_symlink()
    assert resolve_model("org/repo:m.gguf", offline=True) == files


def test_a_link_to_nothing_is_made_anew(hub: FakeHub) -> None:
    weights = resolve_model("org/repo:m.gguf").weights
    weights.resolve().unlink()
    assert failure(offline=True).code == "offline"
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS


def test_eight_threads_fetch_one_file_at_once(hub: FakeHub) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(resolve_model, ["org/repo:m.gguf"] * 8))
    assert {files.weights.read_bytes() for files in found} == {WEIGHTS}


def test_a_cache_that_cannot_be_written_later_is_still_read(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = resolve_model("org/repo:m.gguf")
    shutil.rmtree(files.weights.parents[2] / ".verified")

    def refuse(*_: object) -> None:
        raise PermissionError("read-only")

    monkeypatch.setattr("gguf_engine.loader.hubcache.write_whole", refuse)
    assert resolve_model("org/repo:m.gguf", offline=True) == files


def test_a_hit_is_not_hashed_again(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_model("org/repo:m.gguf")
    monkeypatch.setattr("gguf_engine.loader.hubcache.Digest", None)
    resolve_model("org/repo:m.gguf", offline=True)


def test_a_file_whose_name_is_no_hash_is_fetched(hub: FakeHub) -> None:
    """As a program without links leaves it: nothing says what its bytes should be."""
    weights = resolve_model("org/repo:m.gguf").weights
    shutil.rmtree(weights.parents[2] / ".verified")
    weights.unlink()
    weights.write_bytes(WEIGHTS[::-1])
    assert failure(offline=True).code == "offline"
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS


@pytest.mark.parametrize("record", ["[]", "not JSON", '{"etag": 5}', "{}", '{"etag": "x"}'])
def test_a_record_that_says_nonsense_counts_for_nothing(hub: FakeHub, record: str) -> None:
    weights = resolve_model("org/repo:m.gguf").weights
    (path,) = (weights.parents[2] / ".verified").rglob("m.gguf.json")
    path.write_text(record)
    weights.resolve().write_bytes(WEIGHTS[::-1])
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS


def test_a_record_has_what_was_checked_and_when(hub: FakeHub) -> None:
    weights = resolve_model("org/repo:m.gguf").weights
    (path,) = (weights.parents[2] / ".verified").rglob("tokenizer.json.json")
    record = json.loads(path.read_text())
    assert set(record) == {"etag", "size", "mtime_ns", "inode", "sha256", "verified_at"}
    assert record["etag"] == etag_of("tokenizer.json", TOKENIZER)
    assert record["sha256"] == hashlib.sha256(TOKENIZER).hexdigest()
