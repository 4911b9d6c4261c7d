"""Hyper-parameters of a GGUF header, checked, and the tensors they imply: families with full rules."""

from __future__ import annotations

from collections.abc import Callable, Container, Iterator, Mapping
from dataclasses import dataclass

from gguf_engine.loader.gguf import GGUFFile
from gguf_engine.loader.keys import Keys

MAX_LAYERS = 512
ROPE_SCALINGS = ("none", "linear", "yarn", "longrope")


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperParameters:
    """
    What the keys of an architecture say. Tuples have one value a layer.

    Attributes:
        n_embd: Width of the residual stream.
        n_head: Attention heads.
        n_head_kv: Key and value heads; each divides n_head.
        n_ff: Width of the feed-forward layer, of one expert if there are experts.
        n_expert: 0 for a dense model.
        head_size: Width of a head.
        n_rot: Numbers of a head that the rotary embedding turns; even.
    """

    n_embd: int
    n_vocab: int
    n_head: tuple[int, ...]
    n_head_kv: tuple[int, ...]
    n_ff: tuple[int, ...]
    n_expert: int
    head_size: int
    n_rot: int


@dataclass(frozen=True, slots=True)
class Expected:
    """A tensor that must be there, or may be, with the shape it must have (row length first)."""

    name: str
    shape: tuple[int, ...]
    required: bool = True


def read_hyperparameters(gguf: GGUFFile, arch: str, n_vocab: int) -> HyperParameters:
    """
    Return the hyper-parameters of a family with full rules.

    Raises:
        ModelFileError: A key is missing, of the wrong type or out of range; code "hyperparameter".
    """
    keys = Keys(gguf, "hyperparameter")
    n_layer = keys.integer(f"{arch}.block_count", 1, MAX_LAYERS)
    keys.integer(f"{arch}.context_length", 1, 2**31 - 1)
    n_embd = keys.integer(f"{arch}.embedding_length", 1, 2**20)
    n_ff = keys.per_layer(f"{arch}.feed_forward_length", n_layer, 2**24, None)
    n_head = keys.per_layer(f"{arch}.attention.head_count", n_layer, 2**16, None)
    head_size = _head_size(keys, arch, n_embd, n_head[0])
    n_head_kv = keys.per_layer(f"{arch}.attention.head_count_kv", n_layer, 2**16, n_head)
    for layer, (heads, heads_kv) in enumerate(zip(n_head, n_head_kv, strict=True)):
        if heads % heads_kv:
            keys.fail(
                f"{arch}.attention.head_count_kv",
                f"is {heads_kv} in layer {layer}, which does not divide the {heads} heads",
            )
    n_rot = _rotary(keys, arch, head_size)
    keys.real(f"{arch}.attention.layer_norm_rms_epsilon", "between 0 and 1", lambda x: 0 < x < 1, None)
    return HyperParameters(
        n_embd=n_embd,
        n_vocab=n_vocab,
        n_head=n_head,
        n_head_kv=n_head_kv,
        n_ff=n_ff,
        n_expert=_experts(keys, arch),
        head_size=head_size,
        n_rot=n_rot,
    )


def _head_size(keys: Keys, arch: str, n_embd: int, n_head: int) -> int:
    key, value = f"{arch}.attention.key_length", f"{arch}.attention.value_length"
    if key not in keys.gguf.metadata and n_embd % n_head:
        heads = f"{arch}.attention.head_count"
        keys.fail(heads, f"is {n_head}, which does not divide the embedding of {n_embd}")
    head_size = keys.integer(key, 1, 2**16, default=n_embd // n_head)
    if keys.integer(value, 1, 2**16, default=n_embd // n_head) != head_size:
        keys.fail(value, f"differs from the key length of {head_size}")
    return head_size


def _rotary(keys: Keys, arch: str, head_size: int) -> int:
    key = f"{arch}.rope.dimension_count"
    n_rot = keys.integer(key, 2, head_size, default=head_size)
    if n_rot % 2:
        keys.fail(key, f"is {n_rot}; allowed: an even number")
    if arch == "llama" and n_rot != head_size:
        keys.fail(key, f"is {n_rot}; this architecture needs the head size, {head_size}")
    keys.real(f"{arch}.rope.freq_base", "finite and above 0", lambda x: x > 0, 10000.0)
    keys.real(f"{arch}.rope.scaling.factor", "finite and at least 0", lambda x: x >= 0, 1.0)
    keys.integer(f"{arch}.rope.scaling.original_context_length", 1, 2**31 - 1, default=1)
    scaling = keys.typed(f"{arch}.rope.scaling.type", ("string",))
    if scaling is not None and scaling not in ROPE_SCALINGS:
        keys.fail(f"{arch}.rope.scaling.type", f"is {scaling!r}; allowed: {', '.join(ROPE_SCALINGS)}")
    return n_rot


def _experts(keys: Keys, arch: str) -> int:
    n_expert = keys.integer(f"{arch}.expert_count", 0, 512 if arch != "phi3" else 0, default=0)
    key = f"{arch}.expert_used_count"
    n_used = keys.integer(key, 0, 512, default=0)
    if (n_used > 0) != (n_expert > 0) or n_used > n_expert:
        keys.fail(key, f"is {n_used} of {n_expert} experts")
    return n_expert


def expected_phi3(hyper: HyperParameters, names: Container[str]) -> Iterator[Expected]:
    """Yield the tensors of a Phi-3; gate and up are one matrix."""
    yield from _around(hyper)
    n_embd = hyper.n_embd
    for factors in ("long", "short"):
        yield Expected(f"rope_factors_{factors}.weight", (hyper.n_rot // 2,), required=False)
    for layer, n_ff in enumerate(hyper.n_ff):
        at = f"blk.{layer}"
        yield Expected(f"{at}.attn_norm.weight", (n_embd,))
        fused = f"{at}.attn_q.weight" not in names
        yield from _attention_inputs(hyper, layer, n_embd, fused=fused)
        yield Expected(f"{at}.attn_output.weight", (n_embd, n_embd))
        yield Expected(f"{at}.ffn_norm.weight", (n_embd,))
        yield Expected(f"{at}.ffn_down.weight", (n_ff, n_embd))
        yield Expected(f"{at}.ffn_up.weight", (n_embd, 2 * n_ff))


def expected_llama(hyper: HyperParameters, names: Container[str]) -> Iterator[Expected]:
    """Yield the tensors of a Llama, Mistral or Mixtral."""
    yield from _around(hyper)
    n_embd = hyper.n_embd
    for factors in ("rope_freqs", "rope_factors_long", "rope_factors_short"):
        yield Expected(f"{factors}.weight", (hyper.n_rot // 2,), required=False)
    for layer, n_ff in enumerate(hyper.n_ff):
        at = f"blk.{layer}"
        width = hyper.head_size * hyper.n_head[layer]
        yield Expected(f"{at}.attn_norm.weight", (n_embd,))
        yield from _attention_inputs(hyper, layer, width, fused=f"{at}.attn_qkv.weight" in names)
        yield Expected(f"{at}.attn_output.weight", (width, n_embd))
        yield Expected(f"{at}.attn_output.bias", (n_embd,), required=False)
        yield Expected(f"{at}.ffn_norm.weight", (n_embd,))
        if not hyper.n_expert:
            yield Expected(f"{at}.ffn_gate.weight", (n_embd, n_ff))
            yield Expected(f"{at}.ffn_down.weight", (n_ff, n_embd))
            yield Expected(f"{at}.ffn_up.weight", (n_embd, n_ff))
            continue
        yield Expected(f"{at}.ffn_gate_inp.weight", (n_embd, hyper.n_expert))
        yield Expected(f"{at}.ffn_gate_exps.weight", (n_embd, n_ff, hyper.n_expert))
        yield Expected(f"{at}.ffn_down_exps.weight", (n_ff, n_embd, hyper.n_expert))
        yield Expected(f"{at}.ffn_up_exps.weight", (n_embd, n_ff, hyper.n_expert))


def _attention_inputs(hyper: HyperParameters, layer: int, width: int, *, fused: bool) -> Iterator[Expected]:
    """Yield queries, keys and values: llama.cpp takes one matrix or three."""
    width_kv = hyper.head_size * hyper.n_head_kv[layer]
    parts = [("qkv", width + 2 * width_kv)] if fused else [("q", width), ("k", width_kv), ("v", width_kv)]
    for name, rows in parts:
        yield Expected(f"blk.{layer}.attn_{name}.weight", (hyper.n_embd, rows))
        yield Expected(f"blk.{layer}.attn_{name}.bias", (rows,), required=False)


def _around(hyper: HyperParameters) -> Iterator[Expected]:
    yield Expected("token_embd.weight", (hyper.n_embd, hyper.n_vocab))
    yield Expected("output_norm.weight", (hyper.n_embd,))
    yield Expected("output.weight", (hyper.n_embd, hyper.n_vocab), required=False)


FULL_RULES: Mapping[str, Callable[[HyperParameters, Container[str]], Iterator[Expected]]] = {
    "phi3": expected_phi3,
    "llama": expected_llama,
}
