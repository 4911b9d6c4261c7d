"""Partial files: what an earlier try left is gone on with, or thrown away where it does not fit."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from fakehub import FakeHub, Request, cut_after, etag_of
from hub_samples import TOKENIZER, WEIGHTS, everything_in, failure

from gguf_engine.errors import HubError
from gguf_engine.loader import hub as hub_module
from gguf_engine.loader.download import Limits
from gguf_engine.loader.partial import PartialFile, n_waiting
from gguf_engine.loader.resolve import resolve_model

ETAG = etag_of("m.gguf", WEIGHTS)


@pytest.fixture
def blob(clean_environment: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(hub_module, "LIMITS", Limits(retries=0))
    folder = clean_environment / "models--org--repo" / "blobs"
    folder.mkdir(parents=True)
    return folder / ETAG


def leave(blob: Path, data: bytes, validator: str = f'"{ETAG}"') -> None:
    blob.with_name(f"{ETAG}.partial").write_bytes(data)
    blob.with_name(f"{ETAG}.partial.etag").write_text(validator)


def spans(hub: FakeHub) -> list[str | None]:
    """Return the ranges that were asked for of the weights."""
    asked = zip(hub.requests, hub.ranges, strict=True)
    return [span for line, span in asked if line.startswith("GET") and "m.gguf" in line]


def test_a_download_that_failed_is_gone_on_with_by_the_next(hub: FakeHub, blob: Path) -> None:
    hub.faults.append(cut_after(300_000, path="m.gguf", times=1))
    error = failure()
    assert "300000 of 1024000 bytes are kept" in str(error)
    assert n_waiting(blob) == 300_000
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert spans(hub) == [None, "bytes=300000-"]
    assert everything_in(blob.parent) == sorted([blob, blob.with_name(etag_of("t.json", TOKENIZER))])


def test_the_rest_of_another_version_is_not_asked_for(hub: FakeHub, blob: Path) -> None:
    """If-Range: the hub sees that its file is another one, and sends all of it; no second try is left."""
    leave(blob, b"?" * 1000, '"of another version"')
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert spans(hub) == ["bytes=1000-"]


@pytest.mark.parametrize("validator", ["", "W/weak", "a\nb", '"' + "x" * 300, "\udce9"])
def test_an_etag_that_cannot_be_sent_back_is_not(hub: FakeHub, blob: Path, validator: str) -> None:
    leave(blob, WEIGHTS[:1000])
    blob.with_name(f"{ETAG}.partial.etag").write_bytes(validator.encode("utf-8", "surrogateescape"))
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert spans(hub) == ["bytes=1000-"]


def test_a_partial_file_that_is_longer_is_thrown_away(hub: FakeHub, blob: Path) -> None:
    leave(blob, WEIGHTS + b"!")
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert spans(hub) == [None]


def test_other_bytes_in_a_partial_file_are_noticed_in_the_end(
    hub: FakeHub, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(blob, b"?" * 1000)
    monkeypatch.setattr(hub_module, "LIMITS", Limits(retries=1, retry_wait_s=0))
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert spans(hub) == ["bytes=1000-", None]


def test_other_bytes_are_gone_even_if_there_is_no_further_try(hub: FakeHub, blob: Path) -> None:
    leave(blob, b"?" * 1000)
    assert failure().code == "integrity"
    assert everything_in(blob.parent) == []


def test_a_partial_file_that_is_whole_needs_no_bytes(hub: FakeHub, blob: Path) -> None:
    leave(blob, WEIGHTS)
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert spans(hub) == []


def test_a_partial_file_that_is_whole_and_wrong_is_fetched_again(
    hub: FakeHub, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave(blob, WEIGHTS[::-1])
    monkeypatch.setattr(hub_module, "LIMITS", Limits(retries=1, retry_wait_s=0))
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert spans(hub) == [None]


def test_a_range_that_the_hub_cannot_serve_becomes_a_whole_file(hub: FakeHub, blob: Path) -> None:
    def refuse(request: Request) -> bool:
        if "range" not in request.headers:
            return False
        request.refuse(416, "Range Not Satisfiable")
        return True

    leave(blob, WEIGHTS[:1000])
    hub.faults.append(refuse)
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert spans(hub) == ["bytes=1000-", None]


def test_a_part_that_nobody_asked_for_is_refused(hub: FakeHub, blob: Path) -> None:
    def part(request: Request) -> bool:
        if request.command != "GET" or "m.gguf" not in request.path:
            return False
        request.send(206, WEIGHTS[5:], {"Content-Range": f"bytes 5-{len(WEIGHTS) - 1}/{len(WEIGHTS)}"})
        return True

    hub.faults.append(part)
    assert "was sent a part" in str(failure())


def test_a_link_in_the_place_of_a_partial_file_is_not_followed(
    hub: FakeHub, blob: Path, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_bytes(b"mine")
    blob.with_name(f"{ETAG}.partial").symlink_to(tmp_path / "mine")
    assert failure().code == "cache"
    assert (tmp_path / "mine").read_bytes() == b"mine"


@pytest.fixture
def small_files() -> Iterator[None]:
    """Let the kernel refuse to make a file longer than 300 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_disk_that_is_full_half_way_keeps_what_it_took(
    hub: FakeHub, blob: Path, small_files: None
) -> None:
    error = failure()
    assert error.code == "disk_full"
    assert n_waiting(blob) == 300_000
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert spans(hub) == [None, "bytes=300000-"]


def test_an_empty_file_is_a_file(hub: FakeHub) -> None:
    hub.add("org/empty", {"m.gguf": b""})
    assert resolve_model("org/empty:m.gguf").weights.read_bytes() == b""


def test_the_sha256_of_a_small_file_is_checked_against_the_one_expected(tmp_path: Path) -> None:
    blob = tmp_path / etag_of("t.json", TOKENIZER)

    def receive() -> None:
        with PartialFile.open(blob, len(TOKENIZER), "0" * 64) as partial:
            partial.take(TOKENIZER)
            partial.check("t.json")

    with pytest.raises(HubError, match="the lock file says 0000") as caught:
        receive()
    assert caught.value.code == "integrity"
    assert everything_in(tmp_path) == []


def test_an_answer_in_time_is_not_too_slow(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    limits = replace(hub_module.LIMITS, speed_window_s=0.0, min_bytes_per_s=1e-9)
    monkeypatch.setattr(hub_module, "LIMITS", limits)
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS


def test_a_blob_that_came_another_way_leaves_no_partial_file(hub: FakeHub, blob: Path) -> None:
    leave(blob, WEIGHTS[:1000])
    blob.write_bytes(WEIGHTS)
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert [path for path in everything_in(blob.parent) if ".partial" in path.name] == []


def test_a_process_that_dies_while_a_file_is_named_leaves_nothing_but_the_file(
    hub: FakeHub, blob: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment between the last two steps, which a kill hits about once in 200 times."""

    def die(self: Path, target: Path) -> Path:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", die)
        patch.setattr("gguf_engine.loader.partial.write_whole", lambda path, text: path.write_text(text))
        with pytest.raises(KeyboardInterrupt):
            resolve_model("org/repo:m.gguf")
    assert [path.name for path in everything_in(blob.parent)] == [f"{ETAG}.partial"]
    assert resolve_model("org/repo:m.gguf").weights.read_bytes() == WEIGHTS
    assert spans(hub) == [None]
