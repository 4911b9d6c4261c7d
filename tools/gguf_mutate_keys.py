"""Mutations of the hyper-parameters: each key at the ends of its range, of other types, or missing."""

from __future__ import annotations

import struct
from typing import Any

from gguf_known import known_keys
from gguf_mutations import Base, Variants, mutation
from gguf_raw import ARRAY, BOOL, F32, F64, I32, STRING, TYPE_NAMES, U8, U16, U32, U64, RawModel, encode

INTEGERS = (0, 1, 2, 3, 5, 7, 2**15, 2**16, 2**24, 2**31 - 1, 2**31, 2**32 - 1)
FLOATS = (
    0.0,
    -0.0,
    1.0,
    -1.0,
    1e-45,
    1e-30,
    0.5,
    1e10,
    3e38,
    -3e38,
    float("nan"),
    float("inf"),
    float("-inf"),
)
OTHER_TYPES: tuple[tuple[int, Any], ...] = (
    (U8, 1), (U16, 1), (I32, 1), (I32, -1), (F32, 1.0), (BOOL, 1), (STRING, "1"), (U64, 1), (U64, 2**63),
    (F64, 1.0), (F64, float("nan")), (ARRAY, (U32, [1])), (ARRAY, (U32, [])), (ARRAY, (STRING, ["1"])),
    (ARRAY, (F32, [float("nan")])),
)  # fmt: skip
_WITH_LAYERS = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")


def _own(raw: RawModel) -> list[str]:
    return [key.name.decode() for key in raw.keys if key.name.startswith(raw.arch.encode() + b".")]


def _changed(base: Base, name: str, kind: int, value: Any) -> RawModel:
    raw = base.raw.copy()
    raw.put(name, kind, value)
    return raw


@mutation()
def integer_extremes(base: Base) -> Variants:
    """An integer hyper-parameter is 0, 1, odd, negative or enormous."""
    for name in _own(base.raw):
        if base.raw.key(name).kind == U32:
            true = base.raw.integer(name)
            for value in (*INTEGERS, true - 1, true + 1, 2 * true, true // 2):
                if value != true:
                    yield f"{name} {value}", _changed(base, name, U32, value)


@mutation()
def float_extremes(base: Base) -> Variants:
    """A real hyper-parameter is 0, negative, NaN, infinite or enormous."""
    for name in _own(base.raw):
        if base.raw.key(name).kind == F32:
            for value in FLOATS:
                yield f"{name} {value}", _changed(base, name, F32, value)


@mutation()
def key_type(base: Base) -> Variants:
    """A hyper-parameter has another type; the file is otherwise in order."""
    for name in (*_own(base.raw), "general.file_type", "general.quantization_version"):
        for kind, value in OTHER_TYPES:
            yield f"{name} {TYPE_NAMES[kind]} {value}", _changed(base, name, kind, value)


@mutation()
def key_missing(base: Base) -> Variants:
    """A key is not there."""
    for key in base.raw.keys:
        raw = base.raw.copy()
        raw.drop(key.name.decode())
        yield key.name.decode(), raw


@mutation()
def per_layer_array(base: Base) -> Variants:
    """A hyper-parameter has one value a layer, of the wrong count, type or value."""
    arrays: tuple[tuple[int, list[Any]], ...] = (
        (U32, []), (U32, [2]), (U32, [2, 2, 2]), (U32, [2, 0]), (U32, [0, 2]), (U32, [2**32 - 1, 2]),
        (I32, [2, -1]), (I32, [-(2**31), 2]), (F32, [2.0, 2.0]), (BOOL, [1, 1]), (STRING, ["2", "2"]),
        (U64, [2, 2]), (U32, [2] * 513), (U32, [2] * 5000), (I32, [4, 4]), (U32, [3, 4]), (U32, [4, 2]),
        (U32, [64, 32]), (I32, [64, 64]),
    )  # fmt: skip
    for part in (*_WITH_LAYERS, "attention.sliding_window", "block_count", "expert_used_count"):
        for kind, values in arrays:
            label = f"{part} {TYPE_NAMES[kind]} {values[:3]} of {len(values)}"
            yield label, _changed(base, f"{base.raw.arch}.{part}", ARRAY, (kind, values))


@mutation()
def known_key_integer(base: Base) -> Variants:
    """A key that llama.cpp reads for some architecture is there, as an integer."""
    for key in known_keys():
        name = key.replace("%s", base.raw.arch)
        if not base.raw.has(name):
            for value in (0, 1, 3, 2**31, 2**32 - 1):
                yield f"{name} {value}", _changed(base, name, U32, value)


@mutation()
def known_key_other(base: Base) -> Variants:
    """A key that llama.cpp reads for some architecture is there, as a float, boolean, text or array."""
    values: tuple[tuple[int, Any], ...] = (
        (F32, float("nan")), (F32, 0.0), (F32, float("inf")), (F32, -3e38), (BOOL, 1), (STRING, "x"),
        (ARRAY, (U32, [2**32 - 1] * 4)), (ARRAY, (I32, [-1, -1])), (ARRAY, (F32, [float("nan")] * 2)),
        (ARRAY, (BOOL, [1, 0])), (ARRAY, (STRING, ["x", ""])), (ARRAY, (U32, [])),
    )  # fmt: skip
    for key in known_keys():
        name = key.replace("%s", base.raw.arch)
        if not base.raw.has(name):
            for kind, value in values:
                yield f"{name} {TYPE_NAMES[kind]} {value}", _changed(base, name, kind, value)


@mutation()
def rope_scaling(base: Base) -> Variants:
    """Rotary scaling is of an unknown kind, or has factors and lengths that make no sense."""
    arch = base.raw.arch
    for kind in ("none", "linear", "yarn", "longrope", "dynamic", "", "LINEAR", "unspecified"):
        for factor in (None, 0.0, -1.0, 1e-30, 1e30, float("nan"), float("inf")):
            raw = _changed(base, f"{arch}.rope.scaling.type", STRING, kind)
            if factor is not None:
                raw.put(f"{arch}.rope.scaling.factor", F32, factor)
            yield f"{kind} {factor}", raw
    for length in (0, 1, 2**31, 2**32 - 1):
        raw = _changed(base, f"{arch}.rope.scaling.original_context_length", U32, length)
        raw.put(f"{arch}.rope.scaling.type", STRING, "yarn")
        raw.put(f"{arch}.rope.scaling.factor", F32, 4.0)
        yield f"yarn from {length}", raw


@mutation()
def sliding_window(base: Base) -> Variants:
    """The sliding window is zero, one, negative or larger than the context, in any pattern of layers."""
    arch = base.raw.arch
    patterns: tuple[tuple[int, Any], ...] = (
        (U32, 0), (U32, 1), (U32, 2**32 - 1), (BOOL, 1), (ARRAY, (BOOL, [1, 0])), (ARRAY, (BOOL, [1])),
        (ARRAY, (U32, [1, 1, 1])), (STRING, "LG"),
    )  # fmt: skip
    for window in (0, 1, 2, 64, 2**20, 2**31, 2**32 - 1):
        raw = _changed(base, f"{arch}.attention.sliding_window", U32, window)
        yield f"window {window}", raw
        for kind, value in patterns:
            changed = raw.copy()
            changed.put(f"{arch}.attention.sliding_window_pattern", kind, value)
            yield f"window {window} pattern {TYPE_NAMES[kind]} {value}", changed


@mutation()
def heads(base: Base) -> Variants:
    """Heads and their sizes do not divide, or only by overflow."""
    arch = base.raw.arch
    for n_head, n_kv in ((1, 1), (2, 4), (4, 3), (0, 0), (32, 32), (64, 64), (2**31, 2), (2**32 - 1, 1)):
        raw = _changed(base, f"{arch}.attention.head_count", U32, n_head)
        raw.put(f"{arch}.attention.head_count_kv", U32, n_kv)
        yield f"{n_head} over {n_kv}", raw
    for key_size, value_size in ((0, 0), (8, 16), (16, 8), (1, 1), (7, 7), (2**31, 2**31), (2**16, 2**16)):
        raw = _changed(base, f"{arch}.attention.key_length", U32, key_size)
        raw.put(f"{arch}.attention.value_length", U32, value_size)
        yield f"sizes {key_size} and {value_size}", raw
        raw = raw.copy()
        raw.put(f"{arch}.rope.dimension_count", U32, key_size)
        yield f"sizes {key_size} and {value_size}, all rotated", raw


@mutation()
def experts(base: Base) -> Variants:
    """The numbers of experts contradict each other or the tensors."""
    arch = base.raw.arch
    for count, used in (
        (0, 2),
        (4, 0),
        (4, 5),
        (2, 2),
        (8, 2),
        (512, 1),
        (513, 1),
        (2**31, 2),
        (2**32 - 1, 1),
    ):
        raw = _changed(base, f"{arch}.expert_count", U32, count)
        raw.put(f"{arch}.expert_used_count", U32, used)
        yield f"{used} of {count}", raw
    for groups, used in ((1, 1), (2, 1), (2, 0), (3, 1), (4, 4), (2**31, 1), (2**32 - 1, 2**32 - 1)):
        raw = _changed(base, f"{arch}.expert_group_count", U32, groups)
        raw.put(f"{arch}.expert_group_used_count", U32, used)
        yield f"{used} of {groups} groups", raw
    for function in (0, 1, 2, 3, 4, 5, 2**32 - 1):
        yield f"gating {function}", _changed(base, f"{arch}.expert_gating_func", U32, function)


OTHER_FAMILIES = (
    "llama", "phi3", "qwen2", "qwen3", "gemma2", "gemma3", "phi2", "gpt2", "stablelm", "starcoder2",
    "falcon", "gptneox", "mpt", "bloom", "baichuan", "gemma", "mamba", "rwkv6", "bert", "t5", "deepseek2",
    "qwen2moe", "command-r", "llama4", "jamba", "clip", "whisper", "wavtokenizer-dec", "gemma4", "deci",
    "unknown-llm",
)  # fmt: skip


@mutation()
def architecture(base: Base) -> Variants:
    """The architecture is another's, with the keys renamed or not; unknown; or not a text."""
    for other in OTHER_FAMILIES:
        if other == base.raw.arch:
            continue
        yield f"{other}, keys as they were", _changed(base, "general.architecture", STRING, other)
        raw = _changed(base, "general.architecture", STRING, other)
        for key in raw.keys:
            if key.name.startswith(base.raw.arch.encode() + b"."):
                key.name = other.encode() + key.name[len(base.raw.arch) :]
        yield f"{other}, keys renamed", raw
    for text in ("", " ", base.raw.arch.upper(), base.raw.arch + " ", "a" * 5000, "%s", "../llama"):
        yield repr(text[:20]), _changed(base, "general.architecture", STRING, text)
    for kind, value in ((U32, 1), (BOOL, 1), (ARRAY, (STRING, [base.raw.arch])), (F64, 1.0)):
        yield f"a {TYPE_NAMES[kind]}", _changed(base, "general.architecture", kind, value)


@mutation()
def general_type(base: Base) -> Variants:
    """The file says that it is an adapter, a projector or an importance matrix."""
    for text in ("adapter", "mmproj", "imatrix", "vocab", "", "MODEL"):
        yield repr(text), _changed(base, "general.type", STRING, text)
    yield "a number", _changed(base, "general.type", U32, 1)


_LOG_LINES = (
    "CPU model buffer size =  1.2.3 MiB", "offloaded 99/99 layers to GPU", "x KV buffer size = 9999999 MiB",
    "a\nload_tensors: CPU_Mapped model buffer size = .. MiB\nb", "x" * 100_000, "x" * 2**20,
    "x model " * 10_000,
)  # fmt: skip


@mutation()
def posing_as_log(base: Base) -> Variants:
    """A text that llama.cpp logs reads like a line of its own, or goes on for ever."""
    for text in _LOG_LINES:
        for name in ("general.name", "general.description", "tokenizer.chat_template"):
            yield f"{name} {text[:20]!r} of {len(text)}", _changed(base, name, STRING, text)


@mutation()
def file_type(base: Base) -> Variants:
    """The kind of file or the version of its quantization is one that does not exist."""
    for name in ("general.file_type", "general.quantization_version"):
        for value in (0, 1, 6, 100, 1024, 2**31, 2**32 - 1):
            yield f"{name} {value}", _changed(base, name, U32, value)


@mutation()
def two_at_once(base: Base) -> Variants:
    """Two hyper-parameters are off together, so that a check of one alone may be satisfied."""
    names = [name for name in _own(base.raw) if base.raw.key(name).kind == U32]
    for first in names:
        for second in names:
            if first < second:
                for factor in (0, 2):
                    raw = base.raw.copy()
                    for name in (first, second):
                        raw.put(name, U32, base.raw.integer(name) * factor)
                    yield f"{first} and {second} times {factor}", raw


@mutation()
def consistent_sizes(base: Base) -> Variants:
    """Head counts change in ways that the shapes of the matrices still allow."""
    arch = base.raw.arch
    n_head, n_kv = (base.raw.integer(f"{arch}.attention.head_count{end}") for end in ("", "_kv"))
    n_embd = base.raw.integer(f"{arch}.embedding_length")
    size = n_embd // n_head
    for factor in (2, 4, 8, 16):
        raw = base.raw.copy()
        raw.put(f"{arch}.attention.head_count", U32, n_head * factor)
        raw.put(f"{arch}.attention.head_count_kv", U32, n_kv * factor)
        for part in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
            if raw.has(f"{arch}.{part}"):
                true = base.raw.integer(f"{arch}.{part}")
                raw.put(f"{arch}.{part}", U32, max(1, true // factor))
        yield f"heads of {size / factor:g}", raw


@mutation(once=True)
def huge_values(base: Base) -> Variants:
    """Arrays of the largest allowed size stand where llama.cpp expects a few numbers."""
    arch, count = base.raw.arch, 2**21
    for part in ("attention.head_count", "feed_forward_length", "rope.dimension_sections", "target_layers"):
        raw = base.raw.copy()
        value = struct.pack("<IQ", U32, count) + encode(U32, 2) * count
        raw.put(f"{arch}.{part}", ARRAY, (U32, []))
        raw.key(f"{arch}.{part}").value = value
        yield part, raw
