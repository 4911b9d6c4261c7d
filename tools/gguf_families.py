"""
The model families that can be generated: which keys and tensors each has.

A family is a short declaration; `list_tensors` and `list_keys` turn one, with the sizes of a
`ModelShape`, into what stands in the file.

Source: load_arch_hparams and load_arch_tensors of llama.cpp's src/models/*.cpp.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gguf_tensors import Tensor

if TYPE_CHECKING:
    from make_gguf import ModelShape

_BIAS_STD = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """
    What distinguishes one architecture from a plain Llama.

    Attributes:
        layer_norm: Norms subtract the mean and have a bias.
        fused_qkv: Queries, keys and values are one matrix.
        qkv_bias, all_bias: Biases on the attention inputs, or on every matrix of a layer.
        qk_norm: Queries and keys are normalized per head.
        post_norms: A norm behind attention and feed-forward too.
        feed_forward: "gated", "fused" (gate and up are one matrix) or "plain" (no gate).
        parallel: Attention and feed-forward read the same norm; there is no ffn_norm.
        positions: Learned positions (a matrix of n_ctx rows) instead of rotary ones.
        half_rotary: Only half of a head is rotated.
        head_size: The keys name it, so that it need not be n_embd / n_head.
        grouped: Fewer key and value heads than query heads, unless the shape says otherwise.
        window: The key of a sliding window is written.
        softcap: Logits are capped.
        tied: True or False where the architecture leaves no choice; else what is usual.
        tied_fixed: It leaves no choice.
        output_bias: On the output matrix.
        experts: May be a mixture of experts.
    """

    layer_norm: bool = False
    fused_qkv: bool = False
    qkv_bias: bool = False
    all_bias: bool = False
    qk_norm: bool = False
    post_norms: bool = False
    feed_forward: str = "gated"
    parallel: bool = False
    positions: bool = False
    half_rotary: bool = False
    head_size: bool = False
    grouped: bool = True
    window: bool = False
    softcap: bool = False
    tied: bool = False
    tied_fixed: bool = False
    output_bias: bool = False
    experts: bool = False


FAMILIES = {
    "phi3": Family(fused_qkv=True, feed_forward="fused"),
    "llama": Family(head_size=True, experts=True),
    "qwen2": Family(qkv_bias=True),
    "qwen3": Family(qk_norm=True, head_size=True),
    "gemma2": Family(
        post_norms=True, head_size=True, window=True, softcap=True, tied=True, tied_fixed=True
    ),
    "gemma3": Family(qk_norm=True, post_norms=True, head_size=True, window=True, tied=True),
    "phi2": Family(
        layer_norm=True, all_bias=True, feed_forward="plain", parallel=True, half_rotary=True,
        grouped=False, tied_fixed=True, output_bias=True,
    ),
    "gpt2": Family(
        layer_norm=True, fused_qkv=True, all_bias=True, feed_forward="plain", positions=True,
        grouped=False, tied=True,
    ),
    # Two that the loader has no full rules for.
    "stablelm": Family(layer_norm=True, half_rotary=True, grouped=False, tied_fixed=True),
    "starcoder2": Family(layer_norm=True, all_bias=True, feed_forward="plain"),
}  # fmt: skip


def list_keys(shape: ModelShape) -> Iterator[tuple[str, Any]]:
    """Yield the hyper-parameters as (key without the architecture's name, int or float)."""
    family = FAMILIES[shape.arch]
    yield "context_length", shape.n_ctx
    yield "embedding_length", shape.n_embd
    yield "block_count", shape.n_layer
    yield "feed_forward_length", shape.n_inner
    yield "attention.head_count", shape.n_head
    yield "attention.head_count_kv", shape.n_kv
    if family.head_size:
        yield "attention.key_length", shape.n_head_size
        yield "attention.value_length", shape.n_head_size
    if not family.positions:
        yield "rope.dimension_count", shape.n_head_size // (2 if family.half_rotary else 1)
        yield "rope.freq_base", 10000.0
    yield f"attention.layer_norm_{'' if family.layer_norm else 'rms_'}epsilon", 1e-5
    if family.window:
        yield "attention.sliding_window", max(shape.n_ctx // 4, 1)
    if family.softcap:
        yield "attn_logit_softcapping", 50.0
        yield "final_logit_softcapping", 30.0
    if shape.n_expert:
        yield "expert_count", shape.n_expert
        yield "expert_used_count", min(2, shape.n_expert)


def list_tensors(shape: ModelShape) -> Iterator[Tensor]:
    """Yield every tensor in the order of the file. Spreads keep activations and logits near 1 to 3."""
    family, mixed = FAMILIES[shape.arch], shape.type == "Q4_K_M"
    base = "Q4_K" if mixed else shape.type
    n = shape.n_embd
    out_std = 3.0 * n**-0.5
    yield Tensor("token_embd.weight", (shape.n_vocab, n), base, out_std if shape.is_tied else 0.5)
    if family.positions:
        yield Tensor("position_embd.weight", (shape.n_ctx, n), "F32", 0.5)
    yield from _norm("output_norm", n, family)
    if not shape.is_tied:
        yield Tensor("output.weight", (shape.n_vocab, n), "Q6_K" if mixed else base, out_std)
    if family.output_bias:
        yield Tensor("output.bias", (shape.n_vocab,), "F32", _BIAS_STD)
    for layer in range(shape.n_layer):
        at = f"blk.{layer}"
        down = "Q6_K" if mixed and _more_bits(layer, shape.n_layer) else base
        yield from _norm(f"{at}.attn_norm", n, family)
        yield from _attention(shape, family, at, base, down)
        if family.post_norms:
            yield from _norm(f"{at}.post_attention_norm", n, family)
        if not family.parallel:
            yield from _norm(f"{at}.ffn_norm", n, family)
        yield from _experts(shape, at, base) if shape.n_expert else _dense(shape, family, at, base, down)
        if family.post_norms:
            yield from _norm(f"{at}.post_ffw_norm", n, family)


def _norm(name: str, size: int, family: Family) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", (size,), "F32", 0.0)
    if family.layer_norm:
        yield Tensor(f"{name}.bias", (size,), "F32", _BIAS_STD)


def _matrix(name: str, shape: tuple[int, int], type_: str, *, bias: bool) -> Iterator[Tensor]:
    yield Tensor(f"{name}.weight", shape, type_, shape[1] ** -0.5)
    if bias:
        yield Tensor(f"{name}.bias", shape[:1], "F32", _BIAS_STD)


def _attention(shape: ModelShape, family: Family, at: str, base: str, down: str) -> Iterator[Tensor]:
    n, n_q, n_kv = shape.n_embd, shape.n_embd_q, shape.n_embd_kv
    bias = family.qkv_bias or family.all_bias
    if family.fused_qkv:
        qkv = "Q5_K" if shape.type == "Q4_K_M" else base
        yield from _matrix(f"{at}.attn_qkv", (n_q + 2 * n_kv, n), qkv, bias=bias)
    else:
        yield from _matrix(f"{at}.attn_q", (n_q, n), base, bias=bias)
        yield from _matrix(f"{at}.attn_k", (n_kv, n), base, bias=bias)
        yield from _matrix(f"{at}.attn_v", (n_kv, n), down, bias=bias)
    if family.qk_norm:
        yield Tensor(f"{at}.attn_q_norm.weight", (shape.n_head_size,), "F32", 0.0)
        yield Tensor(f"{at}.attn_k_norm.weight", (shape.n_head_size,), "F32", 0.0)
    yield from _matrix(f"{at}.attn_output", (n, n_q), base, bias=family.all_bias)


def _dense(shape: ModelShape, family: Family, at: str, base: str, down: str) -> Iterator[Tensor]:
    n, n_ff = shape.n_embd, shape.n_inner
    if family.feed_forward == "gated":
        yield from _matrix(f"{at}.ffn_gate", (n_ff, n), base, bias=False)
    n_up = 2 * n_ff if family.feed_forward == "fused" else n_ff
    yield from _matrix(f"{at}.ffn_up", (n_up, n), base, bias=family.all_bias)
    yield from _matrix(f"{at}.ffn_down", (n, n_ff), down, bias=family.all_bias)


def _experts(shape: ModelShape, at: str, base: str) -> Iterator[Tensor]:
    n, n_ff, n_expert = shape.n_embd, shape.n_inner, shape.n_expert
    yield Tensor(f"{at}.ffn_gate_inp.weight", (n_expert, n), "F32", n**-0.5)
    yield Tensor(f"{at}.ffn_gate_exps.weight", (n_expert, n_ff, n), base, n**-0.5)
    yield Tensor(f"{at}.ffn_up_exps.weight", (n_expert, n_ff, n), base, n**-0.5)
    yield Tensor(f"{at}.ffn_down_exps.weight", (n_expert, n, n_ff), base, n_ff**-0.5)


def _more_bits(layer: int, n_layer: int) -> bool:
    """Source: use_more_bits of llama.cpp's quantizer, which makes the M mixes."""
    eighth = n_layer // 8
    return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2
