"""
Refuse a GGUF file that would kill, hang or fool llama.cpp, naming the key, tensor or offset.

`read_gguf` answers for the format; here is what a well-formed file may still get wrong. Families in
`FAMILIES` are checked tensor by tensor; others get what holds for all. Nothing of the weights is read:
that is `check_tensors`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from gguf_engine.errors import ModelFileError
from gguf_engine.loader.architectures import check_common, expected_tensors
from gguf_engine.loader.families import FAMILIES
from gguf_engine.loader.gguf import GGUFFile, TensorInfo, read_gguf
from gguf_engine.loader.keys import Keys, shown
from gguf_engine.loader.known import KNOWN_ARCHITECTURES, NOT_LANGUAGE_MODELS, READ_FROM
from gguf_engine.loader.parts import read_parts
from gguf_engine.loader.vocabulary import MODEL, check_vocabulary

RULES = 1
"""Version of these rules; a verdict that was remembered names the one it was made under."""

CODES = {
    "not_a_file": "a folder, a pipe or a device",
    "unreadable": "the file system refuses to read it",
    "empty": "no bytes at all",
    "magic": "not a GGUF file; says what it is instead",
    "version": "a version of the format other than 2 and 3",
    "byte_order": "a big-endian file",
    "truncated": "the file ends before what it announces",
    "header_size": "a header too long to be one",
    "key_count": "too many keys",
    "key_name": "a key that is no printable text",
    "duplicate_key": "a key that appears twice",
    "value_type": "a value of an unknown type",
    "bool": "a truth value other than 0 and 1",
    "string_length": "a text or name too long",
    "array_length": "too many elements, in one array or in all",
    "nested_array": "an array of arrays",
    "alignment": "an alignment that is no power of two in 32..4096",
    "tensor_count": "too many tensors",
    "tensor_name": "a tensor name that is no printable text",
    "tensor_shape": "a shape that is impossible, or not what the keys imply",
    "tensor_type": "a number format that llama.cpp does not compute with there",
    "tensor_offset": "tensors that overlap, leave gaps or are out of order",
    "trailing_data": "far more bytes than the tensors take",
    "duplicate_tensor": "a tensor that appears twice",
    "tensor_missing": "a tensor that the architecture needs",
    "tensor_unknown": "a tensor that the architecture does not have",
    "tensor_data": "a NaN, an infinity or a broken block scale among the weights",
    "architecture": "not a language model, or one that this llama.cpp does not know",
    "hyperparameter": "a key of the architecture that is missing, of the wrong type or out of range",
    "vocabulary": "tokens, scores or types that would abort or mislead the tokenizer",
    "special_id": "a special token's id that is not in the vocabulary, or missing",
    "split": "parts that are missing, renamed or mixed up",
    "killed_before": "the file ended a process that loaded it",
}
"""Every code of a `ModelFileError`, and what it stands for."""

WEIGHT_TYPES = frozenset({
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0",
    "TQ2_0", "MXFP4",
})  # fmt: skip
_FULL_TOKENIZERS = ("llama", "gpt2")
_SCALES = (".scale", ".input_scale")


def preflight(model: str | Path | GGUFFile) -> None:
    """
    Return if llama.cpp can be given this file.

    Args:
        model: The file (of a split model the first part), or its header from `read_gguf`.

    Raises:
        ModelNotFoundError: No such file.
        ModelFileError: What is wrong, where, and with what value; `CODES` lists the codes.
    """
    gguf = model if isinstance(model, GGUFFile) else read_gguf(model)
    arch = _architecture(gguf)
    n_vocab = check_vocabulary(gguf)
    check_common(gguf, arch)
    parts = read_parts(gguf)
    for part in parts:
        _check_part(part, arch)
    if arch in FAMILIES:
        _check_family(gguf, arch, n_vocab, parts)
    else:
        _check_embedding(gguf, n_vocab, parts)


def has_full_rules(model: GGUFFile) -> bool:
    """
    Return whether a file that passes cannot kill llama.cpp, as far as tests and fuzzing have shown.

    Other architectures and tokenizers get the checks that hold for all: load those in another process.
    """
    metadata = model.metadata
    return metadata.get("general.architecture") in FAMILIES and metadata.get(MODEL) in _FULL_TOKENIZERS


def _fail(gguf: GGUFFile, code: str, where: str, what: str, help_: str = "") -> NoReturn:
    raise ModelFileError(str(gguf.path), code, where, what, help_)


def _architecture(gguf: GGUFFile) -> str:
    key = "general.architecture"
    arch = Keys(gguf, "architecture").typed(key, ("string",))
    if not arch:
        _fail(gguf, "architecture", key, "is missing", "convert the model anew")
    if arch in NOT_LANGUAGE_MODELS:
        _fail(gguf, "architecture", key, f"is {arch!r}: {NOT_LANGUAGE_MODELS[arch]}, not a language model")
    if arch not in KNOWN_ARCHITECTURES:
        what = f"is {shown(arch)}, which {READ_FROM} does not know"
        _fail(gguf, "architecture", key, what, "upgrade gguf-engine, or convert the model anew")
    kind = gguf.metadata.get("general.type", "model")
    if kind != "model":
        what = f"is {shown(kind)}; allowed: 'model'"
        _fail(gguf, "architecture", "general.type", what, "name the model itself")
    return str(arch)


def _check_part(part: GGUFFile, arch: str) -> None:
    found = part.metadata.get("general.architecture", arch)
    if found != arch:
        _fail(part, "split", "general.architecture", f"is {shown(found)}; the first part says {arch!r}")
    for tensor in part.tensors:
        if tensor.type not in WEIGHT_TYPES:
            what = f"has type {tensor.type}; llama.cpp computes with {', '.join(sorted(WEIGHT_TYPES))}"
            _fail(part, "tensor_type", tensor.name, what, "quantize the model anew")
        if len(tensor.shape) == 1:
            _check_is_f32(part, tensor)


def _check_is_f32(part: GGUFFile, tensor: TensorInfo) -> None:
    if tensor.type != "F32":
        what = f"has one dimension and type {tensor.type}; norms, biases and factors must be F32"
        _fail(part, "tensor_type", tensor.name, what, "convert the model anew")


def _check_family(gguf: GGUFFile, arch: str, n_vocab: int, parts: Sequence[GGUFFile]) -> None:
    """Compare what is there with what the keys imply."""
    found = {tensor.name: (part, tensor) for part in parts for tensor in part.tensors}
    left = dict.fromkeys(found)
    for expected in expected_tensors(gguf, arch, n_vocab, found):
        if expected.name in found:
            _check_shape(*found[expected.name], expected.shape)
            del left[expected.name]
        elif expected.required:
            _fail(gguf, "tensor_missing", expected.name, f"is missing; {arch} needs it")
    for name in left:
        part, tensor = found[name]
        if not name.endswith(_SCALES):
            _fail(part, "tensor_unknown", name, f"is not a tensor of {arch}", "convert the model anew")
        _check_is_f32(part, tensor)


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Leave out the ones at the end: ggml keeps four dimensions for every tensor."""
    n_dims = max((index for index, size in enumerate(shape, 1) if size > 1), default=1)
    return shape[:n_dims]


def _check_shape(part: GGUFFile, tensor: TensorInfo, shape: tuple[int, ...]) -> None:
    if _without_ones(tensor.shape) != _without_ones(shape):
        what = f"has the shape {list(tensor.shape)}; the keys imply {list(shape)}"
        _fail(part, "tensor_shape", tensor.name, what)
    if len(shape) == 1:
        _check_is_f32(part, tensor)


def _check_embedding(gguf: GGUFFile, n_vocab: int, parts: Sequence[GGUFFile]) -> None:
    name = "token_embd.weight"
    embedding = next((tensor for part in parts for tensor in part.tensors if tensor.name == name), None)
    if embedding is None:
        _fail(gguf, "tensor_missing", name, "is missing; every language model needs it")
    if embedding.shape[1:2] != (n_vocab,) or len(_without_ones(embedding.shape)) > 2:
        what = f"has the shape {list(embedding.shape)} for {n_vocab} tokens"
        _fail(gguf, "tensor_shape", name, what)
