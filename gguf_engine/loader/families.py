"""
Families with full rules: each a short declaration of its hyper-parameters and of every tensor it may have.

Dimensions are names: "embd" the residual stream, "q" and "kv" all heads of queries and of keys, "qkv"
the three in one, "head" one head, "rot/2" half of what is turned, "ff" the feed-forward layer,
"ctx" positions, "vocab" tokens, "expert" experts.

Source: the load_arch_hparams and load_arch_tensors functions in src/models of llama.cpp.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal


@dataclass(frozen=True, slots=True)
class Rule:
    """A tensor that must be there, or may be, with the shape it has then (row length first)."""

    name: str
    dims: tuple[str, ...]
    required: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """
    What is told apart between families; what all share is in architectures.py.

    Attributes:
        around: Tensors outside the layers.
        layer: Tensors of each layer, but for queries, keys and values.
        attention: "any" takes one matrix of queries, keys and values or three, "one" one only.
        experts: Instead of `dense`, in a mixture of experts; empty if the family has none.
        dense: The feed-forward tensors of a layer.
        norm: "rms" or "layer": which epsilon the file names.
        free_heads: Heads may be wider or narrower than embedding / heads.
        whole_heads: The rotary embedding turns whole heads.
        rotary: Positions are rotary; else a tensor holds them.
        window: Smallest and default sliding window, None for families without one.
    """

    around: tuple[Rule, ...]
    layer: tuple[Rule, ...]
    dense: tuple[Rule, ...]
    attention: Literal["any", "one"] = "any"
    experts: tuple[Rule, ...] = ()
    norm: Literal["rms", "layer"] = "rms"
    free_heads: bool = False
    whole_heads: bool = False
    rotary: bool = True
    window: tuple[int, int] | None = None


def _need(name: str, *dims: str) -> Rule:
    return Rule(name, dims)


def _may(name: str, *dims: str) -> Rule:
    return Rule(name, dims, required=False)


_EMBEDDING = _need("token_embd.weight", "embd", "vocab")
_OUTPUT = _may("output.weight", "embd", "vocab")  # absent: the embedding serves
_NORM = _need("output_norm.weight", "embd")
_LONGROPE = (_may("rope_factors_long.weight", "rot/2"), _may("rope_factors_short.weight", "rot/2"))
_NORMS = (_need("attn_norm.weight", "embd"), _need("ffn_norm.weight", "embd"))
_HEAD_NORMS = (_need("attn_q_norm.weight", "head"), _need("attn_k_norm.weight", "head"))
_POST_NORMS = (_need("post_attention_norm.weight", "embd"), _need("post_ffw_norm.weight", "embd"))
_ATTN_OUTPUT = _need("attn_output.weight", "q", "embd")
_GATED = (
    _need("ffn_gate.weight", "embd", "ff"),
    _need("ffn_up.weight", "embd", "ff"),
    _need("ffn_down.weight", "ff", "embd"),
)
_BIASED_OUTPUT_NORM = (_NORM, _need("output_norm.bias", "embd"))
_BIASED_ATTENTION = (
    _need("attn_norm.weight", "embd"),
    _need("attn_norm.bias", "embd"),
    _ATTN_OUTPUT,
    _need("attn_output.bias", "embd"),
)
_BIASED_FFN = (
    _need("ffn_up.weight", "embd", "ff"),
    _need("ffn_up.bias", "ff"),
    _need("ffn_down.weight", "ff", "embd"),
    _need("ffn_down.bias", "embd"),
)

FAMILIES: Mapping[str, Family] = MappingProxyType({
    "phi3": Family(
        around=(_EMBEDDING, _NORM, _OUTPUT, *_LONGROPE),
        layer=(*_NORMS, _ATTN_OUTPUT),
        dense=(_need("ffn_up.weight", "embd", "2ff"), _need("ffn_down.weight", "ff", "embd")),
    ),
    "llama": Family(  # also Mistral and Mixtral
        around=(_EMBEDDING, _NORM, _OUTPUT, _may("rope_freqs.weight", "rot/2"), *_LONGROPE),
        layer=(*_NORMS, _ATTN_OUTPUT, _may("attn_output.bias", "embd")),
        dense=(
            *_GATED,
            _may("ffn_gate.bias", "ff"), _may("ffn_up.bias", "ff"), _may("ffn_down.bias", "embd"),
        ),
        experts=(
            _need("ffn_gate_inp.weight", "embd", "expert"),
            _need("ffn_gate_exps.weight", "embd", "ff", "expert"),
            _need("ffn_up_exps.weight", "embd", "ff", "expert"),
            _need("ffn_down_exps.weight", "ff", "embd", "expert"),
        ),
        free_heads=True,
        whole_heads=True,
    ),
    "qwen2": Family(
        around=(_EMBEDDING, _NORM, _OUTPUT, _may("output.bias", "vocab")),
        layer=(*_NORMS, _ATTN_OUTPUT),
        dense=_GATED,
        whole_heads=True,
    ),
    "qwen3": Family(
        around=(_EMBEDDING, _NORM, _OUTPUT),
        layer=(*_NORMS, *_HEAD_NORMS, _ATTN_OUTPUT),
        dense=_GATED,
        free_heads=True,
        whole_heads=True,
    ),
    "gemma2": Family(
        around=(_EMBEDDING, _NORM),
        layer=(*_NORMS, *_POST_NORMS, _ATTN_OUTPUT),
        dense=_GATED,
        free_heads=True,
        window=(1, 4096),
    ),
    "gemma3": Family(
        around=(_EMBEDDING, _NORM, _OUTPUT),
        layer=(*_NORMS, *_POST_NORMS, *_HEAD_NORMS, _ATTN_OUTPUT),
        dense=_GATED,
        free_heads=True,
        window=(0, 0),
    ),
    "phi2": Family(
        around=(
            _EMBEDDING, *_BIASED_OUTPUT_NORM,
            _need("output.weight", "embd", "vocab"), _need("output.bias", "vocab"),
        ),
        layer=_BIASED_ATTENTION,
        dense=_BIASED_FFN,
        norm="layer",
    ),
    "gpt2": Family(
        around=(_EMBEDDING, _need("position_embd.weight", "embd", "ctx"), *_BIASED_OUTPUT_NORM, _OUTPUT),
        layer=(
            *_BIASED_ATTENTION,
            _need("attn_qkv.weight", "embd", "qkv"), _need("attn_qkv.bias", "qkv"),
            _need("ffn_norm.weight", "embd"), _need("ffn_norm.bias", "embd"),
        ),
        dense=_BIASED_FFN,
        attention="one",
        norm="layer",
        rotary=False,
    ),
})  # fmt: skip
