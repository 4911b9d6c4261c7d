"""Well-formed files that would kill or fool llama.cpp, refused by key or tensor; good ones let through."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import pytest
from gguf_tensors import FILE_TYPES
from make_gguf import Edit, write_tiny_model

from gguf_engine import preflight
from gguf_engine.errors import ModelFileError
from gguf_engine.loader.gguf import GGUFFile, TensorInfo, read_gguf
from gguf_engine.loader.resolve import resolve_model

VALUE = gguf.GGUFValueType
TOKENS = "tokenizer.ggml.tokens"
SCORES = "tokenizer.ggml.scores"
TYPES = "tokenizer.ggml.token_type"


def put(key: str, value: Any, kind: Any = None, sub_type: Any = None) -> Edit:
    """Return an edit that sets a key; the type stays what it was unless given."""

    def edit(writer: gguf.GGUFWriter) -> None:
        keys = writer.kv_data[0]
        old = keys.get(key)
        keys[key] = gguf.gguf_writer.GGUFValue(value, kind or old.type, sub_type or (old and old.sub_type))

    return edit


def drop(key: str) -> Edit:
    return lambda writer: writer.kv_data[0].pop(key)


def change(key: str, index: int, value: Any) -> Edit:
    """Return an edit that sets one element of an array."""

    def edit(writer: gguf.GGUFWriter) -> None:
        values = list(writer.kv_data[0][key].value)
        values[index] = value
        writer.kv_data[0][key].value = values

    return edit


def reshape(name: str, shape: tuple[int, ...], kind: Any = gguf.GGMLQuantizationType.F32) -> Edit:
    """Return an edit of the tensor table; the data that follow are still of the old size."""

    def edit(writer: gguf.GGUFWriter) -> None:
        info = writer.tensors[0][name]
        info.shape, info.dtype = shape, kind

    return edit


def refusal(path: Path) -> ModelFileError:
    with pytest.raises(ModelFileError) as caught:
        preflight(path)
    return caught.value


@pytest.mark.parametrize("vocab", ["spm", "bpe"])
@pytest.mark.parametrize("arch", ["phi3", "llama"])
def test_generated_models_pass(make_tiny_model: Callable[..., Path], arch: str, vocab: str) -> None:
    preflight(make_tiny_model(arch=arch, vocab=vocab))
    preflight(make_tiny_model(arch=arch, vocab=vocab, tied=True, type="Q8_0"))


@pytest.mark.parametrize("kind", FILE_TYPES)
def test_every_common_block_type_passes(make_tiny_model: Callable[..., Path], kind: str) -> None:
    preflight(make_tiny_model(type=kind, n_embd=256))


def test_the_bundled_model_passes() -> None:
    preflight(resolve_model("haiku").weights)


def test_a_header_that_was_read_before_is_taken_as_it_is(tiny_model: Path) -> None:
    preflight(read_gguf(tiny_model))
    preflight(str(tiny_model))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("phi3.block_count", 0),
        ("phi3.block_count", 513),
        ("phi3.context_length", 0),
        ("phi3.embedding_length", 0),
        ("phi3.feed_forward_length", 0),
        ("phi3.attention.head_count", 0),
        ("phi3.attention.head_count", 3),
        ("phi3.attention.head_count_kv", 0),
        ("phi3.attention.head_count_kv", 3),
        ("phi3.rope.dimension_count", 0),
        ("phi3.rope.dimension_count", 15),
        ("phi3.rope.dimension_count", 18),
        ("phi3.rope.freq_base", 0.0),
        ("phi3.rope.freq_base", float("inf")),
        ("phi3.rope.freq_base", float("nan")),
        ("phi3.attention.layer_norm_rms_epsilon", 0.0),
        ("phi3.attention.layer_norm_rms_epsilon", 1.0),
        ("phi3.attention.layer_norm_rms_epsilon", float("nan")),
    ],
)
def test_a_hyperparameter_out_of_range_is_refused_with_its_value(
    tmp_path: Path, key: str, value: Any
) -> None:
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=put(key, value)))
    assert (error.code, error.where) == ("hyperparameter", key)
    assert str(value) in str(error)


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("phi3.rope.scaling.type", "spiral", VALUE.STRING),
        ("phi3.rope.scaling.factor", float("nan"), VALUE.FLOAT32),
        ("phi3.expert_used_count", 2, VALUE.UINT32),
        ("phi3.attention.key_length", 0, VALUE.UINT32),
        ("phi3.attention.value_length", 8, VALUE.UINT32),
        ("phi3.block_count", 2, VALUE.INT32),
        ("phi3.block_count", "2", VALUE.STRING),
        ("phi3.rope.freq_base", 10000, VALUE.UINT32),
        ("phi3.attention.head_count_kv", [2, 2, 2], VALUE.ARRAY),
        ("phi3.attention.head_count_kv", [2, 0], VALUE.ARRAY),
        ("phi3.attention.head_count_kv", [2, -1], VALUE.ARRAY),
    ],
)
def test_a_key_that_llama_cpp_would_stumble_over_is_refused(
    tmp_path: Path, key: str, value: Any, kind: str
) -> None:
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=put(key, value, kind)))
    assert (error.code, error.where) == ("hyperparameter", key)


@pytest.mark.parametrize(
    "key",
    ["phi3.block_count", "phi3.context_length", "phi3.attention.head_count",
     "phi3.attention.layer_norm_rms_epsilon"],
)  # fmt: skip
def test_a_missing_hyperparameter_is_named(tmp_path: Path, key: str) -> None:
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=drop(key)))
    assert (error.code, error.where) == ("hyperparameter", key)


def test_a_llama_turns_whole_heads(tmp_path: Path) -> None:
    edit = put("llama.rope.dimension_count", 8)
    error = refusal(write_tiny_model(tmp_path / "m.gguf", arch="llama", edit=edit))
    assert "is 8; this architecture needs the head size, 16" in str(error)


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (put(TOKENS, ["a"]), SCORES),
        (change(TOKENS, 400, "<s>"), TOKENS),
        (change(TOKENS, 400, "a\0b"), TOKENS),
        (change(TOKENS, 400, b"\xff\xfe"), TOKENS),
        (change(TOKENS, 10, "no byte"), TYPES),
        (change(TYPES, 10, 1), None),
        (change(TYPES, 400, 6), TYPES),
        (change(TYPES, 400, 7), TYPES),
        (put(TYPES, [1.0] * 512, sub_type=VALUE.FLOAT32), TYPES),
        (put(SCORES, [0] * 512, sub_type=VALUE.INT64), SCORES),
        (put(SCORES, [0] * 512, sub_type=VALUE.INT32), None),
        (change(SCORES, 400, float("nan")), SCORES),
        (change(SCORES, 400, float("-inf")), SCORES),
        (change(TOKENS, 400, "[EMPTY_399]"), None),
        (change(TOKENS, 400, ""), None),
        (change(TOKENS, 400, "a" * 1024), None),
        (change(TOKENS, 400, "a" * 1025), TOKENS),
        (put(TYPES, [1] * 255 + [7] + [1] * 256), TYPES),
        (put("tokenizer.ggml.model", "wordlist"), "tokenizer.ggml.model"),
        (put(SCORES, [0.0] * 511), SCORES),
        (put(TOKENS, list(range(512)), sub_type=VALUE.INT32), TOKENS),
        (drop(TOKENS), TOKENS),
        (drop("tokenizer.ggml.model"), "tokenizer.ggml.model"),
    ],
)
def test_a_vocabulary_that_aborts_llama_cpp_is_refused(
    tmp_path: Path, edit: Edit, where: str | None
) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", edit=edit)
    if where is None:
        preflight(path)
        return
    error = refusal(path)
    assert (error.code, error.where) == ("vocabulary", where)


def test_an_empty_text_is_called_after_its_id_and_must_not_meet_that_name(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        change(TOKENS, 400, "")(writer)
        change(TOKENS, 399, "")(writer)
        change(TOKENS, 398, "[EMPTY_400]")(writer)

    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=edit))
    assert "'[EMPTY_400]' is the text of both id 398 and id 400" in str(error)


def test_a_vocabulary_without_types_or_scores_passes(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        drop(TYPES)(writer)
        drop(SCORES)(writer)

    preflight(write_tiny_model(tmp_path / "m.gguf", vocab="bpe", edit=drop(TYPES)))
    preflight(write_tiny_model(tmp_path / "m.gguf", edit=edit))


def test_texts_have_a_bound_together(make_tiny_model: Callable[..., Path]) -> None:
    header = read_gguf(make_tiny_model())
    long = tuple(f"{index}-" + "a" * 1000 for index in range(9000))
    keys = {TOKENS: long, SCORES: (0.0,) * 9000, TYPES: (1,) * 9000}
    with pytest.raises(ModelFileError, match=r"have 90\d+ characters together"):
        preflight(replace(header, metadata=header.metadata | keys))


def test_a_stranger_s_text_is_cut_short_in_the_sentence(tmp_path: Path) -> None:
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=put("tokenizer.ggml.model", "x" * 9999)))
    assert f"is '{'x' * 99}...; allowed: llama, gpt2" in str(error)


def test_a_missing_byte_token_is_named(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        change(TOKENS, 10, "odd")(writer)
        change(TYPES, 10, 1)(writer)

    assert "lack <0x07>" in str(refusal(write_tiny_model(tmp_path / "m.gguf", edit=edit)))


def test_equal_texts_are_named_with_both_ids(tmp_path: Path) -> None:
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=change(TOKENS, 400, "<s>")))
    assert "'<s>' is the text of both id 1 and id 400" in str(error)


def test_a_byte_level_vocabulary_needs_its_merges(tmp_path: Path) -> None:
    edit = drop("tokenizer.ggml.merges")
    error = refusal(write_tiny_model(tmp_path / "m.gguf", vocab="bpe", edit=edit))
    assert error.where == "tokenizer.ggml.merges"


def test_a_model_named_phi3_needs_the_tokens_that_llama_cpp_looks_up(tmp_path: Path) -> None:
    edit = put("general.name", "My Phi-3 mini")
    error = refusal(write_tiny_model(tmp_path / "m.gguf", vocab="bpe", edit=edit))
    assert "lack '</s>'" in str(error)


@pytest.mark.parametrize("name", ["bos", "eos", "unknown"])
def test_a_special_id_outside_the_vocabulary_is_refused(tmp_path: Path, name: str) -> None:
    key = f"tokenizer.ggml.{name}_token_id"
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=put(key, 512)))
    assert (error.code, error.where) == ("special_id", key)
    assert "is 512; allowed: 0..511" in str(error)


def test_a_beginning_of_text_cannot_be_added_without_its_id(tmp_path: Path) -> None:
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=drop("tokenizer.ggml.bos_token_id")))
    assert (error.code, error.where) == ("special_id", "tokenizer.ggml.add_bos_token")


@pytest.mark.parametrize(
    ("arch", "name"),
    [
        ("phi3", "token_embd.weight"),
        ("phi3", "output_norm.weight"),
        ("phi3", "blk.0.attn_qkv.weight"),
        ("phi3", "blk.1.ffn_down.weight"),
        ("llama", "blk.0.attn_q.weight"),
        ("llama", "blk.1.ffn_gate.weight"),
    ],
)
def test_a_missing_tensor_is_named(tmp_path: Path, arch: str, name: str) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        del writer.tensors[0][name]

    error = refusal(write_tiny_model(tmp_path / "m.gguf", arch=arch, edit=edit))
    assert (error.code, error.where) == ("tensor_missing", name)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("token_embd.weight", (256, 128)),
        ("output.weight", (128, 256)),
        ("blk.0.attn_qkv.weight", (64, 128)),
        ("blk.1.ffn_up.weight", (128, 128)),
        ("blk.1.ffn_norm.weight", (8, 8)),
    ],
)
def test_a_tensor_of_another_shape_is_named_with_both(
    tmp_path: Path, name: str, shape: tuple[int, ...]
) -> None:
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=reshape(name, shape)))
    assert (error.code, error.where) == ("tensor_shape", name)
    assert str(list(reversed(shape))) in str(error)


@pytest.mark.parametrize("kind", ["I32"])
def test_integer_weights_are_refused(tmp_path: Path, kind: str) -> None:
    edit = reshape("blk.0.attn_output.weight", (64, 64), gguf.GGMLQuantizationType[kind])
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=edit))
    assert (error.code, error.where) == ("tensor_type", "blk.0.attn_output.weight")


def test_a_norm_of_half_precision_is_refused(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        info = writer.tensors[0]["output_norm.weight"]
        info.dtype, info.shape = gguf.GGMLQuantizationType.F16, (128,)

    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=edit))
    assert (error.code, error.where) == ("tensor_type", "output_norm.weight")


@pytest.mark.parametrize(
    ("edit", "says"),
    [
        (put("general.architecture", "clip"), "a vision projector"),
        (put("general.type", "adapter", VALUE.STRING), "is 'adapter'"),
        (drop("general.architecture"), "is missing"),
        (put("general.architecture", 3, VALUE.UINT32), "is a u32"),
    ],
)
def test_a_file_that_is_no_language_model_is_refused(tmp_path: Path, edit: Edit, says: str) -> None:
    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=edit))
    assert error.code == "architecture"
    assert says in str(error)


def with_experts(path: Path, n_expert: int) -> GGUFFile:
    """Return the header of a dense llama with its feed-forward layers made a mixture of experts."""
    dense = read_gguf(path)
    tensors = [row for row in dense.tensors if ".ffn_" not in row.name or "norm" in row.name]
    for layer in (0, 1):
        shapes = {"gate_inp": (64, n_expert), "gate_exps": (64, 128, 4), "up_exps": (64, 128, 4)}
        shapes["down_exps"] = (128, 64, 4)
        tensors += [
            TensorInfo(f"blk.{layer}.ffn_{name}.weight", shape, "F32", 0, 0)
            for name, shape in shapes.items()
        ]
    metadata = dense.metadata | {"llama.expert_count": 4, "llama.expert_used_count": 2}
    types = dense.value_types | {"llama.expert_count": "u32", "llama.expert_used_count": "u32"}
    return replace(dense, tensors=tuple(tensors), metadata=metadata, value_types=types)


def test_a_mixture_of_experts_has_their_tensors(make_tiny_model: Callable[..., Path]) -> None:
    path = make_tiny_model(arch="llama")
    preflight(with_experts(path, 4))
    with pytest.raises(ModelFileError, match="the keys imply") as caught:
        preflight(with_experts(path, 8))
    assert caught.value.where == "blk.0.ffn_gate_inp.weight"


def test_attention_inputs_may_be_one_matrix_or_three(make_tiny_model: Callable[..., Path]) -> None:
    fused, apart = read_gguf(make_tiny_model(arch="phi3")), read_gguf(make_tiny_model(arch="llama"))
    taken = {row.name: row for row in fused.tensors} | {
        row.name: row for row in apart.tensors if row.name.split(".")[-2] in {"attn_q", "attn_k", "attn_v"}
    }
    rows = tuple(row for row in taken.values() if "qkv" not in row.name)
    preflight(replace(fused, tensors=rows))
    matrices = tuple(row for row in fused.tensors if "attn_qkv" in row.name)
    rest = tuple(
        row for row in apart.tensors if row.name.split(".")[-2] not in {"attn_q", "attn_k", "attn_v"}
    )
    preflight(replace(apart, tensors=rest + matrices))
    with pytest.raises(ModelFileError, match="is not a tensor of llama") as caught:
        preflight(replace(apart, tensors=apart.tensors + matrices))
    assert (caught.value.code, caught.value.where) == ("tensor_unknown", "blk.0.attn_q.weight")


def test_another_architecture_gets_the_checks_that_hold_for_all(tmp_path: Path) -> None:
    def edit(writer: gguf.GGUFWriter) -> None:
        keys = writer.kv_data[0]
        keys["general.architecture"].value = "gemma"
        for key in [key for key in keys if key.startswith("phi3.")]:
            keys["gemma" + key.removeprefix("phi3")] = keys.pop(key)

    preflight(write_tiny_model(tmp_path / "m.gguf", edit=edit))

    def edit_more(writer: gguf.GGUFWriter) -> None:
        edit(writer)
        reshape("token_embd.weight", (256, 128))(writer)

    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=edit_more))
    assert (error.code, error.where) == ("tensor_shape", "token_embd.weight")

    def edit_even_more(writer: gguf.GGUFWriter) -> None:
        edit(writer)
        del writer.tensors[0]["token_embd.weight"]

    error = refusal(write_tiny_model(tmp_path / "m.gguf", edit=edit_even_more))
    assert (error.code, error.where) == ("tensor_missing", "token_embd.weight")
