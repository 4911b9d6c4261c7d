"""Mutations of the tensor table and of the numbers in it."""

from __future__ import annotations

import random
import struct

import gguf
from gguf_known import known_tensors
from gguf_mutations import Base, Variants, mutation
from gguf_raw import RawModel, RawTensor, n_bytes

KINDS = {kind.name: int(kind) for kind in gguf.GGMLQuantizationType}
F32, F16, Q8_0 = KINDS["F32"], KINDS["F16"], KINDS["Q8_0"]
DIMS = (0, 1, 2**31 - 1, 2**31, 2**32, 2**48, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1)
_EMBEDDING = "token_embd.weight"


def _some(raw: RawModel) -> list[str]:
    """Return one tensor of each sort: those outside the layers, and all of the first layer."""
    names = [tensor.name.decode() for tensor in raw.tensors]
    return [name for name in names if not name.startswith("blk.") or name.startswith("blk.0.")]


@mutation()
def tensor_missing(base: Base) -> Variants:
    """A tensor is not there, the others are in order."""
    for name in _some(base.raw):
        raw = base.raw.copy()
        blobs = raw.blobs()
        index = raw.tensors.index(raw.tensor(name))
        del raw.tensors[index], blobs[index]
        raw.lay_out(blobs)
        yield name, raw
    raw = base.raw.copy()
    raw.tensors = []
    yield "all of them", raw


@mutation()
def tensor_name(base: Base) -> Variants:
    """A tensor has a name that is none, another's, or that of a layer that does not exist."""
    names = (
        b"", b"\0", b"a\0b", b"\xff\xfe", b"a" * 63, b"a" * 64, b"a" * 10_000, b"blk.-1.attn_norm.weight",
        b"blk.99999999999999999999.attn_norm.weight", b"blk.2.attn_norm.weight", b"blk..weight", b"%s%n%d",
        base.raw.tensors[0].name, base.raw.tensors[-1].name + b".",
    )  # fmt: skip
    for name in names:
        raw = base.raw.copy()
        raw.tensors[len(raw.tensors) // 2].name = name
        yield repr(name[:32]), raw


@mutation()
def tensor_rank(base: Base) -> Variants:
    """A tensor has no dimension, or more than four."""
    for name in (_EMBEDDING, "output_norm.weight"):
        for dims in ([], [1] * 5, [1] * 1000):
            raw = base.raw.copy()
            raw.tensor(name).dims = list(dims)
            yield f"{name} {len(dims)}", raw


@mutation()
def tensor_dims(base: Base) -> Variants:
    """A dimension is zero, negative or so large that its product wraps around."""
    for name in (_EMBEDDING, "output_norm.weight", "blk.0.ffn_up.weight", "blk.0.ffn_up_exps.weight"):
        if name not in _some(base.raw):
            continue
        for at in range(len(base.raw.tensor(name).dims)):
            for dim in DIMS:
                raw = base.raw.copy()
                raw.tensor(name).dims[at] = dim
                yield f"{name} {at} {dim}", raw
    for pair in ((2**32, 2**32), (2**31, 2**33), (2**62, 4), (2**16, 2**48)):
        raw = base.raw.copy()
        raw.tensor(_EMBEDDING).dims = list(pair)
        yield f"{_EMBEDDING} {pair}", raw


@mutation()
def tensor_shape(base: Base) -> Variants:
    """A tensor has another shape than the keys imply; table and data agree with it."""
    for name in _some(base.raw):
        true = base.raw.tensor(name).dims
        shapes = [[*true[:-1], true[-1] * 2], [*true[:-1], max(1, true[-1] // 2)], [*true, 2], true[::-1]]
        shapes += [[*true[:-1], true[-1] + 1], [true[0]], [true[0] * 2, *true[1:]]]
        for dims in shapes:
            if dims == true:
                continue
            raw = base.raw.copy()
            blobs = raw.blobs()
            tensor = raw.tensor(name)
            block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(tensor.kind)]
            tensor.dims = dims if dims[0] % block == 0 else [-(-dims[0] // block) * block, *dims[1:]]
            raw.lay_out(blobs)
            yield f"{name} {tensor.dims}", raw


@mutation(harmless=True)
def ones_behind_the_shape(base: Base) -> Variants:
    """A tensor lists dimensions of one behind its own, which ggml keeps anyway."""
    raw = base.raw.copy()
    for tensor in raw.tensors:
        if len(tensor.dims) == 2:
            tensor.dims.append(1)
    yield "all matrices", raw


@mutation()
def tensor_type_in_place(base: Base) -> Variants:
    """A tensor says another type than its data has; nothing else moves."""
    kinds = (*range(45), 255, 2**16, 2**31, 2**32 - 1)
    for name in (_EMBEDDING, "output_norm.weight", "blk.0.attn_output.weight"):
        for kind in kinds:
            raw = base.raw.copy()
            if raw.tensor(name).kind != kind:
                raw.tensor(name).kind = kind
                yield f"{name} {kind}", raw


@mutation()
def tensor_type(base: Base) -> Variants:
    """A tensor has a type that llama.cpp cannot use there; table and data agree with it."""
    for name in _some(base.raw):
        true = base.raw.tensor(name)
        for kind_name, kind in KINDS.items():
            block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
            if true.kind == kind or true.dims[0] % block:
                continue
            raw = base.raw.copy()
            blobs = raw.blobs()
            raw.tensor(name).kind = kind
            raw.lay_out(blobs)
            yield f"{name} {kind_name}", raw


@mutation()
def all_matrices_of_type(base: Base) -> Variants:
    """Every matrix has the same odd type, as a careless converter would write it."""
    for kind_name, kind in KINDS.items():
        raw = base.raw.copy()
        blobs = raw.blobs()
        block, _ = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType(kind)]
        for tensor in raw.tensors:
            if len(tensor.dims) > 1 and tensor.dims[0] % block == 0:
                tensor.kind = kind
        raw.lay_out([bytes(len(blob)) for blob in blobs])
        yield kind_name, raw


@mutation()
def tensor_offset(base: Base) -> Variants:
    """A tensor begins where another lies, between two, unaligned, or outside the file."""
    size = len(base.raw.data)
    for index in (0, len(base.raw.tensors) // 2, len(base.raw.tensors) - 1):
        true = base.raw.tensors[index].offset
        for offset in (0, true + 1, true + 32, true - 32, true + 4096, size, size + 32, 2**31, *DIMS[-4:]):
            raw = base.raw.copy()
            if offset % 2**64 != true:
                raw.tensors[index].offset = offset
                yield f"tensor {index} at {offset}", raw
    raw = base.raw.copy()
    first, last = raw.tensors[1], raw.tensors[-1]
    first.offset, last.offset = last.offset, first.offset
    yield "two swapped", raw
    raw = base.raw.copy()
    raw.tensors.reverse()
    yield "reversed", raw
    raw = base.raw.copy()
    for tensor in raw.tensors:
        tensor.offset = 0
    yield "all at 0", raw


@mutation()
def tensor_extra(base: Base) -> Variants:
    """A tensor is there that this architecture does not have, or has seldom."""
    n_embd = base.raw.tensor(_EMBEDDING).dims[0]
    names = [f"blk.0.{part}.{end}" for part in known_tensors() for end in ("weight", "bias", "scale")]
    names += [
        "output.bias",
        "output_norm.bias",
        "rope_freqs.weight",
        "rope_factors_long.weight",
        "cls.weight",
    ]
    names += [
        "token_types.weight",
        "position_embd.weight",
        "dense_2.weight",
        "unknown.weight",
        "output.scale",
    ]
    for index, name in enumerate(names):
        if any(tensor.name == name.encode() for tensor in base.raw.tensors):
            continue
        dims, kind = ([n_embd], F32) if index % 3 else ([n_embd, n_embd], F16)
        raw = base.raw.copy()
        blobs = raw.blobs()
        raw.tensors.append(RawTensor(name.encode(), list(dims), kind, 0))
        raw.lay_out([*blobs, bytes(n_bytes(dims, kind))])
        yield name, raw


def _float_tensors(raw: RawModel) -> list[int]:
    names = set(_some(raw))
    return [i for i, row in enumerate(raw.tensors) if row.kind == F32 and row.name.decode() in names]


@mutation()
def odd_numbers(base: Base) -> Variants:
    """A float tensor holds NaN, an infinity, or numbers near the end of the range."""
    numbers = {
        "nan": float("nan"),
        "inf": float("inf"),
        "-inf": float("-inf"),
        "3e38": 3e38,
        "1e-45": 1e-45,
    }
    for index in _float_tensors(base.raw):
        for label, number in numbers.items():
            for everywhere in (False, True):
                raw = base.raw.copy()
                blobs = raw.blobs()
                count = len(blobs[index]) // 4 if everywhere else 1
                blobs[index] = struct.pack("<f", number) * count + blobs[index][4 * count :]
                raw.lay_out(blobs)
                name = raw.tensors[index].name.decode()
                yield f"{name} {label} {'everywhere' if everywhere else 'once'}", raw


# Type -> bytes of its fp16 scales in a block. Source: ggml-common.h.
_SCALES = {"F16": (0,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,), "Q4_K": (0, 2), "BF16": (0,)}


@mutation()
def broken_scale(base: Base) -> Variants:
    """A half-precision number or the scale of a quantized block is NaN, infinite or huge."""
    kinds = {KINDS[name]: at for name, at in _SCALES.items()}
    bits = {"nan": 0x7E00, "inf": 0x7C00, "-inf": 0xFC00, "largest": 0x7BFF}
    brain = {"nan": 0x7FC0, "inf": 0x7F80, "-inf": 0xFF80, "largest": 0x7F7F}
    for index, tensor in enumerate(base.raw.tensors):
        name = tensor.name.decode()
        if tensor.kind not in kinds or name not in _some(base.raw):
            continue
        for at in kinds[tensor.kind]:
            for label, half in (brain if tensor.kind == KINDS["BF16"] else bits).items():
                raw = base.raw.copy()
                blobs = raw.blobs()
                blobs[index] = blobs[index][:at] + struct.pack("<H", half) + blobs[index][at + 2 :]
                raw.lay_out(blobs)
                yield f"{name} byte {at} {label}", raw


@mutation()
def noise_in_data(base: Base) -> Variants:
    """The weights are random bytes: of every type, of one tensor or of all."""
    rng = random.Random(base.name)
    for index in range(0, len(base.raw.tensors), 5):
        raw = base.raw.copy()
        blobs = raw.blobs()
        blobs[index] = rng.randbytes(len(blobs[index]))
        raw.lay_out(blobs)
        yield raw.tensors[index].name.decode(), raw
    raw = base.raw.copy()
    raw.data = rng.randbytes(len(raw.data))
    yield "all", raw


@mutation(harmless=True)
def dull_numbers(base: Base) -> Variants:
    """The weights are all zero, or other models' ordinary numbers."""
    raw = base.raw.copy()
    raw.data = bytes(len(raw.data))
    yield "zeros", raw
