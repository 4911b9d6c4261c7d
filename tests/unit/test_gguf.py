"""The header reader against files that another program wrote, and against files spoilt by hand."""

import os
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from gguf_engine.errors import ModelFileError, ModelNotFoundError
from gguf_engine.loader.gguf import (
    MAX_ELEMENTS,
    MAX_KEYS,
    MAX_TENSORS,
    MAX_TRAILING,
    TENSOR_TYPES,
    GGUFFile,
    _Reader,
    read_gguf,
)

U32, F32, BOOL, STRING, ARRAY, U64 = 4, 6, 7, 8, 9, 10


def text(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(data)) + data


def entry(key: str, kind: int, payload: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + payload


def array(kind: int, count: int, payload: bytes = b"") -> bytes:
    return struct.pack("<IQ", kind, count) + payload


def tensor(
    name: str, shape: tuple[int, ...] = (4,), kind: int = 0, offset: int = 0, n_dims: int | None = None
) -> bytes:
    dims = struct.pack(f"<{len(shape)}Q", *shape)
    return (
        text(name)
        + struct.pack("<I", len(shape) if n_dims is None else n_dims)
        + dims
        + struct.pack("<IQ", kind, offset)
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., GGUFFile]:
    """Return a function that writes a header and n_data bytes of tensors, and reads the file."""

    def write_and_read(
        keys: Sequence[bytes] = (),
        tensors: Sequence[bytes] = (),
        *,
        n_data: int = 64,
        version: int = 3,
        n_keys: int | None = None,
        n_tensors: int | None = None,
        cut: int | None = None,
    ) -> GGUFFile:
        counts = (len(tensors) if n_tensors is None else n_tensors, len(keys) if n_keys is None else n_keys)
        head = b"GGUF" + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
        path = tmp_path / "m.gguf"
        path.write_bytes((head + bytes(-len(head) % 32 + n_data))[:cut])
        return read_gguf(path)

    return write_and_read


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        call(*args, **kwargs)
    return caught.value


def test_the_header_is_what_the_gguf_package_reads(make_tiny_model: Callable[..., Path]) -> None:
    path = make_tiny_model(arch="llama", vocab="bpe", type="Q8_0")
    ours, theirs = read_gguf(path), gguf.GGUFReader(path)
    assert {key: field.contents() for key, field in theirs.fields.items() if key[:5] != "GGUF."} == {
        key: list(value) if isinstance(value, tuple) else value for key, value in ours.metadata.items()
    }
    assert [
        (t.name, tuple(map(int, t.shape)), t.tensor_type.name, int(t.data_offset), int(t.n_bytes))
        for t in theirs.tensors
    ] == [(t.name, t.shape, t.type, ours.data_offset + t.offset, t.n_bytes) for t in ours.tensors]


def test_type_names_and_block_sizes_are_those_of_the_gguf_package() -> None:
    for number, (name, block, n_bytes) in TENSOR_TYPES.items():
        if name == "Q8_1":
            continue  # the package still has ggml's old layout; such weights are refused anyway
        kind = gguf.GGMLQuantizationType(number)
        assert (kind.name, gguf.GGML_QUANT_SIZES[kind]) == (name, (block, n_bytes))


def test_a_small_file_is_read_to_the_value(write: Callable[..., GGUFFile]) -> None:
    keys = [
        entry("a.b", U32, struct.pack("<I", 7)),
        entry("c", ARRAY, array(F32, 2, struct.pack("<2f", 1, -2))),
    ]
    header = write(keys, [tensor("w", (32, 2), 8)], n_data=68)
    assert header.metadata == {"a.b": 7, "c": (1.0, -2.0)}
    assert header.value_types == {"a.b": "u32", "c": "array[f32]"}
    assert (header.version, header.alignment, header.data_offset % 32) == (3, 32, 0)
    (row,) = header.tensors
    assert (row.name, row.shape, row.type, row.offset, row.n_bytes) == ("w", (32, 2), "Q8_0", 0, 68)


def test_a_header_longer_than_one_read_is_put_together(tmp_path: Path) -> None:
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    words = [f"{index:08}" * 8 for index in range(100_000)]  # 7.2 MB
    writer.add_token_list(words)
    writer.add_array("after", list(range(5)))
    writer.add_tensor("w", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    header = read_gguf(tmp_path / "m.gguf")
    assert header.metadata["tokenizer.ggml.tokens"] == tuple(words)
    assert header.metadata["after"] == (0, 1, 2, 3, 4)


@pytest.mark.parametrize(
    ("start", "says"),
    [
        (b"", "the file is empty"),
        (b"<!DOCTYPE html><html>", "an HTML page"),
        (b"\n <html><head>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00", "a Git LFS pointer"),
        (b"PK\x03\x04" + bytes(30), "a zip archive"),
        (b"\x10\0\0\0\0\0\0\0{\"__metadata__\"", "a safetensors file"),
        (b"tjgg" + bytes(30), "a GGML file from before GGUF"),
        (b"FUGG" + bytes(30), "big-endian"),
        (b"GGUF\0\0\0\x03" + bytes(16), "big-endian"),
        (b"what is this", "starts with b'what'"),
        (b"GG", "starts with b'GG'"),
    ],
)  # fmt: skip
def test_what_is_no_gguf_is_called_what_it_is(tmp_path: Path, start: bytes, says: str) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(start)
    error = refusal(read_gguf, path)
    assert says in str(error)
    assert error.where in ("byte 0", "byte 4")


def test_a_missing_file_a_folder_and_a_pipe_are_not_opened(tmp_path: Path) -> None:
    with pytest.raises(ModelNotFoundError, match="no such file"):
        read_gguf(tmp_path / "none.gguf")
    assert "a folder" in str(refusal(read_gguf, tmp_path))
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert refusal(read_gguf, tmp_path / "loop").code == "unreadable"
    os.mkfifo(tmp_path / "pipe")
    assert refusal(read_gguf, tmp_path / "pipe").code == "not_a_file"


@pytest.mark.parametrize("version", [0, 1, 4])
def test_other_versions_are_refused(write: Callable[..., GGUFFile], version: int) -> None:
    assert refusal(write, version=version).code == "version"


@pytest.mark.parametrize(
    ("options", "code", "where"),
    [
        ({"n_tensors": MAX_TENSORS + 1}, "tensor_count", "byte 8"),
        ({"n_keys": MAX_KEYS + 1}, "key_count", "byte 16"),
        ({"n_keys": 2**63}, "key_count", "byte 16"),
        ({"n_keys": 5}, "key_name", "key 0"),
        ({"n_keys": 5, "cut": 24}, "truncated", "key 0"),
        ({"n_tensors": 3}, "tensor_name", "tensor 0"),
        ({"n_tensors": 3, "cut": 24}, "truncated", "tensor 0"),
        ({"cut": 10}, "truncated", "byte 8"),
        ({"cut": 20}, "truncated", "byte 16"),
    ],
)
def test_counts_are_compared_with_the_bytes_there_are(
    write: Callable[..., GGUFFile], options: dict[str, Any], code: str, where: str
) -> None:
    error = refusal(write, **options)
    assert (error.code, error.where) == (code, where)


@pytest.mark.parametrize(
    ("keys", "code"),
    [
        ([entry("k", STRING, struct.pack("<Q", 2**62))], "string_length"),
        ([entry("k", STRING, struct.pack("<Q", 1000))], "truncated"),
        ([entry("k", ARRAY, array(STRING, 2**20))], "truncated"),
        ([entry("k", ARRAY, array(F32, 2**20))], "truncated"),
        ([entry("k", ARRAY, array(F32, MAX_ELEMENTS + 1))], "array_length"),
        ([entry("k", ARRAY, array(ARRAY, 1, array(F32, 0)))], "nested_array"),
        ([entry("k", ARRAY, array(99, 1))], "value_type"),
        ([entry("k", 13, b"")], "value_type"),
        ([entry("k", BOOL, b"\2")], "bool"),
        ([entry("k", ARRAY, array(BOOL, 3, b"\0\1\2"))], "bool"),
        ([entry("k", BOOL, b"\1"), entry("k", BOOL, b"\1")], "duplicate_key"),
    ],
)
def test_a_bad_value_is_refused_and_its_key_named(
    write: Callable[..., GGUFFile], keys: list[bytes], code: str
) -> None:
    error = refusal(write, keys)
    assert (error.code, error.where) == (code, "k")


def test_booleans_are_read_as_such(write: Callable[..., GGUFFile]) -> None:
    keys = [entry("b", BOOL, b"\1"), entry("c", ARRAY, array(BOOL, 3, b"\0\1\0"))]
    keys.append(entry("d", ARRAY, array(BOOL, 0)))
    assert write(keys).metadata == {"b": True, "c": (False, True, False), "d": ()}


def test_the_elements_of_all_arrays_are_counted(
    write: Callable[..., GGUFFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gguf_engine.loader.gguf.MAX_ELEMENTS", 8)
    both = [entry(key, ARRAY, array(BOOL, 5, bytes(5))) for key in ("j", "k")]
    error = refusal(write, both)
    assert (error.code, error.where) == ("array_length", "k")


def test_a_header_that_goes_on_for_ever_is_refused(
    write: Callable[..., GGUFFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gguf_engine.loader.gguf.MAX_HEADER", 2**22)
    long = [entry(f"k{index}", STRING, text("x" * 2**20)) for index in range(5)]
    error = refusal(write, long)
    assert (error.code, error.where) == ("header_size", "k3")


def test_strings_that_cannot_fit_are_refused_before_any_is_read(write: Callable[..., GGUFFile]) -> None:
    error = refusal(write, [entry("k", ARRAY, array(STRING, 1000, text("a") * 3))])
    assert (error.code, error.where) == ("truncated", "k")
    assert "1000 strings cannot fit" in str(error)


def test_a_file_that_is_cut_while_it_is_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.gguf").write_bytes(b"GGUF" + bytes(8))
    with (tmp_path / "m.gguf").open("rb") as file:
        error = refusal(_Reader(tmp_path / "m.gguf", file, 100).read)
    assert (error.code, "ended at byte 12 while it was read" in error.what) == ("truncated", True)


@pytest.mark.parametrize("key", [b"", b"a\0b", b"a\nb", b"\xff\xfe"])
def test_a_key_that_is_no_name_is_refused(write: Callable[..., GGUFFile], key: bytes) -> None:
    assert refusal(write, [text(key) + struct.pack("<IB", BOOL, 1)]).code == "key_name"


@pytest.mark.parametrize("value", [0, 8, 33, 48, 8192])
def test_alignment_is_a_power_of_two_from_32_to_4096(write: Callable[..., GGUFFile], value: Any) -> None:
    error = refusal(write, [entry("general.alignment", U32, struct.pack("<I", value))])
    assert (error.code, error.where) == ("alignment", "general.alignment")
    assert f"is {value}; allowed: a power of two in 32..4096" in str(error)


def test_alignment_of_another_type_is_refused(write: Callable[..., GGUFFile]) -> None:
    assert refusal(write, [entry("general.alignment", U64, struct.pack("<Q", 32))]).code == "alignment"


@pytest.mark.parametrize(
    ("tensors", "code", "where"),
    [
        ([tensor("w", n_dims=0)], "tensor_shape", "w"),
        ([tensor("w", n_dims=5)], "tensor_shape", "w"),
        ([tensor("w", (4, 0))], "tensor_shape", "w"),
        ([tensor("w", (2**60, 2**60, 2**60, 2**60))], "tensor_shape", "w"),
        ([tensor("w", (2**40, 2**40))], "truncated", "w"),
        ([tensor("w", (33,), 8)], "tensor_shape", "w"),
        ([tensor("w", kind=4)], "tensor_type", "w"),
        ([tensor("w", kind=200)], "tensor_type", "w"),
        ([tensor("w", offset=32)], "tensor_offset", "w"),
        ([tensor("w"), tensor("v", offset=0)], "tensor_offset", "v"),
        ([tensor("w"), tensor("v", offset=33)], "tensor_offset", "v"),
        ([tensor("w"), tensor("w", offset=32)], "duplicate_tensor", "w"),
        ([tensor("w"), tensor("v", (4, 8), offset=32)], "truncated", "v"),
        ([tensor("n" * 64)], "string_length", "tensor 0"),
        ([tensor("a\0b")], "tensor_name", "tensor 0"),
    ],
)
def test_a_bad_tensor_is_refused_and_named(
    write: Callable[..., GGUFFile], tensors: list[bytes], code: str, where: str
) -> None:
    error = refusal(write, (), tensors)
    assert (error.code, error.where) == (code, where)


def test_a_file_cut_inside_its_weights_says_how_many_bytes_are_missing(
    make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    whole = make_tiny_model().read_bytes()
    path = tmp_path / "cut.gguf"
    path.write_bytes(whole[:-100_000])
    error = refusal(read_gguf, path)
    assert error.code == "truncated"
    assert f"the file at byte {len(whole) - 100_000}" in str(error)


def test_where_a_read_ends_makes_no_difference(
    make_tiny_model: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_tiny_model()
    whole = read_gguf(path)
    for chunk in range(33, 70):
        monkeypatch.setattr("gguf_engine.loader.gguf._CHUNK", chunk)
        assert read_gguf(path) == whole


def test_a_file_that_goes_on_behind_its_tensors_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1, 0) + tensor("w"))
    end = -(-path.stat().st_size // 32) * 32 + 32
    os.truncate(path, end + MAX_TRAILING)
    assert read_gguf(path).size == end + MAX_TRAILING
    os.truncate(path, end + 2**40)  # a hole, which takes no room
    error = refusal(read_gguf, path)
    assert (error.code, error.where) == ("trailing_data", f"byte {end}")


def test_every_cut_of_a_header_is_refused(make_tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    whole = make_tiny_model().read_bytes()
    path = tmp_path / "cut.gguf"
    for length in range(0, 12_000, 97):
        path.write_bytes(whole[:length])
        assert refusal(read_gguf, path).code in {"truncated", "magic", "empty"}
