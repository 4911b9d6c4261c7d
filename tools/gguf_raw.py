"""
A GGUF file as parts that can be put together wrongly: for tests that need a broken model.

Unlike a writer this refuses nothing: counts, lengths, types and offsets are whatever they are set to.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import gguf

U8, I8, U16, I16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
_CODES |= {U64: "Q", I64: "q", F64: "d"}
TYPE_NAMES = {
    U8: "u8", I8: "i8", U16: "u16", I16: "i16", U32: "u32", I32: "i32", F32: "f32", BOOL: "bool",
    STRING: "string", ARRAY: "array", U64: "u64", I64: "i64", F64: "f64",
}  # fmt: skip


def encode(kind: int, value: Any) -> bytes:
    """
    Return the bytes of a value of this type, wrapped to its width.

    Args:
        kind: One of the type ids above; for an array `value` is (element type, elements).
        value: A number, text or bytes; NaN and infinities are fine for floats.
    """
    if kind == STRING:
        data = value if isinstance(value, bytes) else str(value).encode("utf-8", "surrogateescape")
        return struct.pack("<Q", len(data)) + data
    if kind == ARRAY:
        inner, elements = value
        return struct.pack("<IQ", inner, len(elements)) + b"".join(encode(inner, one) for one in elements)
    code = _CODES[kind]
    if code in "fd":
        packed: bytes = struct.pack("<" + code, value)
        return packed
    size = struct.calcsize("<" + code)
    return int(int(value) % 2 ** (8 * size)).to_bytes(size, "little")


@dataclass(slots=True)
class RawKey:
    """A key: its name, value type and the bytes of its value."""

    name: bytes
    kind: int
    value: bytes


@dataclass(slots=True)
class RawTensor:
    """A row of the tensor table; dims in ggml's order, the row length first."""

    name: bytes
    dims: list[int]
    kind: int
    offset: int


@dataclass(slots=True)
class RawModel:
    """
    A model file in parts.

    Attributes:
        n_tensors, n_keys: The counts written; None is the truth.
        alignment: Where the data begins; changing the key does not change it.
        data: Everything behind the header.
    """

    keys: list[RawKey]
    tensors: list[RawTensor]
    data: bytes
    alignment: int = 32
    magic: bytes = b"GGUF"
    version: int = 3
    n_tensors: int | None = None
    n_keys: int | None = None
    extra: bytes = field(default=b"")  # between the tensor table and the data

    def copy(self) -> RawModel:
        """Return one that shares the data, which is replaced and never changed in place."""
        return RawModel(
            [RawKey(key.name, key.kind, key.value) for key in self.keys],
            [RawTensor(row.name, list(row.dims), row.kind, row.offset) for row in self.tensors],
            self.data, self.alignment, self.magic, self.version, self.n_tensors, self.n_keys, self.extra,
        )  # fmt: skip

    def key(self, name: str) -> RawKey:
        """
        Return a key.

        Raises:
            KeyError: No such key.
        """
        for key in self.keys:
            if key.name == name.encode():
                return key
        raise KeyError(name)

    def has(self, name: str) -> bool:
        """Return whether there is such a key."""
        return any(key.name == name.encode() for key in self.keys)

    def put(self, name: str, kind: int, value: Any) -> None:
        """Set a key, in its place or at the end."""
        if self.has(name):
            key = self.key(name)
            key.kind, key.value = kind, encode(kind, value)
        else:
            self.keys.append(RawKey(name.encode(), kind, encode(kind, value)))

    def drop(self, name: str) -> None:
        """Remove a key."""
        self.keys.remove(self.key(name))

    def tensor(self, name: str) -> RawTensor:
        """
        Return a row of the table.

        Raises:
            KeyError: No such tensor.
        """
        for tensor in self.tensors:
            if tensor.name == name.encode():
                return tensor
        raise KeyError(name)

    def strings(self, name: str) -> list[bytes]:
        """Return the elements of an array of strings."""
        value = self.key(name).value
        at, elements = 12, []
        while at < len(value):
            (length,) = struct.unpack_from("<Q", value, at)
            elements.append(value[at + 8 : at + 8 + length])
            at += 8 + length
        return elements

    def numbers(self, name: str) -> list[Any]:
        """Return the elements of an array of numbers."""
        value = self.key(name).value
        inner, count = struct.unpack_from("<IQ", value)
        return list(struct.unpack_from(f"<{count}{_CODES[inner]}", value, 12))

    def integer(self, name: str) -> int:
        """Return the value of an integer key."""
        key = self.key(name)
        return int(struct.unpack("<" + _CODES[key.kind], key.value)[0])

    def blobs(self) -> list[bytes]:
        """Return the bytes of each tensor, cut where the file ends."""
        sizes = (n_bytes(tensor.dims, tensor.kind) for tensor in self.tensors)
        rows = zip(self.tensors, sizes, strict=True)
        return [self.data[row.offset : row.offset + size] for row, size in rows]

    def lay_out(self, blobs: Sequence[bytes]) -> None:
        """Make these bytes the tensors' data, one behind the other, each cut or padded to its size."""
        data = bytearray()
        for tensor, blob in zip(self.tensors, blobs, strict=True):
            size = n_bytes(tensor.dims, tensor.kind)
            tensor.offset = len(data)
            data += blob[:size] + bytes(max(0, size - len(blob)))
            data += bytes(-len(data) % self.alignment)
        self.data = bytes(data)

    @property
    def arch(self) -> str:
        """Return the architecture's name."""
        return self.key("general.architecture").value[8:].decode()

    def header(self) -> bytes:
        """Return everything before the data, padding included."""
        out = bytearray(self.magic + struct.pack("<I", self.version % 2**32))
        out += encode(U64, len(self.tensors) if self.n_tensors is None else self.n_tensors)
        out += encode(U64, len(self.keys) if self.n_keys is None else self.n_keys)
        for key in self.keys:
            out += encode(STRING, key.name) + encode(U32, key.kind) + key.value
        for tensor in self.tensors:
            out += encode(STRING, tensor.name) + encode(U32, len(tensor.dims))
            out += b"".join(encode(U64, dim) for dim in tensor.dims)
            out += encode(U32, tensor.kind) + encode(U64, tensor.offset)
        out += self.extra
        return bytes(out + bytes(-len(out) % self.alignment))

    def to_bytes(self) -> bytes:
        """Return the file."""
        return self.header() + self.data


class _Walker:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 8

    def number(self, kind: int) -> int:
        code = "<" + _CODES[kind]
        (value,) = struct.unpack_from(code, self.data, self.at)
        self.at += struct.calcsize(code)
        return int(value)

    def text(self) -> bytes:
        length = self.number(U64)
        self.at += length
        return self.data[self.at - length : self.at]

    def value(self, kind: int) -> bytes:
        start = self.at
        if kind == STRING:
            self.text()
        elif kind == ARRAY:
            inner, count = self.number(U32), self.number(U64)
            if inner == STRING:
                for _ in range(count):
                    self.text()
            else:
                self.at += count * struct.calcsize("<" + _CODES[inner])
        else:
            self.at += struct.calcsize("<" + _CODES[kind])
        return self.data[start : self.at]


def read_raw(path: Path) -> RawModel:
    """Return a good file in parts; a bad one raises whatever it raises."""
    data = path.read_bytes()
    walk = _Walker(data)
    n_tensors, n_keys = walk.number(U64), walk.number(U64)
    keys, tensors = [], []
    for _ in range(n_keys):
        name, kind = walk.text(), walk.number(U32)
        keys.append(RawKey(name, kind, walk.value(kind)))
    for _ in range(n_tensors):
        name = walk.text()
        dims = [walk.number(U64) for _ in range(walk.number(U32))]
        tensors.append(RawTensor(name, dims, walk.number(U32), walk.number(U64)))
    raw = RawModel(keys, tensors, b"", version=struct.unpack_from("<I", data, 4)[0])
    if raw.has("general.alignment"):
        raw.alignment = raw.integer("general.alignment")
    raw.data = data[-(-walk.at // raw.alignment) * raw.alignment :]
    return raw


def n_bytes(dims: Sequence[int], kind: int) -> int:
    """Return the size of a tensor, rows of partial blocks rounded up."""
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
    return -(-prod(dims) // int(block)) * int(size)


def texts(elements: Sequence[str | bytes]) -> tuple[int, Sequence[str | bytes]]:
    """Return what `encode` takes for an array of strings."""
    return (STRING, elements)
