"""Random edits of a model file: one to four, drawn from a seed, so that a case can be made again."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable, Sequence

from gguf_known import known_keys, known_tensors
from gguf_mutations import Base
from gguf_raw import (
    ARRAY,
    BOOL,
    F32,
    F64,
    I32,
    I64,
    STRING,
    U8,
    U16,
    U32,
    U64,
    RawKey,
    RawModel,
    RawTensor,
    encode,
    n_bytes,
)

Edit = Callable[[RawModel, random.Random], str]
"""Changes a model and says what it changed."""

_NUMBERS = (0, 1, 2, 3, 4, 7, 8, 16, 31, 32, 33, 64, 100, 255, 256, 512, 1000, 2**15, 2**16, 2**20, 2**24,
            2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**48,
            2**61, 2**63 - 1, 2**63, 2**64 - 1, -1, -2)  # fmt: skip
_FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    0.5,
    1e-5,
    1e-45,
    1e4,
    1e6,
    3e38,
    -3e38,
    float("nan"),
    float("inf"),
    float("-inf"),
)
_TEXTS = (b"", b"\0", b"a", b"<s>", b"llama", b"gpt2", b"<0x41>", b"phi-3", b"\xff\xfe", b"a b", b"%s",
          b"x" * 300, "▁the".encode(), b"\n", b"general.alignment", b"yarn", b"longrope", b"none",
          b"default")  # fmt: skip
_KINDS = (U8, U16, U32, I32, F32, BOOL, STRING, ARRAY, U64, I64, F64)


def _number(rng: random.Random) -> int:
    return rng.choice(_NUMBERS) if rng.random() < 0.7 else rng.getrandbits(rng.choice((4, 8, 16, 32, 64)))


def _value(rng: random.Random, kind: int) -> object:
    if kind == STRING:
        return rng.choice(_TEXTS)
    if kind in {F32, F64}:
        return rng.choice(_FLOATS) if rng.random() < 0.7 else rng.gauss(0.0, 100.0)
    if kind == ARRAY:
        inner = rng.choice((U8, U32, I32, F32, BOOL, STRING, U64))
        return inner, [_value(rng, inner) for _ in range(rng.choice((0, 1, 2, 3, 8, 400)))]
    return _number(rng)


def _key(raw: RawModel, rng: random.Random) -> RawKey:
    """Draw a key, more often a hyper-parameter than not."""
    own = [key for key in raw.keys if key.kind not in {STRING, ARRAY}]
    return rng.choice(own if own and rng.random() < 0.6 else raw.keys)


def set_value(raw: RawModel, rng: random.Random) -> str:
    """Give a key another value of its type."""
    key = _key(raw, rng)
    key.value = encode(key.kind, _value(rng, key.kind)) if key.kind in _KINDS else key.value
    return f"value of {key.name!r}: {key.value[:16].hex()}"


def scale_value(raw: RawModel, rng: random.Random) -> str:
    """Multiply, divide or shift an integer a little: what a check of ranges lets pass."""
    # An edit before this one may have given a key this type and left it other bytes.
    keys = [key for key in raw.keys if key.kind == U32 and len(key.value) == 4]
    if not keys:
        return "nothing"
    key = rng.choice(keys)
    (value,) = struct.unpack("<I", key.value)
    key.value = encode(
        U32, rng.choice((value * 2, value // 2, value + 1, value - 1, value * 4, value // 4))
    )
    return f"value of {key.name!r}: {value} becomes {struct.unpack('<I', key.value)[0]}"


def set_type(raw: RawModel, rng: random.Random) -> str:
    """Give a key another type, with bytes that fit it or not."""
    key = _key(raw, rng)
    key.kind = rng.choice(_KINDS) if rng.random() < 0.9 else rng.getrandbits(32)
    if key.kind in _KINDS and rng.random() < 0.7:
        key.value = encode(key.kind, _value(rng, key.kind))
    return f"type of {key.name!r}: {key.kind}"


def set_length(raw: RawModel, rng: random.Random) -> str:
    """Change the length field of a text or array."""
    keys = [key for key in raw.keys if key.kind in {STRING, ARRAY}]
    if not keys:
        return "nothing"
    key = rng.choice(keys)
    at = 0 if key.kind == STRING else rng.choice((0, 4, 4, 12))
    packed = struct.pack("<Q", _number(rng) % 2**64)
    key.value = key.value[:at] + packed[: 4 if at == 0 and key.kind == ARRAY else 8] + key.value[at + 8 :]
    return f"length of {key.name!r} at {at}: {packed.hex()}"


def drop_key(raw: RawModel, rng: random.Random) -> str:
    """Remove a key."""
    key = _key(raw, rng)
    raw.keys.remove(key)
    return f"without {key.name!r}"


def copy_key(raw: RawModel, rng: random.Random) -> str:
    """Repeat a key, or give its value to another."""
    key, other = _key(raw, rng), _key(raw, rng)
    if rng.random() < 0.3:
        raw.keys.insert(rng.randrange(len(raw.keys)), RawKey(key.name, key.kind, key.value))
        return f"twice {key.name!r}"
    other.kind, other.value = key.kind, key.value
    return f"{other.name!r} is as {key.name!r}"


def add_key(raw: RawModel, rng: random.Random) -> str:
    """Add a key that llama.cpp knows."""
    arch = raw.keys[0].value[8:].decode("utf-8", "replace") if raw.keys else "llama"
    name = rng.choice(known_keys()).replace("%s", arch)
    kind = rng.choice((U32, U32, U32, F32, BOOL, STRING, ARRAY, I32))
    raw.put(name, kind, _value(rng, kind))
    return f"with {name} of type {kind}"


def rename_key(raw: RawModel, rng: random.Random) -> str:
    """Give a key another name."""
    key = _key(raw, rng)
    before = key.name
    key.name = rng.choice((*_TEXTS, rng.choice(raw.keys).name, before[:-1], before + b"s"))
    return f"{before!r} is called {key.name!r}"


def edit_array(raw: RawModel, rng: random.Random) -> str:
    """Change one element of a list of texts or numbers, or its count in truth."""
    keys = [key for key in raw.keys if key.kind == ARRAY and len(key.value) > 12]
    if not keys:
        return "nothing"
    key = rng.choice(keys)
    inner, count = struct.unpack_from("<IQ", key.value)
    if inner == STRING:
        try:
            texts = raw.strings(key.name.decode())
        except (KeyError, struct.error, UnicodeDecodeError):
            return "nothing"
        if not texts:
            return "nothing"
        for _ in range(rng.choice((1, 1, 2, 20))):
            texts[rng.randrange(len(texts))] = rng.choice((*_TEXTS, rng.choice(texts)))
        if rng.random() < 0.2:
            texts = texts[: rng.randrange(len(texts))]
        key.value = encode(ARRAY, (STRING, texts))
        return f"texts of {key.name!r}"
    value = bytearray(key.value)
    at = rng.randrange(12, len(value))
    value[at : at + 4] = struct.pack("<f", rng.choice(_FLOATS)) if rng.random() < 0.3 else rng.randbytes(4)
    key.value = bytes(value)
    return f"element at {at} of {key.name!r}, {count} of type {inner}"


def edit_tensor(raw: RawModel, rng: random.Random) -> str:
    """Change a row of the tensor table, and nothing else."""
    row = rng.choice(raw.tensors)
    what = rng.choice(("name", "dims", "dim", "kind", "kind", "offset"))
    if what == "name":
        row.name = rng.choice((*_TEXTS, rng.choice(raw.tensors).name, row.name[:-1]))
    elif what == "dims":
        row.dims = [_number(rng) % 2**64 for _ in range(rng.choice((0, 1, 2, 3, 4, 5)))]
    elif what == "dim" and row.dims:
        row.dims[rng.randrange(len(row.dims))] = _number(rng) % 2**64
    elif what == "kind":
        row.kind = rng.choice((*range(42), 255, 2**31))
    else:
        row.offset = rng.choice((_number(rng), row.offset + 32, row.offset - 32, row.offset + 1)) % 2**64
    return f"{what} of {row.name!r}: {row.dims} {row.kind} {row.offset}"


def lay_out_again(raw: RawModel, rng: random.Random) -> str:
    """Change the shape or type of a tensor, or add one, and let table and data agree with it."""
    try:
        blobs = raw.blobs()
        row = rng.choice(raw.tensors)
        what = rng.choice(("shape", "kind", "add", "drop", "swap"))
        if what == "shape":
            row.dims = [
                rng.choice((1, 2, 4, 16, 31, 32, 64, 128, 256, 400)) for _ in range(rng.choice((1, 2, 3)))
            ]
        elif what == "kind":
            row.kind = rng.choice((*range(4), *range(6, 31), 34, 35, 39))
        elif what == "add":
            end = rng.choice(("weight", "bias", "scale"))
            name = f"blk.{rng.randrange(3)}.{rng.choice(known_tensors())}.{end}"
            raw.tensors.append(RawTensor(name.encode(), list(row.dims), rng.choice((0, 0, 1, 8, 26)), 0))
            blobs.append(b"")
        elif what == "drop":
            index = raw.tensors.index(row)
            del raw.tensors[index], blobs[index]
        else:
            other = rng.choice(raw.tensors)
            row.name, other.name = other.name, row.name
        if sum(n_bytes(one.dims, one.kind) for one in raw.tensors) < 2**24:
            raw.lay_out(blobs)
    except (ValueError, IndexError):  # an edit before this one left nothing that could be laid out
        return "nothing"
    return f"{what} laid out again: {row.name!r} {row.dims} {row.kind}"


def edit_counts(raw: RawModel, rng: random.Random) -> str:
    """Change a count, the version or the alignment of the data."""
    what = rng.choice(("n_keys", "n_tensors", "version", "alignment"))
    if what == "alignment":
        raw.alignment = rng.choice((1, 8, 16, 64, 128, 4096))
        if rng.random() < 0.5:
            raw.put("general.alignment", U32, raw.alignment)
    elif what == "version":
        raw.version = rng.choice((1, 2, 3, 4, 2**24))
    else:
        true = len(raw.keys if what == "n_keys" else raw.tensors)
        setattr(raw, what, rng.choice((true - 1, true + 1, _number(rng))) % 2**64)
    return f"{what} changed"


def edit_data(raw: RawModel, rng: random.Random) -> str:
    """Overwrite some of the weights."""
    data = bytearray(raw.data)
    if len(data) < 8:
        return "nothing"
    at = rng.randrange(len(data) - 4) & ~1
    patch = rng.choice(
        (b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\x7f\x7f", b"\0\x7e", b"\0\x7c", rng.randbytes(64))
    )
    data[at : at + len(patch)] = patch
    raw.data = bytes(data)
    return f"data at {at}: {patch[:8].hex()}"


_EDITS: tuple[Edit, ...] = (
    set_value, set_value, set_value, scale_value, scale_value, set_type, set_length, drop_key, copy_key,
    add_key, add_key, add_key, rename_key, edit_array, edit_array, edit_tensor, edit_tensor, lay_out_again,
    lay_out_again, edit_counts, edit_data,
)  # fmt: skip


def _edit_bytes(whole: bytes, n_header: int, rng: random.Random) -> tuple[bytes, str]:
    changed = bytearray(whole)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(4, max(5, min(n_header, len(changed))))
        if rng.random() < 0.5:
            changed[at] = rng.randrange(256)
        else:
            changed[at : at + 8] = struct.pack("<Q", _number(rng) % 2**64)
    if rng.random() < 0.1:
        del changed[rng.randrange(len(changed)) :]
    return bytes(changed), "bytes of the header"


def make_case(bases: Sequence[Base], seed: int, number: int) -> tuple[bytes, str]:
    """
    Return the file of one case, and what was edited.

    Args:
        bases: The same for the same case.
        seed: Of the run.
        number: Of the case; cases do not depend on each other.
    """
    rng = random.Random(f"{seed} {number}")
    base = rng.choice(bases)
    raw, edits = base.raw.copy(), [base.name]
    edits += [rng.choice(_EDITS)(raw, rng) for _ in range(rng.choice((1, 1, 1, 2, 2, 3, 4))) if raw.tensors]
    header = raw.header()
    if rng.random() < 0.15:
        whole, edit = _edit_bytes(header + raw.data, len(header), rng)
        return whole, "; ".join([*edits, edit])
    return header + raw.data, "; ".join(edits)
