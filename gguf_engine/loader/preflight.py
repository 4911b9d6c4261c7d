"""
Refuse a GGUF file that would kill, hang or fool llama.cpp, naming the key, tensor or offset.

`read_gguf` answers for the format; here is what a well-formed file may still get wrong. Families in
`FULL_RULES` are checked tensor by tensor; others get what holds for all.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import NoReturn

from gguf_engine.errors import ModelFileError
from gguf_engine.loader.architectures import FULL_RULES, MAX_LAYERS, read_hyperparameters
from gguf_engine.loader.gguf import GGUFFile, TensorInfo, read_gguf
from gguf_engine.loader.keys import Keys
from gguf_engine.loader.vocabulary import check_vocabulary

WEIGHT_TYPES = frozenset({
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0",
    "TQ2_0", "MXFP4",
})  # fmt: skip
_NOT_LANGUAGE_MODELS = {
    "clip": "a vision projector (mmproj)",
    "whisper": "a speech model",
}
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def preflight(model: str | Path | GGUFFile) -> None:
    """
    Return if llama.cpp can be given this file.

    Args:
        model: The file (of a split model the first part), or its header from `read_gguf`.

    Raises:
        ModelNotFoundError: No such file.
        ModelFileError: What is wrong, where, and with what value.
    """
    gguf = model if isinstance(model, GGUFFile) else read_gguf(model)
    arch = _architecture(gguf)
    n_vocab = check_vocabulary(gguf)
    tensors = _tensors_of_all_parts(gguf)
    _check_types(gguf, tensors)
    if arch in FULL_RULES:
        hyper = read_hyperparameters(gguf, arch, n_vocab)
        for expected in FULL_RULES[arch](hyper, tensors.keys()):
            tensor = tensors.get(expected.name)
            if tensor is not None:
                _check_shape(gguf, tensor, expected.shape)
            elif expected.required:
                _fail(gguf, "tensor_missing", expected.name, f"is missing; {arch} needs it")
    else:
        Keys(gguf, "hyperparameter").integer(f"{arch}.block_count", 1, MAX_LAYERS)
        _check_embedding(gguf, tensors, n_vocab)


def _fail(gguf: GGUFFile, code: str, where: str, what: str, help_: str = "") -> NoReturn:
    raise ModelFileError(str(gguf.path), code, where, what, help_)


def _architecture(gguf: GGUFFile) -> str:
    key = "general.architecture"
    arch = Keys(gguf, "architecture").typed(key, ("string",))
    if not arch:
        _fail(gguf, "architecture", key, "is missing", "convert the model anew")
    if arch in _NOT_LANGUAGE_MODELS:
        _fail(gguf, "architecture", key, f"is {arch!r}: {_NOT_LANGUAGE_MODELS[arch]}, not a language model")
    kind = gguf.metadata.get("general.type", "model")
    if kind != "model":
        _fail(
            gguf, "architecture", "general.type", f"is {kind!r}; allowed: 'model'", "name the model itself"
        )
    return str(arch)


def _check_types(gguf: GGUFFile, tensors: dict[str, TensorInfo]) -> None:
    for tensor in tensors.values():
        if tensor.type not in WEIGHT_TYPES:
            what = f"has type {tensor.type}; llama.cpp computes with {', '.join(sorted(WEIGHT_TYPES))}"
            _fail(gguf, "tensor_type", tensor.name, what, "quantize the model anew")
        if len(tensor.shape) == 1 and tensor.type != "F32":
            what = f"has one dimension and type {tensor.type}; norms, biases and factors must be F32"
            _fail(gguf, "tensor_type", tensor.name, what, "convert the model anew")


def _check_shape(gguf: GGUFFile, tensor: TensorInfo, shape: tuple[int, ...]) -> None:
    # Ones at the end do not count: ggml keeps four dimensions for every tensor.
    found = tensor.shape
    while len(found) > len(shape) and found[-1] == 1:
        found = found[:-1]
    if found != shape:
        what = f"has the shape {list(tensor.shape)}; the keys imply {list(shape)}"
        _fail(gguf, "tensor_shape", tensor.name, what)


def _check_embedding(gguf: GGUFFile, tensors: dict[str, TensorInfo], n_vocab: int) -> None:
    embedding = tensors.get("token_embd.weight")
    if embedding is None:
        _fail(gguf, "tensor_missing", "token_embd.weight", "is missing; every language model needs it")
    if embedding.shape[1:] != (n_vocab,):
        what = f"has the shape {list(embedding.shape)} for {n_vocab} tokens"
        _fail(gguf, "tensor_shape", embedding.name, what)


def _tensors_of_all_parts(gguf: GGUFFile) -> dict[str, TensorInfo]:
    """Return every tensor by name; for a split model, read and compare the other parts first."""
    keys = Keys(gguf, "split")
    count = keys.typed("split.count", ("u16",)) or 0
    tensors = {tensor.name: tensor for tensor in gguf.tensors}
    if count <= 1:
        return tensors
    if keys.typed("split.no", ("u16",)) != 0:
        keys.fail("split.no", f"is {gguf.metadata.get('split.no')}", "name the first part of the model")
    match = _PART.fullmatch(gguf.path.name)
    if match is None or int(match["number"]) != 1 or int(match["count"]) != count:
        what = f"is {count}, but the file is not named like part 1 of {count}"
        keys.fail("split.count", what, f"name the files NAME-00001-of-{count:05}.gguf and so on")
    for number in range(2, count + 1):
        path = gguf.path.with_name(f"{match['stem']}-{number:05}-of-{count:05}.gguf")
        if not path.exists():
            keys.fail("split.count", f"is {count}, but {path.name} is missing", "download every part")
        part = read_gguf(path)
        if part.metadata.get("split.no") != number - 1 or part.metadata.get("split.count") != count:
            found = f"part {part.metadata.get('split.no')} of {part.metadata.get('split.count')}"
            _fail(part, "split", "split.no", f"says {found}; this is part {number - 1} (from 0) of {count}")
        for tensor in part.tensors:
            if tensor.name in tensors:
                _fail(part, "duplicate_tensor", tensor.name, "is in an earlier part too")
            tensors[tensor.name] = tensor
    total = keys.typed("split.tensors.count", ("i32", "u16", "u32"))
    if total is not None and total != len(tensors):
        keys.fail("split.tensors.count", f"is {total}; the parts hold {len(tensors)}")
    return tensors
