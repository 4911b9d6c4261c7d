"""
LoRA adapters: GGUF files with two thin matrices for each weight that they change.

llama.cpp compares little of an adapter with its model, and aborts the process on the rest: these checks
come before it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NoReturn

from gguf_engine.errors import ModelFileError
from gguf_engine.loader.gguf import GGUFFile, TensorInfo
from gguf_engine.loader.keys import Keys, shown

_TYPES = ("F32", "F16", "BF16", "Q8_0")  # what converters write, and llama.cpp can look rows up in
_EMBEDDING = "token_embd.weight"
_ANEW = "convert the adapter anew, for this model"


def check_adapter(adapter: GGUFFile, parts: Sequence[GGUFFile]) -> None:
    """
    Check that an adapter is one, and fits a model.

    Args:
        adapter: Its header.
        parts: The headers of all parts of the model.

    Raises:
        ModelFileError: What is wrong, where, and with what value; the codes are those of `preflight`.
    """
    keys = Keys(adapter, "architecture")
    _expect(keys, "general.type", "adapter", "name a LoRA adapter, not a model")
    _expect(keys, "adapter.type", "lora", "other kinds of adapters cannot be loaded")
    arch = str(parts[0].metadata.get("general.architecture"))
    _expect(keys, "general.architecture", arch, "use an adapter that was made for this model")
    alpha = keys.typed("adapter.lora.alpha", ("f32",))
    if alpha is not None and not math.isfinite(alpha):
        keys.fail("adapter.lora.alpha", f"is {alpha}; allowed: a finite number", code="hyperparameter")
    if "adapter.alora.invocation_tokens" in adapter.metadata:
        what = "marks an adapter that works from certain tokens on; here one works on all"
        keys.fail("adapter.alora.invocation_tokens", what)
    tensors = {tensor.name: tensor for tensor in adapter.tensors}
    weights = {tensor.name: tensor for part in parts for tensor in part.tensors}
    if not tensors:
        _fail(adapter, "tensor_missing", "", "holds no tensors")
    for name, tensor in tensors.items():
        base, suffix = name.removesuffix(".lora_a").removesuffix(".lora_b"), name[-7:]
        if suffix not in (".lora_a", ".lora_b"):
            _fail(adapter, "tensor_unknown", name, "is no .lora_a and no .lora_b: llama.cpp ignores it")
        if tensor.type not in _TYPES:
            _fail(adapter, "tensor_type", name, f"is {tensor.type}; allowed: {', '.join(_TYPES)}")
        other = base + (".lora_b" if suffix == ".lora_a" else ".lora_a")
        if other not in tensors:
            _fail(adapter, "tensor_missing", other, f"is missing beside {name}")
        if base not in weights:
            _fail(adapter, "tensor_unknown", name, f"changes {base}, which the model does not have")
        if suffix == ".lora_a":
            is_output = base == _EMBEDDING and "output.weight" not in weights
            _check_pair(adapter, tensor, tensors[other], weights[base], is_output=is_output)


def _expect(keys: Keys, key: str, wanted: str, help_: str) -> None:
    value = keys.typed(key, ("string",))
    if value != wanted:
        keys.fail(key, f"is {shown(value)}; allowed: {wanted!r}", help_)


def _check_pair(
    adapter: GGUFFile, a: TensorInfo, b: TensorInfo, weight: TensorInfo, *, is_output: bool
) -> None:
    """Check the shapes of one pair, in ggml's order: the row length first."""
    if is_output:
        what = "changes an embedding that is the output matrix too, which llama.cpp cannot compute"
        _fail(adapter, "tensor_shape", a.name, what)
    if len(weight.shape) < 2:
        _fail(adapter, "tensor_shape", a.name, f"changes {weight.name}, which is no matrix")
    n_in, n_out, *experts = weight.shape
    rank = b.shape[0]
    expected = ((n_in, rank, *experts), (rank, n_out, *experts))
    if weight.name == _EMBEDDING:  # rows are looked up, so that the first matrix is the other way round
        expected = ((rank, n_out), (rank, n_in))
    for tensor, shape in zip((a, b), expected, strict=True):
        if tensor.shape != shape:
            what = f"has shape {list(tensor.shape)}; {weight.name} needs {list(shape)}"
            _fail(adapter, "tensor_shape", tensor.name, what, _ANEW)


def _fail(adapter: GGUFFile, code: str, where: str, what: str, help_: str = "") -> NoReturn:
    raise ModelFileError(str(adapter.path), code, where, what, help_)
