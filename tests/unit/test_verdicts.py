"""Remembered verdicts: found again by one stat, forgotten when the file changed or the record is odd."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from gguf_engine.loader.verdicts import Verdict, Verdicts, combined

SHA = hashlib.sha256(b"weights").hexdigest()
GOOD = Verdict(sha256=SHA, size=7, rules=1, tensors="good")


@pytest.fixture
def verdicts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Verdicts:
    """Return an empty store for which every file has settled."""
    monkeypatch.setattr("gguf_engine.loader.verdicts._SETTLED_NS", -1)
    return Verdicts.open(tmp_path / "state" / "verdicts")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"weights")
    return path


def records(verdicts: Verdicts, kind: str) -> list[Path]:
    assert verdicts.folder is not None
    return list((verdicts.folder / kind).iterdir())


def test_a_verdict_is_found_again_by_another_process(verdicts: Verdicts, weights: Path) -> None:
    assert verdicts.of([weights]) is None
    verdicts.remember(weights, SHA)
    assert verdicts.identify([weights]) == SHA
    assert verdicts.of([weights]) is None
    verdicts.record(GOOD)
    assert Verdicts.open(verdicts.folder).of([weights]) == GOOD
    verdicts.record(replace(GOOD, killed="GGML_ASSERT"))
    assert verdicts.of_sha256(SHA) == replace(GOOD, killed="GGML_ASSERT")


def test_nothing_but_whole_records_is_left(verdicts: Verdicts, weights: Path) -> None:
    verdicts.remember(weights, SHA)
    verdicts.record(GOOD)
    assert [path.suffix for kind in ("index", "records") for path in records(verdicts, kind)] == [
        ".json"
    ] * 2


def test_a_file_that_changed_is_unknown(verdicts: Verdicts, weights: Path) -> None:
    verdicts.remember(weights, SHA)
    before = weights.stat()
    while weights.stat().st_ctime_ns == before.st_ctime_ns:  # its clock ticks every few milliseconds
        weights.write_bytes(b"WEIGHTS")
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))  # as an attacker would
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    assert verdicts.identify([weights]) is None


def test_another_file_is_unknown(verdicts: Verdicts, weights: Path, tmp_path: Path) -> None:
    verdicts.remember(weights, SHA)
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(weights.read_bytes())
    assert verdicts.identify([copy]) is None
    assert verdicts.identify([weights, copy]) is None


def test_a_file_that_was_just_written_is_not_indexed(tmp_path: Path, weights: Path) -> None:
    verdicts = Verdicts.open(tmp_path / "verdicts")
    os.utime(weights, ns=(1, 1))
    verdicts.remember(weights, SHA)
    assert verdicts.identify([weights]) is None
    assert not (tmp_path / "verdicts").exists()


def test_a_blob_of_the_hub_cache_is_named_by_its_sha256(verdicts: Verdicts, tmp_path: Path) -> None:
    blob, link = tmp_path / SHA, tmp_path / "snapshot.gguf"
    blob.write_bytes(b"weights")
    link.symlink_to(blob)
    assert verdicts.identify([link], blobs=True) == SHA
    assert verdicts.identify([link]) is None  # a name that anybody may give


def test_a_split_model_is_known_when_every_part_is(
    verdicts: Verdicts, weights: Path, tmp_path: Path
) -> None:
    second = tmp_path / "n.gguf"
    second.write_bytes(b"more")
    verdicts.remember(weights, SHA)
    assert verdicts.identify([weights, second]) is None
    other = hashlib.sha256(b"more").hexdigest()
    verdicts.remember(second, other)
    assert verdicts.identify([weights, second]) == hashlib.sha256(f"{SHA}\n{other}".encode()).hexdigest()
    assert combined([SHA]) == SHA


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"[]", b"null", b"{}", b"\xff", b"[" * 100_000,
        *(
            json.dumps(asdict(GOOD) | odd).encode()
            for odd in (
                {"sha256": "0" * 64}, {"tensors": "fine"}, {"tensors": 1}, {"killed": 1}, {"size": "7"},
                {"rules": None}, {"where": None}, {"more": 1},
            )
        ),
    ],
    ids=lambda content: content[:20].decode("ascii", "replace") + str(len(content)),
)  # fmt: skip
def test_a_record_that_is_odd_counts_for_nothing(verdicts: Verdicts, content: bytes) -> None:
    verdicts.record(GOOD)
    (path,) = records(verdicts, "records")
    path.write_bytes(content)
    assert verdicts.of_sha256(SHA) is None
    verdicts.record(GOOD)
    assert verdicts.of_sha256(SHA) == GOOD


@pytest.mark.parametrize("content", [{}, {"sha256": 1}, {"sha256": "../../x"}, [], 3])
def test_an_index_that_is_odd_counts_for_nothing(verdicts: Verdicts, weights: Path, content: Any) -> None:
    verdicts.remember(weights, SHA)
    (path,) = records(verdicts, "index")
    path.write_text(json.dumps(content))
    assert verdicts.identify([weights]) is None


def test_without_a_folder_nothing_is_remembered(weights: Path) -> None:
    verdicts = Verdicts.open(None)
    verdicts.record(GOOD)
    assert verdicts.of_sha256(SHA) is None
    assert verdicts.of([weights]) is None


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path, weights: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    verdicts = Verdicts.open(tmp_path / "file" / "verdicts")
    verdicts.record(GOOD)
    assert verdicts.of_sha256(SHA) is None


def test_a_record_that_cannot_be_put_in_place_leaves_nothing(
    verdicts: Verdicts, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert verdicts.folder is not None
    (verdicts.folder / "records" / f"{SHA}.json").mkdir(parents=True)  # cannot be replaced by a file
    verdicts.record(GOOD)
    assert [path.suffix for path in records(verdicts, "records")] == [".json"]
    assert verdicts.of_sha256(SHA) is None
