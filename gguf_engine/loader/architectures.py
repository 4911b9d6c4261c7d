"""Hyper-parameters of a GGUF header, checked, and the tensors they imply for a family with full rules."""

from __future__ import annotations

import math
from collections.abc import Container, Iterator
from dataclasses import dataclass

from gguf_engine.loader.families import FAMILIES, Family, Rule
from gguf_engine.loader.gguf import GGUFFile
from gguf_engine.loader.keys import Keys, shown

MAX_LAYERS = 512  # LLAMA_MAX_LAYERS
MAX_EXPERTS = 1024  # LLAMA_MAX_EXPERTS
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")
# Below, llama.cpp's batch is smaller than the slots it has to serve at once, and it aborts.
_MIN_POSITIONS, _MAX_POSITIONS = 8, 2**31 - 1
_MAX_WINDOW = 2**24  # llama.cpp multiplies it by the number of sequences, in 32 bits


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that must be there, or may be, with the shape it must have (row length first)."""

    name: str
    shape: tuple[int, ...]
    required: bool = True


def check_common(gguf: GGUFFile, arch: str) -> None:
    """
    Check what llama.cpp asserts or divides by for every architecture.

    Raises:
        ModelFileError: A key is missing, of the wrong type or out of range; code "hyperparameter".
    """
    keys = Keys(gguf, "hyperparameter", prefix=f"{arch}.")
    for key, value in gguf.metadata.items():
        if key.startswith(keys.prefix) and isinstance(value, float) and not math.isfinite(value):
            keys.fail(key, f"is {value}; allowed: finite numbers")
    n_layer = keys.integer("block_count", 1, MAX_LAYERS)
    keys.integer("context_length", _MIN_POSITIONS, _MAX_POSITIONS)
    keys.integer("embedding_length", 1, 2**20)
    keys.integer("nextn_predict_layers", 0, n_layer - 1, default=0)
    for name in ("feed_forward_length", "attention.head_count", "attention.head_count_kv"):
        keys.per_layer(name, n_layer, 0, 2**24, default=0)
    scaling = keys.typed("rope.scaling.type", ("string",))
    if scaling is not None and scaling not in ROPE_SCALINGS:
        keys.fail("rope.scaling.type", f"is {shown(scaling)}; allowed: {', '.join(ROPE_SCALINGS)}")
    _check_experts(keys, n_layer)


def _check_experts(keys: Keys, n_layer: int) -> None:
    n_expert = keys.integer("expert_count", 0, MAX_EXPERTS, default=0)
    n_used = max(keys.per_layer("expert_used_count", n_layer, 0, MAX_EXPERTS, default=0))
    if n_used > n_expert or (n_used == 0) != (n_expert == 0):
        keys.fail("expert_used_count", f"is {n_used} of {n_expert} experts")
    n_groups = keys.integer("expert_group_count", 0, max(0, n_expert - 1), default=0)
    if n_groups > 1:
        if n_expert % n_groups:
            keys.fail("expert_group_count", f"is {n_groups}, which does not divide {n_expert} experts")
        keys.integer("expert_group_used_count", 1, n_groups - 1)


def expected_tensors(gguf: GGUFFile, arch: str, n_vocab: int, names: Container[str]) -> Iterator[Expected]:
    """
    Yield the tensors of a model of a family with full rules; its keys are checked before the first.

    Args:
        gguf: The header; of a split model that of the first part.
        arch: The family, one of `FAMILIES`.
        n_vocab: Tokens in its vocabulary.
        names: Of its tensors: attention inputs may be one matrix or three.

    Raises:
        ModelFileError: A key is missing, of the wrong type or out of range; code "hyperparameter".
    """
    family = FAMILIES[arch]
    keys = Keys(gguf, "hyperparameter", prefix=f"{arch}.")
    sizes = _sizes(keys, family) | {"vocab": n_vocab}
    ffn = family.experts if sizes["expert"] else family.dense
    yield from (_sized(rule, "", sizes) for rule in family.around)
    for layer in range(keys.integer("block_count", 1, MAX_LAYERS)):
        at = f"blk.{layer}."
        rules = family.layer + ffn
        if family.attention == "any":
            has_three = any(f"{at}attn_{name}.weight" in names for name in "qkv")
            rules += _THREE if has_three and f"{at}attn_qkv.weight" not in names else _ONE
        yield from (_sized(rule, at, sizes) for rule in rules)


# Queries, keys and values: llama.cpp takes one matrix or three, and three biases beside one matrix.
_BIASES = (
    Rule("attn_q.bias", ("q",), required=False),
    Rule("attn_k.bias", ("kv",), required=False),
    Rule("attn_v.bias", ("kv",), required=False),
)
_ONE = (
    Rule("attn_qkv.weight", ("embd", "qkv")),
    Rule("attn_qkv.bias", ("qkv",), required=False),
    *_BIASES,
)
_THREE = (
    Rule("attn_q.weight", ("embd", "q")),
    Rule("attn_k.weight", ("embd", "kv")),
    Rule("attn_v.weight", ("embd", "kv")),
    *_BIASES,
)


def _sized(rule: Rule, at: str, sizes: dict[str, int]) -> Expected:
    return Expected(at + rule.name, tuple(sizes[dim] for dim in rule.dims), rule.required)


def _sizes(keys: Keys, family: Family) -> dict[str, int]:
    """Return what the names of dimensions stand for, all but "vocab"."""
    n_layer = keys.integer("block_count", 1, MAX_LAYERS)
    n_embd = keys.integer("embedding_length", 1, 2**20)
    n_head = keys.same_in_all("attention.head_count", n_layer, 2**16)
    head = _head_size(keys, family, n_embd, n_head)
    n_head_kv = keys.same_in_all("attention.head_count_kv", n_layer, 2**16, default=n_head)
    if n_head % n_head_kv:
        keys.fail("attention.head_count_kv", f"is {n_head_kv}, which does not divide the {n_head} heads")
    n_ff = keys.same_in_all("feed_forward_length", n_layer, 2**24)
    n_rot = _rotation(keys, family, head) if family.rotary else head
    keys.real(f"attention.layer_norm_{'rms_' * (family.norm == 'rms')}epsilon", _EPSILON)
    n_expert = keys.integer("expert_count", 0, MAX_EXPERTS if family.experts else 0, default=0)
    keys.same_in_all("expert_used_count", n_layer, n_expert, default=n_expert, low=min(1, n_expert))
    keys.integer("expert_group_count", 0, 1, default=0)
    keys.integer("nextn_predict_layers", 0, 0, default=0)
    keys.integer("embedding_length_out", n_embd, n_embd, default=n_embd)
    if keys.typed("attention.causal", ("bool",)) is False:
        keys.fail("attention.causal", "is false; a model that continues a text does not look ahead")
    if family.window is not None:
        _check_window(keys, family.window, n_layer, head, n_rot)
    return {
        "embd": n_embd,
        "q": head * n_head,
        "kv": head * n_head_kv,
        "qkv": head * (n_head + 2 * n_head_kv),
        "head": head,
        "rot/2": n_rot // 2,
        "ff": n_ff,
        "2ff": 2 * n_ff,
        "ctx": keys.integer("context_length", _MIN_POSITIONS, _MAX_POSITIONS),
        "expert": n_expert,
    }


_EPSILON = (0.0, 1.0, "between 0 and 1")
_BASE = (0.0, math.inf, "finite and above 0")


def _head_size(keys: Keys, family: Family, n_embd: int, n_head: int) -> int:
    whole, rest = divmod(n_embd, n_head)
    is_named = f"{keys.prefix}attention.key_length" in keys.gguf.metadata
    if rest and not (family.free_heads and is_named):
        keys.fail("attention.head_count", f"is {n_head}, which does not divide the embedding of {n_embd}")
    head = keys.integer("attention.key_length", 1, 2**16, default=whole)
    if not family.free_heads and head != whole:
        keys.fail("attention.key_length", f"is {head}; {n_embd} over {n_head} heads is {whole}")
    value = keys.integer("attention.value_length", 1, 2**16, default=whole)
    if value != head:
        keys.fail("attention.value_length", f"is {value}; keys are {head} long, and values have to be")
    return head


def _rotation(keys: Keys, family: Family, head: int) -> int:
    """Return how many numbers of a head the rotary embedding turns."""
    if head % 2:
        keys.fail("attention.key_length", f"a head of {head} numbers cannot be turned; allowed: even")
    n_rot = keys.integer("rope.dimension_count", 2, head, default=head)
    if n_rot % 2:
        keys.fail("rope.dimension_count", f"is {n_rot}; allowed: an even number")
    if family.whole_heads and n_rot != head:
        keys.fail("rope.dimension_count", f"is {n_rot}; this architecture needs the head size, {head}")
    keys.real("rope.freq_base", _BASE, default=10000.0)
    for name in ("rope.scaling.factor", "rope.scale_linear"):
        if keys.typed(name, ("f32",)) != 0:  # 0 is none
            keys.real(name, (1e-4, 1e6, "0, or between 0.0001 and 1000000"), default=1.0)
    keys.real("rope.scaling.attn_factor", _BASE, default=1.0)
    keys.integer("rope.scaling.original_context_length", 1, _MAX_POSITIONS, default=1)
    return n_rot


def _check_window(keys: Keys, window: tuple[int, int], n_layer: int, head: int, n_rot: int) -> None:
    """Check sliding windows, and that the layers that have one have heads like the others."""
    least, default = window
    size = keys.integer("attention.sliding_window", least, _MAX_WINDOW, default=default)
    key = "attention.sliding_window_pattern"
    pattern = keys.typed(key, ("u32", "array[bool]", "array[u32]", "array[i32]"))
    if isinstance(pattern, tuple) and len(pattern) != n_layer:
        keys.fail(key, f"has {len(pattern)} values for {n_layer} layers")
    if size and (pattern == 1 or (isinstance(pattern, tuple) and not any(pattern))):
        keys.fail(key, f"is {shown(pattern)}, so that no layer has the window of {size}")
    keys.real("rope.freq_base_swa", _BASE, default=10000.0)
    keys.real("attn_logit_softcapping", _BASE, default=50.0)
    if keys.typed("final_logit_softcapping", ("f32",)) != 0:  # 0 is none
        keys.real("final_logit_softcapping", _BASE, default=30.0)
    for name, size in (("attention.key", head), ("attention.value", head)):
        keys.integer(f"{name}_length_swa", size, size, default=size)
    keys.integer("rope.dimension_count_swa", n_rot, n_rot, default=n_rot)
