"""Downloads from a hub that misbehaves: right bytes or one typed error, and nothing left behind."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest
from fakehub import FakeHub, Request, answer, cut_after, replace_body, stall
from hub_samples import WEIGHTS, everything_in, failure

from gguf_engine.errors import HubError, OptionError
from gguf_engine.loader.catalog import ModelSpec
from gguf_engine.loader.hub import Hub
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
