"""Mutations of the format itself: magic, counts, lengths, types and the bytes of the header."""

from __future__ import annotations

import random
import struct
from typing import Any

from gguf_mutations import Base, Variants, mutation
from gguf_raw import ARRAY, BOOL, F32, I32, STRING, TYPE_NAMES, U8, U32, U64, RawKey, RawModel, encode

COUNTS = (0, 1, 2**16, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
UNKNOWN_TYPES = (13, 14, 127, 255, 2**16, 2**31, 2**32 - 1)


@mutation(once=True)
def not_a_gguf(base: Base) -> Variants:
    """The file is something else: a page, a pointer, an archive, another model format, nothing."""
    whole = base.raw.to_bytes()
    yield "empty", b""
    yield "one byte", b"G"
    yield "magic only", b"GGUF"
    yield "html", b"<!DOCTYPE html>\n<html><body>Sign in to continue</body></html>\n" * 20
    yield "html, no doctype", b"\n  <html><head><title>404</title></head></html>"
    yield "lfs pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"a" * 64 + b"\n"
    yield "xml error", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>'
    yield "json error", b'{"error": "Repository not found"}'
    yield "zip", b"PK\x03\x04" + whole[4:4096]
    yield "gzip", b"\x1f\x8b\x08\x00" + whole[4:4096]
    yield "safetensors", struct.pack("<Q", 1000) + b'{"a":{"dtype":"F32"}}' + bytes(1000)
    for old in (b"lmgg", b"fmgg", b"tjgg", b"algg"):
        yield old.decode(), old + whole[4:]
    yield "lower case", b"gguf" + whole[4:]
    yield "big-endian magic", b"FUGG" + whole[4:]
    yield "text mode", whole.replace(b"\n", b"\r\n")
    yield "byte order mark", b"\xef\xbb\xbf" + whole
    yield "zeros", bytes(len(whole))
    yield "ones", b"\xff" * len(whole)
    yield "noise", b"GGUF\x03\0\0\0" + random.Random(0).randbytes(8192)
    yield "noise without magic", random.Random(1).randbytes(8192)


@mutation()
def version(base: Base) -> Variants:
    """The version is one that nobody wrote, or big-endian."""
    for number in (0, 1, 4, 5, 255, 0x0300_0000, 0x0200_0000, 0x0003_0000, 2**31, 2**32 - 1):
        raw = base.raw.copy()
        raw.version = number
        yield str(number), raw


@mutation()
def key_count(base: Base) -> Variants:
    """The header promises more or fewer keys than it has."""
    n_keys = len(base.raw.keys)
    for count in (*COUNTS, n_keys - 1, n_keys + 1, 4097):
        raw = base.raw.copy()
        raw.n_keys = count
        yield str(count), raw


@mutation()
def tensor_count(base: Base) -> Variants:
    """The header promises more or fewer tensors than it has."""
    n_tensors = len(base.raw.tensors)
    for count in (*COUNTS, n_tensors - 1, n_tensors + 1, 65_537):
        raw = base.raw.copy()
        raw.n_tensors = count
        yield str(count), raw


def _with_length(data: bytes, at: int, length: int) -> bytes:
    return data[:at] + struct.pack("<Q", length % 2**64) + data[at + 8 :]


@mutation()
def key_length(base: Base) -> Variants:
    """The length of a key's name is not the name's."""
    whole = base.raw.to_bytes()
    names = (base.raw.keys[0].name, base.raw.keys[-1].name)
    for name in names:
        at = whole.index(struct.pack("<Q", len(name)) + name)
        for length in (*COUNTS, len(name) - 1, len(name) + 1, 65_536, len(whole) - at):
            yield f"{name.decode()} {length}", _with_length(whole, at, length)


@mutation()
def tensor_name_length(base: Base) -> Variants:
    """The length of a tensor's name is not the name's."""
    whole = base.raw.to_bytes()
    name = base.raw.tensors[-1].name
    at = whole.index(struct.pack("<Q", len(name)) + name)
    for length in (*COUNTS, len(name) - 1, len(name) + 1, 64, len(whole) - at):
        yield str(length), _with_length(whole, at, length)


@mutation()
def string_length(base: Base) -> Variants:
    """The length of a text value is not the text's."""
    for name in ("general.architecture", "general.name", "tokenizer.chat_template"):
        true = len(base.raw.key(name).value) - 8
        for length in (*COUNTS, true - 1, true + 1, 2**20 + 1, len(base.raw.data)):
            raw = base.raw.copy()
            key = raw.key(name)
            key.value = _with_length(key.value, 0, length)
            yield f"{name} {length}", raw


def _arrays(raw: RawModel) -> list[str]:
    return [key.name.decode() for key in raw.keys if key.kind == ARRAY]


@mutation()
def array_length(base: Base) -> Variants:
    """An array promises more or fewer elements than it has."""
    for name in _arrays(base.raw):
        (true,) = struct.unpack_from("<Q", base.raw.key(name).value, 4)
        for length in (*COUNTS, true - 1, true + 1, 2**21, 2**21 + 1):
            raw = base.raw.copy()
            key = raw.key(name)
            key.value = _with_length(key.value, 4, length)
            yield f"{name} {length}", raw


@mutation()
def array_element_type(base: Base) -> Variants:
    """An array says that its elements have another type, or one that does not exist."""
    for name in _arrays(base.raw):
        for kind in (*range(13), *UNKNOWN_TYPES):
            raw = base.raw.copy()
            key = raw.key(name)
            key.value = struct.pack("<I", kind) + key.value[4:]
            yield f"{name} {kind}", raw


@mutation()
def value_type_swapped(base: Base) -> Variants:
    """A key says that its value has another type than its bytes, so that all after it shifts."""
    for name in ("general.architecture", f"{base.raw.arch}.block_count", "tokenizer.ggml.tokens"):
        for kind in (*range(13), *UNKNOWN_TYPES):
            raw = base.raw.copy()
            raw.key(name).kind = kind
            yield f"{name} {kind}", raw


@mutation(once=True)
def nested_array(base: Base) -> Variants:
    """Arrays of arrays, to any depth."""
    for depth in (1, 2, 100, 10_000):
        raw = base.raw.copy()
        value = struct.pack("<IQ", ARRAY, 1) * depth + struct.pack("<IQ", U8, 0)
        raw.keys.append(RawKey(b"general.nested", ARRAY, value))
        yield str(depth), raw


@mutation()
def duplicate_key(base: Base) -> Variants:
    """A key appears twice."""
    for key in base.raw.keys:
        raw = base.raw.copy()
        raw.keys.append(RawKey(key.name, key.kind, key.value))
        yield key.name.decode(), raw
    raw = base.raw.copy()
    raw.keys.append(RawKey(b"general.architecture", STRING, encode(STRING, "gpt2")))
    yield "another architecture", raw


@mutation(once=True)
def key_name(base: Base) -> Variants:
    """A key has a name that is no name."""
    names = (
        b"",
        b"\0",
        b"a\0b",
        b"\xff\xfe",
        b"a" * 65_536,
        b"\n",
        b"general.architecture\0",
        b"a" * 65_535,
    )
    for name in names:
        raw = base.raw.copy()
        raw.keys.append(RawKey(name, U32, encode(U32, 1)))
        yield repr(name[:24]), raw


@mutation()
def nul_in_text(base: Base) -> Variants:
    """A text value holds NUL bytes or bytes that are not UTF-8."""
    for name in ("general.architecture", "general.name", "tokenizer.ggml.model", "tokenizer.ggml.pre"):
        true = base.raw.key(name).value[8:]
        for text in (b"\0", true + b"\0", true + b"\0x", b"\0" + true, b"\xff", b"\xed\xa0\x80"):
            raw = base.raw.copy()
            raw.put(name, STRING, text)
            yield f"{name} {text!r}", raw


@mutation()
def bool_value(base: Base) -> Variants:
    """A boolean is neither 0 nor 1."""
    for value in (2, 127, 255):
        raw = base.raw.copy()
        raw.put("tokenizer.ggml.add_bos_token", BOOL, value)
        yield str(value), raw


@mutation()
def cut_in_header(base: Base) -> Variants:
    """The file ends in its header."""
    header = base.raw.header()
    for at in (5, 8, 15, 23, 24, 25, 31, 32, 40, 100, 1000, len(header) // 2, len(header) - 1):
        yield str(at), header[:at]


@mutation()
def cut_in_data(base: Base) -> Variants:
    """The file ends in its weights."""
    whole, n_header = base.raw.to_bytes(), len(base.raw.header())
    for at in (n_header, n_header + 1, n_header + 4096, (n_header + len(whole)) // 2, len(whole) - 64):
        yield str(at), whole[:at]


@mutation(harmless=True)
def trailing_bytes(base: Base) -> Variants:
    """More bytes than the tensors need stand at the end."""
    whole = base.raw.to_bytes()
    for extra in (1, 31, 32, 4096):
        yield str(extra), whole + b"\xaa" * extra


@mutation()
def bytes_before_data(base: Base) -> Variants:
    """Bytes stand between the tensor table and the data, so that all the data is displaced."""
    for extra in (1, 32, 64, 4096):
        raw = base.raw.copy()
        raw.extra = b"\x5a" * extra
        yield str(extra), raw


@mutation()
def bit_flips(base: Base) -> Variants:
    """Bits of the header are flipped."""
    whole, n_header = base.raw.to_bytes(), len(base.raw.header())
    rng = random.Random(base.name)
    # The counts and first keys, anywhere, and the tensor table at the end.
    zones = [(4, 256)] * 16 + [(4, n_header)] * 16 + [(n_header - 1024, n_header)] * 16
    for low, high in zones:
        at, bit = rng.randrange(low, high), rng.randrange(8)
        changed = bytearray(whole)
        changed[at] ^= 1 << bit
        yield f"byte {at} bit {bit}", bytes(changed)


@mutation()
def zeroed_block(base: Base) -> Variants:
    """A stretch of the header reads as zeros or ones, as after a disk fault."""
    whole, n_header = base.raw.to_bytes(), len(base.raw.header())
    rng = random.Random(base.name)
    for length in (4, 8, 16, 64, 512, 4096):
        for fill in (b"\0", b"\xff"):
            at = rng.randrange(8, max(9, n_header - length))
            yield f"{length} of {fill!r} at {at}", whole[:at] + fill * length + whole[at + length :]


@mutation(once=True)
def too_much(base: Base) -> Variants:
    """More keys, tensors, elements or text than any model has, all really there."""
    raw = base.raw.copy()
    raw.keys += [RawKey(b"general.k%d" % index, U32, encode(U32, 1)) for index in range(5000)]
    yield "5,000 keys", raw
    raw = base.raw.copy()
    row = raw.tensors[-1]
    raw.tensors += [type(row)(b"t%d" % index, [1], 0, row.offset) for index in range(70_000)]
    yield "70,000 tensors", raw
    for kind, size in ((U8, 1), (F32, 4), (STRING, 8)):
        raw = base.raw.copy()
        count = 2**21 + 1
        value = struct.pack("<IQ", kind, count) + bytes(size * count)
        raw.keys.append(RawKey(b"general.big", ARRAY, value))
        yield f"2^21 + 1 elements of {TYPE_NAMES[kind]}", raw
    raw = base.raw.copy()
    raw.put("general.description", STRING, "a" * (2**20 + 1))
    yield "a text of over 1 MiB", raw


@mutation()
def alignment(base: Base) -> Variants:
    """The alignment is no power of two, too small, too large, or not the one the data has."""
    for value in (0, 1, 2, 3, 8, 16, 31, 33, 48, 96, 128, 1024, 8192, 2**16, 2**31, 2**32 - 1):
        raw = base.raw.copy()
        raw.put("general.alignment", U32, value)
        yield str(value), raw
    others: tuple[tuple[int, Any], ...] = ((U64, 64), (I32, 64), (F32, 64.0), (STRING, "64"), (BOOL, 1))
    for kind, other in (*others, (ARRAY, (U32, [64]))):
        raw = base.raw.copy()
        raw.put("general.alignment", kind, other)
        yield f"a {TYPE_NAMES[kind]}", raw


@mutation(harmless=True)
def shuffled_keys(base: Base) -> Variants:
    """The keys stand in another order, or among keys that nobody reads."""
    for seed in range(3):
        raw = base.raw.copy()
        random.Random(seed).shuffle(raw.keys)
        yield f"order {seed}", raw
    raw = base.raw.copy()
    raw.put("zz.unknown", STRING, "a note")
    raw.put("zz.numbers", ARRAY, (U64, [1, 2, 3]))
    raw.put("general.tags", ARRAY, (STRING, ["text-generation", ""]))
    raw.put("general.description", STRING, "")
    yield "unknown keys", raw
