"""Split models: every part there and what it says it is, or a refusal that names it."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from make_gguf import write_tiny_model

from gguf_engine.errors import ModelFileError
from gguf_engine.loader.gguf import read_gguf
from gguf_engine.loader.parts import read_parts
from gguf_engine.loader.preflight import preflight

VALUE = gguf.GGUFValueType


@pytest.fixture
def first(tmp_path: Path) -> Path:
    """Return the first part of a model in three."""
    path: Path = write_tiny_model(tmp_path / "m.gguf", n_parts=3)
    return path


def part(first: Path, number: int) -> Path:
    return first.with_name(first.name.replace("-00001-", f"-{number:05}-"))


def rewrite(path: Path, **values: Any) -> None:
    """Set keys of the split in place: `no=(7, VALUE.UINT16)`; None drops one."""
    reader = gguf.GGUFReader(path)
    writer = gguf.GGUFWriter(path.with_suffix(".new"), "")
    writer.kv_data[0].clear()
    for key, field in reader.fields.items():
        if key.startswith("GGUF."):
            continue
        kind = field.types[0]
        sub = field.types[-1] if kind == VALUE.ARRAY else None
        writer.add_key_value(key, field.contents(), kind, sub_type=sub)
    for name, value in values.items():
        key = name.replace("__", ".")
        writer.kv_data[0].pop(key, None)
        if value is not None:
            writer.add_key_value(key, *value)
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data.copy(), raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    path.with_suffix(".new").replace(path)


def refusal(path: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        preflight(path)
    return caught.value


def test_a_whole_split_model_passes(first: Path) -> None:
    preflight(first)
    parts = read_parts(read_gguf(first))
    assert [one.path for one in parts] == [first, part(first, 2), part(first, 3)]


def test_a_model_in_one_file_is_its_only_part(tiny_model: Path) -> None:
    header = read_gguf(tiny_model)
    assert read_parts(header) == (header,)


def test_a_missing_part_is_named(first: Path) -> None:
    part(first, 2).unlink()
    error = refusal(first)
    assert (error.code, error.where) == ("split", "split.count")
    assert f"{part(first, 2).name} is missing; download every part" in str(error)


def test_a_part_that_is_no_gguf_is_refused_like_a_whole_file(first: Path) -> None:
    part(first, 3).write_bytes(b"<html>")
    error = refusal(first)
    assert (error.code, error.path) == ("magic", str(part(first, 3)))


def test_parts_that_were_mixed_up_are_refused(first: Path) -> None:
    shutil.copy(part(first, 3), part(first, 2))
    error = refusal(first)
    assert (error.code, error.where, error.path) == ("split", "split.no", str(part(first, 2)))
    assert "says part 2 of 3; this is part 1 (from 0) of 3" in str(error)


@pytest.mark.parametrize("name", ["other.gguf", "m-00002-of-00003.gguf", "m-00001-of-00004.gguf"])
def test_a_first_part_of_another_name_is_refused(first: Path, name: str) -> None:
    renamed = first.rename(first.with_name(name))
    error = refusal(renamed)
    assert (error.code, error.where) == ("split", "split.count")
    assert "is not named like part 1 of 3" in str(error)


@pytest.mark.parametrize(
    ("number", "edit", "where"),
    [
        (1, {"split__count": (3, VALUE.UINT32)}, "split.count"),
        (1, {"split__no": (1, VALUE.UINT16)}, "split.no"),
        (1, {"split__no": None}, "split.no"),
        (1, {"split__tensors__count": (5, VALUE.INT32)}, "split.tensors.count"),
        (1, {"split__tensors__count": (5, VALUE.UINT32)}, "split.tensors.count"),
        (1, {"split__tensors__count": None}, "split.tensors.count"),
        (2, {"split__no": (1, VALUE.UINT32)}, "split.no"),  # llama.cpp aborts on the type
        (2, {"split__count": None}, "split.no"),
        (2, {"general__architecture": ("llama", VALUE.STRING)}, "general.architecture"),
    ],
)
def test_a_part_with_a_wrong_key_is_refused_by_it(
    first: Path, number: int, edit: dict[str, Any], where: str
) -> None:
    rewrite(part(first, number), **edit)
    error = refusal(first)
    assert (error.code, error.where, error.path) == ("split", where, str(part(first, number)))


def test_a_tensor_in_two_parts_is_refused(
    first: Path, monkeypatch: pytest.MonkeyPatch, make_tiny_model: Callable[..., Path]
) -> None:
    header = read_gguf(first)
    twice = replace(header, tensors=header.tensors + read_gguf(part(first, 2)).tensors[:1])
    with pytest.raises(ModelFileError, match="is in an earlier part too") as caught:
        read_parts(twice)
    assert (caught.value.code, caught.value.path) == ("duplicate_tensor", str(part(first, 2)))
