"""
A GGUF header → GGUFFile: metadata and tensor table, in pure Python, without llama.cpp.

Every count and length is compared with the bytes that are left before anything is allocated, so a
hostile file costs no more memory than itself. Nothing of the weights is read.

Source: docs/gguf.md of ggml; the placement of tensors is what gguf_init_from_file checks.
"""

from __future__ import annotations

import stat
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from gguf_engine.errors import ModelFileError, ModelNotFoundError

MAX_KEYS = 4096
MAX_TENSORS = 65_536
MAX_ELEMENTS = 2**21  # of all arrays together
MAX_STRING = 2**20
MAX_HEADER = 2**26
MAX_KEY = 256
MAX_TRAILING = 2**26  # behind the last tensor; llama.cpp maps the whole file

# Type id -> name, numbers a block, bytes a block. Source: GGML_QUANT_SIZES of gguf-py.
TENSOR_TYPES = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34), 9: ("Q8_1", 32, 36), 10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292), 16: ("IQ2_XXS", 256, 66), 17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50), 20: ("IQ4_NL", 32, 18), 21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136), 24: ("I8", 1, 1), 25: ("I16", 1, 2), 26: ("I32", 1, 4), 27: ("I64", 1, 8),
    28: ("F64", 1, 8), 29: ("IQ1_M", 256, 56), 30: ("BF16", 1, 2), 34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66), 39: ("MXFP4", 32, 17),
}  # fmt: skip

_NUMBERS = {
    0: ("u8", "B", 1), 1: ("i8", "b", 1), 2: ("u16", "H", 2), 3: ("i16", "h", 2), 4: ("u32", "I", 4),
    5: ("i32", "i", 4), 6: ("f32", "f", 4), 7: ("bool", "B", 1), 10: ("u64", "Q", 8), 11: ("i64", "q", 8),
    12: ("f64", "d", 8),
}  # fmt: skip
_BOOL, _STRING, _ARRAY = 7, 8, 9

_U64 = struct.Struct("<Q")
_CHUNK = 2**22

_NOT_GGUF = (
    (b"version https://git-lfs", "a Git LFS pointer, not the file it stands for", "run `git lfs pull`"),
    (b"<!doctype", "an HTML page", "download the file itself, not the page that shows it"),
    (b"<html", "an HTML page", "download the file itself, not the page that shows it"),
    (b"<?xml", "an XML document", "download the file itself"),
    (
        b"pk\x03\x04",
        "a zip archive or PyTorch checkpoint",
        "convert it with llama.cpp's convert_hf_to_gguf.py",
    ),
    (b"\x1f\x8b", "a gzip archive", "unpack it first"),
    (b"lmgg", "a GGML file from before GGUF", "download the model anew as GGUF"),
    (b"fmgg", "a GGML file from before GGUF", "download the model anew as GGUF"),
    (b"tjgg", "a GGML file from before GGUF", "download the model anew as GGUF"),
    (b"algg", "a GGML LoRA adapter", "name a model, not an adapter"),
)


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """
    One tensor of the table.

    Attributes:
        name: Such as "blk.0.attn_qkv.weight".
        shape: In ggml's order: the row length first.
        type: Such as "Q4_K".
        offset: From `GGUFFile.data_offset`, in bytes.
        n_bytes: Without padding.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    offset: int
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class GGUFFile:
    """
    What the header of a GGUF file says.

    Attributes:
        path: The file.
        version: Of the format: 2 or 3.
        alignment: Of tensors, in bytes.
        metadata: Key -> int, float, bool, str, or a tuple of one of them.
        value_types: Key -> the exact type, such as "u32", "string" or "array[f32]".
        tensors: In the order of the file.
        data_offset: Where the tensors begin, in bytes.
        size: Of the whole file, in bytes.
    """

    path: Path
    version: int
    alignment: int
    metadata: dict[str, Any]
    value_types: dict[str, str]
    tensors: tuple[TensorInfo, ...]
    data_offset: int
    size: int


def read_gguf(path: str | Path) -> GGUFFile:
    """
    Return the header of a GGUF file, with every tensor inside the file.

    Raises:
        ModelNotFoundError: No such file.
        ModelFileError: Not a readable GGUF; names the key, tensor or offset, and the value there.
    """
    target = Path(path)
    try:
        status = target.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "a folder" if stat.S_ISDIR(status.st_mode) else "not a regular file"
            raise ModelFileError(str(target), "not_a_file", "", kind, "name one .gguf file")
        with target.open("rb") as file:
            return _Reader(target, file, status.st_size).read()
    except FileNotFoundError:
        raise ModelNotFoundError(str(path), "no such file", "name one that is there") from None
    except OSError as error:
        what = f"cannot be read: {error.strerror or error}"
        raise ModelFileError(str(target), "unreadable", "", what, "check its permissions") from error


class _Reader:
    """Walks the header once. `buffer` holds its first bytes and grows; `at` is the next one to read."""

    def __init__(self, path: Path, file: BinaryIO, size: int) -> None:
        self.path, self.file, self.size = path, file, size
        self.buffer = b""
        self.at = 0
        self.where = ""
        self.n_elements = 0

    def fail(self, code: str, what: str, help_: str = "", *, where: str | None = None) -> NoReturn:
        raise ModelFileError(str(self.path), code, self.where if where is None else where, what, help_)

    def read(self) -> GGUFFile:
        version, n_tensors, n_keys = self.preamble()
        metadata: dict[str, Any] = {}
        value_types: dict[str, str] = {}
        for index in range(n_keys):
            self.where = f"key {index}"
            key = self.text("key", limit=MAX_KEY)
            self.where = key
            if key in metadata:
                self.fail("duplicate_key", "appears twice")
            value_types[key], metadata[key] = self.value()
        alignment = self.alignment(metadata, value_types)
        rows = [self.tensor(index) for index in range(n_tensors)]
        data_offset = -(-self.at // alignment) * alignment
        tensors = self.place(rows, alignment, data_offset)
        return GGUFFile(
            path=self.path,
            version=version,
            alignment=alignment,
            metadata=metadata,
            value_types=value_types,
            tensors=tensors,
            data_offset=data_offset,
            size=self.size,
        )

    def preamble(self) -> tuple[int, int, int]:
        self.grow(min(self.size, 32))
        if self.buffer[:4] != b"GGUF":
            self.fail_magic()
        self.at = 4
        self.where = "byte 4"
        version = self.unpack("<I", 4)
        if version & 0xFFFF == 0 and version:
            self.fail(
                "byte_order", "the file is big-endian", "convert the model on a little-endian machine"
            )
        if version not in {2, 3}:
            self.fail(
                "version", f"GGUF version {version}; versions 2 and 3 are read", "download the model anew"
            )
        self.where = "byte 8"
        n_tensors = self.unpack("<Q", 8)
        self.where = "byte 16"
        n_keys = self.unpack("<Q", 8)
        if n_tensors > MAX_TENSORS:
            self.fail(
                "tensor_count", f"{n_tensors} tensors; at most {MAX_TENSORS} are read", where="byte 8"
            )
        if n_keys > MAX_KEYS:
            self.fail("key_count", f"{n_keys} keys; at most {MAX_KEYS} are read", where="byte 16")
        return version, n_tensors, n_keys

    def fail_magic(self) -> NoReturn:
        self.where = "byte 0"
        start = self.buffer[:32].lstrip().lower()
        if not self.size:
            self.fail("empty", "the file is empty", "download it again")
        if self.buffer[:4] == b"FUGG":
            self.fail(
                "byte_order", "the file is big-endian", "convert the model on a little-endian machine"
            )
        for prefix, what, help_ in _NOT_GGUF:
            if start.startswith(prefix):
                self.fail("magic", f"this is {what}", help_)
        if self.buffer[8:10] == b'{"':
            self.fail(
                "magic", "this is a safetensors file", "convert it with llama.cpp's convert_hf_to_gguf.py"
            )
        self.fail("magic", f"starts with {self.buffer[:4]!r}; a GGUF file starts with b'GGUF'")

    def grow(self, end: int) -> None:
        """Make the buffer reach `end`, or say that the file is too short."""
        if end > self.size:
            have = self.size - self.at
            self.fail(
                "truncated",
                f"needs {end - self.at} bytes at byte {self.at}, the file has {have} left",
                "download it again",
            )
        if end > MAX_HEADER:
            self.fail("header_size", f"the header is longer than {MAX_HEADER} bytes")
        wanted = min(max(end, 2 * len(self.buffer), _CHUNK), self.size)
        self.buffer += self.file.read(wanted - len(self.buffer))
        if len(self.buffer) < end:
            self.fail("truncated", f"the file ended at byte {len(self.buffer)} while it was read")

    def unpack(self, format_: str, n_bytes: int) -> Any:
        end = self.at + n_bytes
        if end > len(self.buffer):
            self.grow(end)
        (value,) = struct.unpack_from(format_, self.buffer, self.at)
        self.at = end
        return value

    def text(self, what: str, limit: int = MAX_STRING) -> str:
        (text,) = self.strings(1, limit)
        if what == "value":
            return text
        if not text or not text.isprintable():
            self.fail(f"{what}_name", f"the {what} name {text[:80]!r} is not printable text")
        return text

    def strings(self, count: int, limit: int = MAX_STRING) -> tuple[str, ...]:
        """Read `count` strings. The loop is what takes the time of a header: half a million rounds."""
        if 8 * count > self.size - self.at:
            self.fail("truncated", f"{count} strings cannot fit into the {self.size - self.at} bytes left")
        unpack, buffer, at, size = _U64.unpack_from, self.buffer, self.at, len(self.buffer)
        texts: list[str] = []
        append = texts.append
        for _ in range(count):
            start = at + 8
            if start > size:
                self.at = at
                self.grow(start)
                buffer, size = self.buffer, len(self.buffer)
            end = start + unpack(buffer, at)[0]
            if end > size or end - start > limit:
                self.at = start
                if end - start > limit:
                    self.fail(
                        "string_length", f"a string of {end - start} bytes at byte {at}; at most {limit}"
                    )
                self.grow(end)
                buffer, size = self.buffer, len(self.buffer)
            append(buffer[start:end].decode("utf-8", "surrogateescape"))
            at = end
        self.at = at
        return tuple(texts)

    def value(self) -> tuple[str, Any]:
        kind = self.unpack("<I", 4)
        if kind == _STRING:
            return "string", self.text("value")
        if kind == _ARRAY:
            return self.array()
        if kind not in _NUMBERS:
            self.fail("value_type", f"value type {kind}; known are 0..12")
        name, code, n_bytes = _NUMBERS[kind]
        value = self.unpack("<" + code, n_bytes)
        if kind == _BOOL:
            if value > 1:
                self.fail("bool", f"a boolean holds {value}; allowed: 0 or 1")
            value = bool(value)
        return name, value

    def array(self) -> tuple[str, Any]:
        kind = self.unpack("<I", 4)
        count = self.unpack("<Q", 8)
        if kind == _ARRAY:
            self.fail("nested_array", "an array of arrays; no model needs one and llama.cpp reads none")
        self.n_elements += count
        if self.n_elements > MAX_ELEMENTS:
            what = f"an array of {count} elements; at most {MAX_ELEMENTS} in all arrays are read"
            self.fail("array_length", what)
        if kind == _STRING:
            return "array[string]", self.strings(count)
        if kind not in _NUMBERS:
            self.fail("value_type", f"array of value type {kind}; known are 0..12")
        name, code, n_bytes = _NUMBERS[kind]
        end = self.at + count * n_bytes
        if end > len(self.buffer):
            self.grow(end)
        values: tuple[Any, ...] = struct.unpack_from(f"<{count}{code}", self.buffer, self.at)
        self.at = end
        if kind == _BOOL:
            if max(values, default=0) > 1:
                self.fail("bool", f"a boolean holds {max(values)}; allowed: 0 or 1")
            values = tuple(map(bool, values))
        return f"array[{name}]", values

    def alignment(self, metadata: dict[str, Any], value_types: dict[str, str]) -> int:
        value = metadata.get("general.alignment", 32)
        self.where = "general.alignment"
        if value_types.get("general.alignment", "u32") != "u32":
            self.fail("alignment", f"is a {value_types['general.alignment']}; allowed: a u32")
        if not 32 <= value <= 4096 or value & (value - 1):
            self.fail("alignment", f"is {value}; allowed: a power of two in 32..4096")
        return int(value)

    def tensor(self, index: int) -> TensorInfo:
        self.where = f"tensor {index}"
        name = self.text("tensor", limit=63)
        self.where = name
        n_dims = self.unpack("<I", 4)
        if not 1 <= n_dims <= 4:
            self.fail("tensor_shape", f"has {n_dims} dimensions; allowed: 1..4")
        shape = tuple(self.unpack("<Q", 8) for _ in range(n_dims))
        kind = self.unpack("<I", 4)
        offset = self.unpack("<Q", 8)
        if not all(1 <= dim < 2**48 for dim in shape):
            self.fail("tensor_shape", f"has the shape {list(shape)}; every dimension is at least 1")
        if kind not in TENSOR_TYPES:
            self.fail(
                "tensor_type", f"has type {kind}, which this version does not know", "upgrade gguf-engine"
            )
        type_name, block, block_bytes = TENSOR_TYPES[kind]
        if shape[0] % block:
            self.fail(
                "tensor_shape", f"has rows of {shape[0]} numbers; {type_name} needs a multiple of {block}"
            )
        return TensorInfo(name, shape, type_name, offset, prod(shape) // block * block_bytes)

    def place(self, rows: list[TensorInfo], alignment: int, data_offset: int) -> tuple[TensorInfo, ...]:
        """Check that the tensors stand one behind the other and end inside the file."""
        names: set[str] = set()
        expected = 0
        for row in rows:
            self.where = row.name
            if row.name in names:
                self.fail("duplicate_tensor", "appears twice")
            names.add(row.name)
            if row.offset != expected:
                self.fail(
                    "tensor_offset", f"begins at offset {row.offset}; the one before it ends at {expected}"
                )
            end = data_offset + row.offset + row.n_bytes
            if end > self.size:
                self.fail(
                    "truncated",
                    f"ends at byte {end}, the file at byte {self.size}",
                    "the download was cut short: fetch it again",
                )
            expected += -(-row.n_bytes // alignment) * alignment
        n_behind = self.size - data_offset - expected
        if n_behind > MAX_TRAILING:
            what = f"{n_behind} bytes follow the last tensor; at most {MAX_TRAILING} may"
            self.fail("trailing_data", what, "download it again", where=f"byte {data_offset + expected}")
        return tuple(rows)
