"""Downloads over real HTTP from a hub on loopback, well-behaved and not."""

import logging
import os
import shutil
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fakehub import FakeHub, Request, answer, cut_after, etag_of, replace_body, stall

from gguf_engine.errors import HubError, OptionError
from gguf_engine.loader import hub as hub_module
from gguf_engine.loader.catalog import ModelSpec
from gguf_engine.loader.hub import Hub
from gguf_engine.loader.resolve import resolve_model
from gguf_engine.loader.transport import Transport

WEIGHTS = bytes(range(256)) * 4000  # 1 MB
TOKENIZER = b'{"version": "1.0"}'
PHI3 = "microsoft/Phi-3-mini-4k-instruct-gguf"


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "RETRY_WAIT_S", 0.0)


@pytest.fixture
def hub(fake_hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    """Return a hub with phi3-mini, its tokenizer and one more model; it is the endpoint."""
    fake_hub.add(PHI3, {"Phi-3-mini-4k-instruct-q4.gguf": WEIGHTS, "README.md": b"read me"})
    fake_hub.add("microsoft/Phi-3-mini-4k-instruct", {"tokenizer.json": TOKENIZER})
    fake_hub.add("org/repo", {"m.gguf": WEIGHTS, "tokenizer.json": TOKENIZER})
    monkeypatch.setenv("HF_ENDPOINT", fake_hub.endpoint)
    return fake_hub


def failure(model: str = "org/repo:m.gguf", **options: Any) -> HubError:
    with pytest.raises(HubError) as caught:
        resolve_model(model, **options)
    return caught.value


def everything_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() or path.is_symlink())


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
    assert "set HF_ENDPOINT, or use --model haiku, which needs no download" in str(error)


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


def test_a_broken_connection_goes_on_where_it_stopped(hub: FakeHub) -> None:
    hub.faults.append(cut_after(400_000, path="m.gguf", times=2))
    calls = []
    files = resolve_model("org/repo:m.gguf", progress=lambda *call: calls.append(call))
    assert files.weights.read_bytes() == WEIGHTS
    assert sum(line.startswith("GET") and "m.gguf" in line for line in hub.requests) == 3
    done = [n_done for name, n_done, _ in calls if name == "m.gguf"]
    assert done == sorted(done)


def test_a_connection_that_keeps_breaking_leaves_nothing_behind(
    hub: FakeHub, clean_environment: Path
) -> None:
    hub.faults.append(cut_after(10, path="m.gguf"))
    assert failure().code == "network"
    assert everything_in(clean_environment) == []


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "network"), (401, "auth"), (403, "auth"), (404, "not_found"), (410, "not_found"), (429, "busy"),
     (500, "network"), (502, "network"), (503, "busy"), (504, "timeout")],
)  # fmt: skip
@pytest.mark.parametrize("path", ["api/models", "resolve"])
def test_every_refusal_of_the_hub_has_its_code(hub: FakeHub, status: int, code: str, path: str) -> None:
    hub.faults.append(answer(status, path=path))
    assert failure().code == code


def test_a_failure_that_passes_is_tried_again(hub: FakeHub) -> None:
    hub.faults.append(cut_after(0, path="m.gguf", times=1))
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS


def test_a_hub_that_says_nothing_is_a_timeout(hub: FakeHub, clean_environment: Path) -> None:
    silence = threading.Event()
    hub.faults.append(stall(silence))
    transport = Transport(endpoint=hub.endpoint, timeout_s=0.2)
    spec = ModelSpec(name="x", repo="org/repo", file="m.gguf")
    with pytest.raises(HubError) as caught:
        Hub(cache=clean_environment, transport=transport).fetch(spec)
    silence.set()
    assert caught.value.code == "timeout"


@pytest.mark.parametrize(
    "page", [b"<html>Please log in</html>", b"", b"[]", b'{"sha": "../../x"}', b'{"sha": 1}']
)
def test_a_login_page_instead_of_an_answer_is_noticed(
    hub: FakeHub, clean_environment: Path, page: bytes
) -> None:
    hub.faults.append(replace_body(page, path="api/models"))
    assert failure().code in {"network", "integrity"}
    assert everything_in(clean_environment) == []


@pytest.mark.parametrize(
    ("body", "code"),
    [
        (WEIGHTS[:-1] + b"!", "integrity"),
        (b"<html>" + WEIGHTS[6:], "integrity"),
        (WEIGHTS + b"more", "integrity"),
        (WEIGHTS[:-1], "network"),
        (b"", "network"),
    ],
)
def test_wrong_bytes_never_become_a_file(
    hub: FakeHub, clean_environment: Path, body: bytes, code: str
) -> None:
    hub.faults.append(replace_body(body, path="m.gguf"))
    assert failure().code == code
    assert everything_in(clean_environment) == []


@pytest.mark.parametrize("etag", ["../../../evil", "a" * 39, "A" * 64, "", "x" * 64, "a" * 64 + "\t/../b"])
def test_a_hostile_etag_is_refused_before_anything_is_written(
    hub: FakeHub, clean_environment: Path, etag: str
) -> None:
    def fault(request: Request) -> bool:
        if request.command != "HEAD":
            return False
        request.send(200, b"", {"ETag": f'"{etag}"', "Content-Length": "10"})
        return True

    hub.faults.append(fault)
    assert failure().code == "integrity"
    assert not clean_environment.exists()


@pytest.mark.parametrize(
    "headers", [{"X-Repo-Commit": "0" * 40}, {"X-Repo-Commit": "../x"}, {"Content-Length": "-1"}]
)
def test_another_commit_or_a_mad_size_is_refused(
    hub: FakeHub, clean_environment: Path, headers: dict[str, str]
) -> None:
    def fault(request: Request) -> bool:
        if request.command != "HEAD":
            return False
        request.send(200, b"", {"ETag": '"' + "a" * 64 + '"', **headers})
        return True

    hub.faults.append(fault)
    assert failure().code in {"integrity", "network"}
    assert everything_in(clean_environment) == []


def test_a_file_larger_than_the_disk_is_refused_before_it_is_fetched(hub: FakeHub) -> None:
    def fault(request: Request) -> bool:
        if request.command != "HEAD":
            return False
        request.send(200, b"", {"ETag": '"' + "a" * 64 + '"', "X-Linked-Size": str(10**14)})
        return True

    hub.faults.append(fault)
    assert failure().code == "disk_full"
    assert [line for line in hub.requests if line.startswith("GET /org")] == []


def test_a_cache_that_cannot_be_written_is_named(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    error = failure(cache_dir=tmp_path / "file" / "cache")
    assert error.code == "cache"
    assert "set HF_HOME" in str(error)


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

    monkeypatch.setattr("gguf_engine.loader.hubcache._write_whole", refuse)
    assert resolve_model("org/repo:m.gguf", offline=True) == files


def test_a_hit_is_not_hashed_again(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_model("org/repo:m.gguf")
    monkeypatch.setattr("gguf_engine.loader.hubcache.Digest", None)
    resolve_model("org/repo:m.gguf", offline=True)


def test_an_endpoint_without_encryption_is_refused_unless_it_is_this_machine() -> None:
    error = failure(endpoint="http://192.0.2.1")
    assert "not encrypted" in str(error)


@pytest.mark.parametrize("endpoint", ["ftp://x", "huggingface.co", "https://", "https://x?y=1"])
def test_an_endpoint_that_is_no_url_is_refused(endpoint: str) -> None:
    with pytest.raises(OptionError, match="allowed: a URL"):
        resolve_model("org/repo:m.gguf", endpoint=endpoint)


def test_a_redirect_to_an_unencrypted_host_is_not_followed(hub: FakeHub) -> None:
    hub.cdn = "http://192.0.2.1"
    assert "not encrypted" in str(failure())


def test_endless_redirects_end(hub: FakeHub) -> None:
    def fault(request: Request) -> bool:
        request.send(302, b"", {"Location": request.path})
        return True

    hub.faults.append(fault)
    assert "redirected more than 5 times" in str(failure())


@pytest.mark.parametrize(
    ("environment", "cache"),
    [
        ({"HF_HUB_CACHE": "/c"}, "/c"),
        ({"HUGGINGFACE_HUB_CACHE": "/d"}, "/d"),
        ({"HF_HOME": "/h"}, "/h/hub"),
        ({"HF_HOME": "", "XDG_CACHE_HOME": "/x"}, "/x/huggingface/hub"),
        ({"HF_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], cache: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert Hub.open().cache == Path(cache)


def test_local_models_need_no_network_client(tiny_model: Path) -> None:
    code = (
        "import sys; from gguf_engine.loader.resolve import resolve_model; "
        f"resolve_model({str(tiny_model)!r}); resolve_model('haiku'); "
        "print([name for name in sys.modules if name.startswith(('huggingface', 'http', 'numpy'))])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout == "[]\n"


def test_the_hub_serves_a_folder_as_a_program(tmp_path: Path) -> None:
    (tmp_path / "org" / "repo").mkdir(parents=True)
    (tmp_path / "org" / "repo" / "m.gguf").write_bytes(WEIGHTS)
    script = Path(__file__).parents[1] / "fakehub.py"
    command = [sys.executable, str(script), str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        try:
            files = resolve_model("org/repo", endpoint=server.stdout.readline().strip())
            assert files.weights.read_bytes() == WEIGHTS
        finally:
            server.terminate()
