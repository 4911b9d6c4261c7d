"""Families with full rules: good files of each pass; a key or tensor that is off is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf_families
import pytest

from gguf_engine.errors import ModelFileError
from gguf_engine.loader.families import FAMILIES
from gguf_engine.loader.gguf import GGUFFile, TensorInfo, read_gguf
from gguf_engine.loader.preflight import has_full_rules, preflight

Make = Callable[..., Path]
ABSENT = object()


def changed(header: GGUFFile, key: str, value: Any, kind: str = "u32") -> GGUFFile:
    """Return the header with one key of its architecture set, or without it."""
    name = f"{header.metadata['general.architecture']}.{key}"
    metadata, types = header.metadata | {name: value}, header.value_types | {name: kind}
    if value is ABSENT:
        del metadata[name], types[name]
    return replace(header, metadata=metadata, value_types=types)


def refusal(header: GGUFFile) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        preflight(header)
    return caught.value


@pytest.mark.parametrize("vocab", ["spm", "bpe"])
@pytest.mark.parametrize("arch", gguf_families.FAMILIES)
def test_a_generated_model_of_each_family_passes(make_tiny_model: Make, arch: str, vocab: str) -> None:
    header = read_gguf(make_tiny_model(arch=arch, vocab=vocab))
    preflight(header)
    assert has_full_rules(header) == (arch in FAMILIES)


@pytest.mark.parametrize("arch", ["llama", "qwen3", "gemma2", "gemma3"])
def test_heads_may_be_wider_than_their_share_of_the_embedding(make_tiny_model: Make, arch: str) -> None:
    preflight(make_tiny_model(arch=arch, head_size=32))


def test_a_mixture_of_experts_passes_and_needs_its_experts(make_tiny_model: Make) -> None:
    header = read_gguf(make_tiny_model(arch="llama", n_expert=4))
    preflight(header)
    error = refusal(changed(header, "expert_count", 8))
    assert (error.code, error.where) == ("tensor_shape", "blk.0.ffn_gate_inp.weight")
    rows = tuple(row for row in header.tensors if "ffn_up_exps" not in row.name)
    assert refusal(replace(header, tensors=rows)).where == "blk.0.ffn_up_exps.weight"


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_tensor_is_needed_or_may_be_missing_as_llama_cpp_has_it(
    make_tiny_model: Make, arch: str
) -> None:
    """What these files hold is required, but for these. Source: load_arch_tensors of each family."""
    optional = {"output.weight", "rope_freqs.weight"} if arch != "phi2" else set()
    if arch == "qwen2":
        optional |= {"output.bias", *(f"blk.{i}.attn_{name}.bias" for i in (0, 1) for name in "qkv")}
    if arch == "phi2":
        optional |= {f"blk.{i}.attn_{name}.bias" for i in (0, 1) for name in ("qkv", "q", "k", "v")}
    header = read_gguf(make_tiny_model(arch=arch))
    for tensor in header.tensors:
        without = replace(header, tensors=tuple(row for row in header.tensors if row is not tensor))
        if tensor.name in optional:
            preflight(without)
        else:
            error = refusal(without)
            assert (error.code, error.where) == ("tensor_missing", tensor.name)


@pytest.mark.parametrize("arch", FAMILIES)
def test_every_tensor_has_the_shape_that_the_keys_imply(make_tiny_model: Make, arch: str) -> None:
    header = read_gguf(make_tiny_model(arch=arch))
    for index, tensor in enumerate(header.tensors):
        wrong = replace(tensor, shape=(*tensor.shape[:-1], tensor.shape[-1] + 32))
        rows = (*header.tensors[:index], wrong, *header.tensors[index + 1 :])
        error = refusal(replace(header, tensors=rows))
        where = "token_embd.weight" if tensor.name == "token_embd.weight" else tensor.name
        assert (error.code, error.where) == ("tensor_shape", where)
        assert str(list(wrong.shape)) in error.what


@pytest.mark.parametrize("arch", FAMILIES)
def test_norms_and_biases_are_f32_however_their_shape_is_written(make_tiny_model: Make, arch: str) -> None:
    header = read_gguf(make_tiny_model(arch=arch))
    vectors = [row for row in header.tensors if len(row.shape) == 1]
    assert vectors
    for vector in vectors:
        for wrong in (replace(vector, type="F16"), replace(vector, type="F16", shape=(*vector.shape, 1))):
            rows = tuple(wrong if row is vector else row for row in header.tensors)
            error = refusal(replace(header, tensors=rows))
            assert (error.code, error.where) == ("tensor_type", vector.name)


@pytest.mark.parametrize("arch", FAMILIES)
def test_a_tensor_of_another_family_is_refused_and_scales_are_not(make_tiny_model: Make, arch: str) -> None:
    header = read_gguf(make_tiny_model(arch=arch))

    def with_one_more(name: str, **options: Any) -> GGUFFile:
        row = replace(TensorInfo(name, (1,), "F32", 0, 4), **options)
        return replace(header, tensors=(*header.tensors, row))

    error = refusal(with_one_more("blk.0.ssm_in.weight"))
    assert (error.code, error.where) == ("tensor_unknown", "blk.0.ssm_in.weight")
    assert f"is not a tensor of {arch}" in str(error)
    preflight(with_one_more("blk.0.attn_output.scale"))
    error = refusal(with_one_more("blk.0.attn_output.input_scale", type="F16", shape=(1, 1)))
    assert (error.code, error.where) == ("tensor_type", "blk.0.attn_output.input_scale")


WHOLE = ["phi3", "qwen2", "phi2", "gpt2"]
TURNED = ["phi3", "llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi2"]
NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("archs", "key", "value", "kind"),
    [
        ([*FAMILIES], "block_count", 0, "u32"),
        ([*FAMILIES], "block_count", 513, "u32"),
        ([*FAMILIES], "block_count", 2, "u64"),
        ([*FAMILIES], "context_length", 0, "u32"),
        ([*FAMILIES], "context_length", 7, "u32"),
        ([*FAMILIES], "context_length", 2**31, "u32"),
        ([*FAMILIES], "embedding_length", 0, "u32"),
        ([*FAMILIES], "embedding_length_out", 32, "u32"),
        ([*FAMILIES], "feed_forward_length", 0, "u32"),
        ([*FAMILIES], "feed_forward_length", (128,), "array[u32]"),
        ([*FAMILIES], "feed_forward_length", (128, 64), "array[u32]"),
        ([*FAMILIES], "attention.head_count", 0, "u32"),
        ([*FAMILIES], "attention.head_count", (4, 2), "array[u32]"),
        ([*FAMILIES], "attention.head_count", 4, "f32"),
        ([*FAMILIES], "attention.head_count_kv", 0, "u32"),
        ([*FAMILIES], "attention.head_count_kv", 3, "u32"),
        ([*FAMILIES], "attention.head_count_kv", (2, -2), "array[i32]"),
        ([*FAMILIES], "attention.value_length", 8, "u32"),
        ([*FAMILIES], "attention.causal", False, "bool"),
        ([*FAMILIES], "attention.causal", 1, "u32"),
        ([*FAMILIES], "nextn_predict_layers", 1, "u32"),
        ([*FAMILIES], "nextn_predict_layers", 2, "u32"),
        ([*FAMILIES], "expert_used_count", 2, "u32"),
        ([*FAMILIES], "expert_group_count", 1, "u32"),
        ([*FAMILIES], "rope.scaling.type", "spiral", "string"),
        ([*FAMILIES], "rope.scaling.yarn_beta_fast", INF, "f32"),
        ([*FAMILIES], "some.other.number", NAN, "f64"),
        (WHOLE, "attention.head_count", 3, "u32"),
        (WHOLE, "attention.key_length", 32, "u32"),
        (["llama"], "attention.key_length", 0, "u32"),
        (["llama", "qwen2", "qwen3"], "rope.dimension_count", 8, "u32"),
        (TURNED, "rope.dimension_count", 0, "u32"),
        (TURNED, "rope.dimension_count", 7, "u32"),
        (TURNED, "rope.dimension_count", 64, "u32"),
        (TURNED, "rope.freq_base", 0.0, "f32"),
        (TURNED, "rope.freq_base", INF, "f32"),
        (TURNED, "rope.freq_base", 10000, "u32"),
        (TURNED, "rope.scaling.factor", 1e-30, "f32"),
        (TURNED, "rope.scaling.factor", -1.0, "f32"),
        (TURNED, "rope.scale_linear", 1e30, "f32"),
        (TURNED, "rope.scaling.attn_factor", 0.0, "f32"),
        (TURNED, "rope.scaling.original_context_length", 0, "u32"),
        (["gemma2"], "attention.sliding_window", 0, "u32"),
        (["gemma2", "gemma3"], "attention.sliding_window", 2**31, "u32"),
        (["gemma2", "gemma3"], "attention.sliding_window_pattern", (True,), "array[bool]"),
        (["gemma2", "gemma3"], "attention.sliding_window_pattern", True, "bool"),
        (["gemma2", "gemma3"], "attention.sliding_window_pattern", 1, "u32"),
        (["gemma2", "gemma3"], "attention.sliding_window_pattern", (False, False), "array[bool]"),
        (["gemma2", "gemma3"], "rope.freq_base_swa", 0.0, "f32"),
        (["gemma2", "gemma3"], "attention.key_length_swa", 8, "u32"),
        (["gemma2", "gemma3"], "attention.value_length_swa", 8, "u32"),
        (["gemma2", "gemma3"], "rope.dimension_count_swa", 8, "u32"),
        (["gemma2"], "attn_logit_softcapping", 0.0, "f32"),
        (["gemma2", "gemma3"], "final_logit_softcapping", -1.0, "f32"),
    ],
)
def test_a_key_out_of_range_or_of_the_wrong_type_is_refused_by_name(
    make_tiny_model: Make, archs: list[str], key: str, value: Any, kind: str
) -> None:
    for arch in archs:
        error = refusal(changed(read_gguf(make_tiny_model(arch=arch)), key, value, kind))
        assert (error.code, error.where) == ("hyperparameter", f"{arch}.{key}")
        shown = (
            "whole"
            if isinstance(value, tuple)
            else kind
            if "llama.cpp reads" in error.what
            else str(value).lower()
        )
        assert shown == "whole" or shown in error.what


@pytest.mark.parametrize("arch", FAMILIES)
def test_the_epsilon_of_the_family_is_needed(make_tiny_model: Make, arch: str) -> None:
    name = "layer_norm_epsilon" if arch in {"phi2", "gpt2"} else "layer_norm_rms_epsilon"
    header = read_gguf(make_tiny_model(arch=arch))
    for value in (ABSENT, 0.0, 1.0, -1e-5):
        error = refusal(changed(header, f"attention.{name}", value, "f32"))
        assert (error.code, error.where) == ("hyperparameter", f"{arch}.attention.{name}")


@pytest.mark.parametrize("arch", FAMILIES)
@pytest.mark.parametrize(
    "key",
    ["block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"],
)
def test_a_key_that_nothing_stands_in_for_is_needed(make_tiny_model: Make, arch: str, key: str) -> None:
    error = refusal(changed(read_gguf(make_tiny_model(arch=arch)), key, ABSENT))
    assert (error.code, error.where) == ("hyperparameter", f"{arch}.{key}")
    assert "is missing" in error.what or "is 0" in error.what


def test_odd_heads_cannot_be_turned(make_tiny_model: Make) -> None:
    header = read_gguf(make_tiny_model(arch="llama"))
    header = changed(changed(header, "attention.key_length", 15), "attention.value_length", 15)
    assert "a head of 15 numbers cannot be turned" in str(refusal(header))


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("rope.scaling.factor", 0.0, "f32"),  # none
        ("rope.scaling.factor", 4.0, "f32"),
        ("rope.scaling.type", "yarn", "string"),
        ("attention.head_count_kv", (2, 2), "array[i32]"),
        ("attention.causal", True, "bool"),
        ("expert_count", 0, "u32"),
        ("embedding_length_out", 64, "u32"),
    ],
)
def test_a_key_that_says_what_holds_anyway_is_let_through(
    make_tiny_model: Make, key: str, value: Any, kind: str
) -> None:
    preflight(changed(read_gguf(make_tiny_model(arch="llama")), key, value, kind))


@pytest.mark.parametrize("arch", ["gemma2", "gemma3"])
@pytest.mark.parametrize("pattern", [(0, "u32"), (2, "u32"), (6, "u32"), ((True, False), "array[bool]")])
def test_windows_may_be_placed_by_a_number_or_by_layer(
    make_tiny_model: Make, arch: str, pattern: tuple[Any, str]
) -> None:
    header = changed(read_gguf(make_tiny_model(arch=arch)), "attention.sliding_window_pattern", *pattern)
    preflight(changed(header, "final_logit_softcapping", 0.0, "f32"))


@pytest.mark.parametrize(
    ("groups", "used", "where"),
    [
        (3, 1, "expert_group_count"),  # does not divide 4
        (4, 1, "expert_group_count"),  # a group must hold two
        (2, 0, "expert_group_used_count"),
        (2, 2, "expert_group_used_count"),
        (2, ABSENT, "expert_group_used_count"),
        (2, 1, "expert_group_count"),  # sound, but no family of ours has groups
    ],
)
def test_groups_of_experts_are_what_llama_cpp_asserts(
    make_tiny_model: Make, groups: int, used: Any, where: str
) -> None:
    header = changed(read_gguf(make_tiny_model(arch="llama", n_expert=4)), "expert_group_count", groups)
    header = changed(changed(header, "expert_group_used_count", 1), "expert_group_used_count", used)
    error = refusal(header)
    assert (error.code, error.where) == ("hyperparameter", f"llama.{where}")


@pytest.mark.parametrize("used", [(2, 0), (0, 2), (2, 3), (5, 5), (2,)])
def test_every_layer_uses_as_many_experts(make_tiny_model: Make, used: tuple[int, ...]) -> None:
    header = read_gguf(make_tiny_model(arch="llama", n_expert=4))
    error = refusal(changed(header, "expert_used_count", used, "array[u32]"))
    assert (error.code, error.where) == ("hyperparameter", "llama.expert_used_count")
    preflight(changed(header, "expert_used_count", (3, 3), "array[u32]"))


def test_a_dense_family_has_no_experts(make_tiny_model: Make) -> None:
    header = changed(read_gguf(make_tiny_model(arch="qwen2")), "expert_count", 4)
    error = refusal(changed(header, "expert_used_count", 2))
    assert error.where == "qwen2.expert_count"
    assert "is 4; allowed: 0" in str(error)
