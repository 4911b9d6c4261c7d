"""Downloads from a hub that misbehaves: right bytes or one typed error, and nothing left behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fakehub import FakeHub, Request, answer, cut_after, replace_body, stall
from hub_samples import WEIGHTS, everything_in, failure
from hubfaults import gzip_bomb

from gguf_engine.errors import HubError, OptionError
from gguf_engine.loader.catalog import ModelSpec
from gguf_engine.loader.hub import Hub, state_folder
from gguf_engine.loader.resolve import resolve_model
from gguf_engine.loader.transport import Transport


def test_a_broken_connection_goes_on_where_it_stopped(hub: FakeHub) -> None:
    hub.faults.append(cut_after(400_000, path="m.gguf", times=2))
    calls = []
    files = resolve_model("org/repo:m.gguf", progress=lambda *call: calls.append(call))
    assert files.weights.read_bytes() == WEIGHTS
    assert sum(line.startswith("GET") and "m.gguf" in line for line in hub.requests) == 3
    done = [n_done for name, n_done, _ in calls if name == "m.gguf"]
    assert done == sorted(done)


@pytest.mark.parametrize(
    ("status", "code"),
    [(400, "network"), (401, "auth"), (403, "auth"), (404, "not_found"), (410, "not_found"), (429, "busy"),
     (500, "network"), (502, "network"), (503, "busy"), (504, "timeout")],
)  # fmt: skip
@pytest.mark.parametrize("path", ["api/models", "resolve"])
def test_every_refusal_of_the_hub_has_its_code(hub: FakeHub, status: int, code: str, path: str) -> None:
    hub.faults.append(answer(status, path=path))
    assert failure().code == code


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


def test_a_signed_link_that_expires_half_way_is_asked_for_anew(hub: FakeHub) -> None:
    with FakeHub() as cdn:
        cdn.objects = hub.objects
        hub.cdn = cdn.endpoint.replace("127.0.0.1", "localhost")
        cdn.faults += [cut_after(300_000, path="/cdn/", times=1), answer(403, path="/cdn/", times=1)]
        assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
        assert cdn.ranges == [None, "bytes=300000-", "bytes=300000-"]
        assert (
            sum(line.startswith("GET") and "resolve" in line and "m.gguf" in line for line in hub.requests)
            == 3
        )


def test_a_host_behind_the_hub_that_refuses_is_not_taken_for_the_hub(hub: FakeHub) -> None:
    with FakeHub() as cdn:
        cdn.faults.append(answer(403))
        hub.cdn = cdn.endpoint.replace("127.0.0.1", "localhost")
        error = failure()
    assert error.code == "network"
    assert "its link may have expired" in str(error)


def test_a_hub_that_dies_half_way_is_gone_on_with_when_it_is_back(
    hub: FakeHub, clean_environment: Path
) -> None:
    hub.faults += [cut_after(300_000, path="m.gguf", times=1), _dies]
    assert failure().code == "network"
    with FakeHub(port=hub.port, repositories=hub.repositories) as again:
        assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
        assert "bytes=300000-" in again.ranges


def _dies(request: Request) -> bool:
    if "range" in request.headers and not request.hub.over.is_set():
        threading.Thread(target=request.hub.stop).start()
        request.hub.over.wait(60)
        request.close_connection = True
        return True
    return False


@pytest.mark.parametrize(
    "name", ["../../evil.gguf", "/etc/evil.gguf", "a/../../b.gguf", "x\u202e.gguf", ".gguf"]
)
def test_a_hostile_file_name_in_a_listing_is_refused(
    hub: FakeHub, clean_environment: Path, name: str
) -> None:
    hub.add("org/evil", {name: b"evil"})
    with pytest.raises(OptionError, match="file is"):
        resolve_model("org/evil")
    assert everything_in(clean_environment) == []


@pytest.mark.parametrize("listing", ["5", "[1, null]", '[{"rfilename": 3}]', '{"a": 1}', "null"])
def test_a_listing_that_is_none_holds_no_model(hub: FakeHub, listing: str) -> None:
    page = f'{{"sha": "{"a" * 40}", "siblings": {listing}}}'.encode()
    hub.faults.append(replace_body(page, path="api/models"))
    assert failure("org/repo").code == "not_found"


@pytest.fixture
def read_only(hub: FakeHub) -> Iterator[Path]:
    """Return a cache that holds a model, and that the kernel lets nobody write to."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        cache = folder / "hub"
        resolve_model("org/repo:m.gguf", cache_dir=cache)
        shutil.rmtree(cache / "models--org--repo" / ".verified")
        folders = [cache, *(path for path in cache.rglob("*") if path.is_dir())]
        for path in folders:
            path.chmod(0o555)
        user = os.geteuid()
        if user == 0:
            os.seteuid(65534)  # root may write everywhere
        try:
            yield cache
        finally:
            os.seteuid(user)
            for path in folders:
                path.chmod(0o755)


def test_a_read_only_cache_is_read(hub: FakeHub, read_only: Path) -> None:
    for offline in (False, True):
        files = resolve_model("org/repo:m.gguf", cache_dir=read_only, offline=offline)
        assert files.weights.read_bytes() == WEIGHTS


def test_a_read_only_cache_takes_nothing_new(hub: FakeHub, read_only: Path) -> None:
    hub.add("org/repo", {"m.gguf": WEIGHTS[::-1]})
    before = everything_in(read_only)
    error = failure(cache_dir=read_only)
    assert (error.code, "Permission denied" in str(error)) == ("cache", True)
    assert everything_in(read_only) == before


def test_an_altered_file_in_a_read_only_cache_is_not_used(hub: FakeHub, read_only: Path) -> None:
    user = os.geteuid()
    os.seteuid(os.getuid())
    (blob,) = (
        path for path in (read_only / "models--org--repo" / "blobs").iterdir() if len(path.name) == 64
    )
    blob.write_bytes(WEIGHTS[:-1] + b"?")
    os.seteuid(user)
    assert failure(cache_dir=read_only, offline=True).code == "cache"


def test_a_blob_that_was_truncated_is_fetched_again_for_another_commit_too(hub: FakeHub) -> None:
    weights = resolve_model("org/repo:m.gguf").weights
    weights.resolve().write_bytes(WEIGHTS[:500])
    hub.add("org/repo", {"m.gguf": WEIGHTS, "other": b"1"})
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS


def test_two_that_set_a_bad_file_aside_at_once_do_not_meet(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = resolve_model("org/repo:m.gguf").weights
    weights.resolve().write_bytes(b"bad")

    def gone(self: Path, target: Path) -> Path:
        raise FileNotFoundError(str(self))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", gone)
        assert failure(offline=True).code == "offline"


def test_huggingface_hub_told_to_be_offline_is_obeyed(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert failure().code == "offline"


def test_an_error_that_is_no_ones_of_ours_stays_what_it_is(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken() -> None:
        raise LookupError("a client of somebody's own")

    monkeypatch.setattr("huggingface_hub.get_session", broken)
    with pytest.raises(LookupError, match="somebody"):
        resolve_model("org/repo:m.gguf")


def test_a_refusal_without_a_reason_names_its_status(hub: FakeHub) -> None:
    def refuse(request: Request) -> bool:
        request.send(500, b"", {})
        return True

    hub.faults.append(refuse)
    assert "the hub answered 500; try again later" in str(failure())


@pytest.mark.parametrize(("base", "place"), [("/x", "/x"), ("", "/home/me/.cache")])
def test_what_is_remembered_of_models_is_in_the_users_cache(
    monkeypatch: pytest.MonkeyPatch, base: str, place: str
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", base)
    monkeypatch.setenv("HOME", "/home/me")
    assert state_folder() == Path(place) / "gguf_engine" / "verdicts"


def test_a_compressed_body_is_refused_as_such(hub: FakeHub) -> None:
    hub.faults.append(gzip_bomb(10, path="api/models"))
    assert "in the encoding 'gzip', which was not asked for" in str(failure())
