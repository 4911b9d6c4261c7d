"""One reading of the weights: hashed, broken numbers found by ggml itself, the outcome remembered."""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from make_gguf import write_tiny_model

from gguf_engine import LLM
from gguf_engine.backend.llama import has_finite_numbers
from gguf_engine.errors import ModelFileError
from gguf_engine.loader import tensor_check
from gguf_engine.loader.gguf import read_gguf
from gguf_engine.loader.hub import state_folder
from gguf_engine.loader.parts import read_parts
from gguf_engine.loader.preflight import RULES
from gguf_engine.loader.tensor_check import check_tensors
from gguf_engine.loader.verdicts import Verdict, Verdicts, combined

Make = Callable[..., Path]
HALF_NAN, HALF_INF = b"\x01\x7c", b"\x00\xfc"


@pytest.fixture(autouse=True)
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Take files of this very second for settled."""
    monkeypatch.setattr("gguf_engine.loader.verdicts._SETTLED_NS", -1)


@pytest.fixture
def verdicts(tmp_path: Path) -> Verdicts:
    return Verdicts.open(tmp_path / "verdicts")


def check(path: Path, verdicts: Verdicts, **options: Any) -> Verdict:
    return check_tensors(read_parts(read_gguf(path)), verdicts, has_finite_numbers, **options)


def spoil(path: Path, name: str, at: int, data: bytes) -> int:
    """Overwrite bytes of a tensor; return where in the file."""
    header = read_gguf(path)
    tensor = next(row for row in header.tensors if row.name == name)
    offset = header.data_offset + tensor.offset + at
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)
    return offset


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_good_file_is_read_once(tiny_model: Path, verdicts: Verdicts) -> None:
    verdict = check(tiny_model, verdicts)
    assert verdict == Verdict(
        sha256=sha256(tiny_model), size=tiny_model.stat().st_size, rules=RULES, tensors="good"
    )

    def unwanted(*_: object) -> bool:
        raise AssertionError("read again")

    assert check_tensors(read_parts(read_gguf(tiny_model)), verdicts, unwanted) == verdict


@pytest.mark.parametrize("chunk", [256, 1000, 2**20])
def test_however_it_is_cut_the_hash_is_the_file_s(
    make_tiny_model: Make, verdicts: Verdicts, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    monkeypatch.setattr(tensor_check, "_CHUNK_BYTES", chunk)
    path = make_tiny_model(type="Q4_K_M", n_embd=256, alignment=4096)
    done: list[tuple[str, int, int | None]] = []
    verdict = check(path, verdicts, progress=lambda *step: done.append(step))
    assert (verdict.sha256, verdict.tensors) == (sha256(path), "good")
    sizes = [n for _, n, _ in done]
    assert sizes == sorted(set(sizes))
    assert done[-1] == (path.name, verdict.size, verdict.size)


def test_a_split_model_is_read_to_the_last_part(tmp_path: Path, verdicts: Verdicts) -> None:
    first = write_tiny_model(tmp_path / "m.gguf", n_parts=3)
    parts = [part.path for part in read_parts(read_gguf(first))]
    verdict = check(first, verdicts)
    assert verdict.sha256 == combined(map(sha256, parts))
    assert verdict.size == sum(path.stat().st_size for path in parts)
    last = read_gguf(parts[2]).tensors[-1].name
    spoil(parts[2], last, 0, struct.pack("<f", float("nan")))
    with pytest.raises(ModelFileError) as caught:
        check(first, verdicts)
    assert (caught.value.code, caught.value.where) == ("tensor_data", last)


@pytest.mark.parametrize(
    ("kind", "at", "data"),
    [
        ("F32", 400, struct.pack("<f", float("nan"))),
        ("F32", 0, struct.pack("<f", float("-inf"))),
        ("F16", 2, HALF_NAN),
        ("BF16", 2, b"\x80\x7f"),
        ("Q4_0", 18 * 7, HALF_INF),
        ("Q8_0", 34 * 7, HALF_NAN),
        ("Q4_K", 144, HALF_NAN),
        ("Q4_K", 144 + 2, HALF_INF),
        ("Q5_K", 176 + 2, HALF_NAN),
        ("Q6_K", 210 + 208, HALF_INF),
    ],
)
def test_a_broken_number_or_scale_is_refused_and_the_tensor_named(
    tmp_path: Path, verdicts: Verdicts, kind: str, at: int, data: bytes
) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", type=kind, n_embd=256)
    name = "blk.1.ffn_down.weight"
    offset = spoil(path, name, at, data)
    for _ in range(2):  # read, then remembered
        with pytest.raises(ModelFileError) as caught:
            check(path, verdicts)
        error = caught.value
        assert (error.code, error.where, error.path) == ("tensor_data", name, str(path))
        assert f"at or after byte {offset - at}" in str(error)
    assert verdicts.of_sha256(sha256(path)) is not None


def test_the_first_of_several_broken_tensors_is_named(tmp_path: Path, verdicts: Verdicts) -> None:
    path = write_tiny_model(tmp_path / "m.gguf")
    for name in ("blk.1.attn_norm.weight", "blk.0.ffn_norm.weight"):
        spoil(path, name, 0, struct.pack("<f", float("inf")))
    with pytest.raises(ModelFileError) as caught:
        check(path, verdicts)
    assert caught.value.where == "blk.0.ffn_norm.weight"


def test_a_file_that_killed_is_refused_until_the_rules_are_newer(
    tiny_model: Path, verdicts: Verdicts, monkeypatch: pytest.MonkeyPatch
) -> None:
    verdicts.record(replace(check(tiny_model, verdicts), killed="GGML_ASSERT(n > 0) failed"))
    with pytest.raises(ModelFileError, match=r"ended a process .*: GGML_ASSERT\(n > 0\) failed") as caught:
        check(tiny_model, verdicts)
    assert caught.value.code == "killed_before"
    monkeypatch.setattr(tensor_check, "RULES", RULES + 1)
    assert check(tiny_model, verdicts).tensors == "good"


def test_a_copy_of_a_file_that_killed_is_refused_too(
    tiny_model: Path, verdicts: Verdicts, tmp_path: Path
) -> None:
    verdicts.record(Verdict(sha256=sha256(tiny_model), size=1, rules=RULES, killed="SIGSEGV"))
    copy = tmp_path / "copy.gguf"
    copy.write_bytes(tiny_model.read_bytes())
    for _ in range(2):
        with pytest.raises(ModelFileError, match="SIGSEGV") as caught:
            check(copy, verdicts)
        assert caught.value.code == "killed_before"


def test_newer_rules_forget_what_killed_when_they_read_again(tiny_model: Path, verdicts: Verdicts) -> None:
    verdicts.record(Verdict(sha256=sha256(tiny_model), size=1, rules=RULES - 1, killed="SIGSEGV"))
    assert check(tiny_model, verdicts).killed is None


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path, verdicts: Verdicts) -> None:
    path = write_tiny_model(tmp_path / "m.gguf")
    parts = read_parts(read_gguf(path))
    os.truncate(path, parts[0].size - 10)
    with pytest.raises(ModelFileError, match="ended while it was read") as caught:
        check_tensors(parts, verdicts, has_finite_numbers)
    assert (caught.value.code, caught.value.where) == ("truncated", f"byte {parts[0].size - 10}")


def test_a_file_that_vanishes_is_unreadable(tmp_path: Path, verdicts: Verdicts) -> None:
    path = write_tiny_model(tmp_path / "m.gguf")
    parts = read_parts(read_gguf(path))
    path.unlink()
    with pytest.raises(ModelFileError) as caught:
        check_tensors(parts, verdicts, has_finite_numbers)
    assert caught.value.code == "unreadable"


def test_loading_checks_once_shows_it_and_can_be_told_not_to(tmp_path: Path) -> None:
    path = write_tiny_model(tmp_path / "m.gguf")
    stages: list[str] = []

    def load(**options: Any) -> None:
        stages.clear()
        options |= {"device": "cpu", "n_ctx": 64, "progress": lambda stage, *_: stages.append(stage)}
        LLM.load(path, **options).close()

    load()
    assert {"check", "load"} == set(stages)
    load()
    assert set(stages) == {"load"}
    spoil(path, "output.weight", 0, struct.pack("<f", float("nan")))
    with pytest.raises(ModelFileError, match=r"output\.weight") as caught:
        load()
    assert caught.value.code == "tensor_data"
    load(preflight=False)
    assert set(stages) == {"load"}


def test_what_is_remembered_lies_in_the_user_s_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert state_folder() == Path("/home/me/.cache/gguf_engine/verdicts")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert state_folder() == Path("/cache/gguf_engine/verdicts")
