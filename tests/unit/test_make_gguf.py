"""Generated models: llama.cpp loads them, decodes finite logits, cuts text as their tokenizer.json does."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from gguf_families import FAMILIES
from gguf_tensors import FILE_TYPES, Tensor, draw_blocks
from gguf_vocab import make_vocabulary
from make_gguf import PHI3_MINI, ModelShape, write_tiny_model
from tokenizers import Tokenizer

from gguf_engine.loader.gguf import read_gguf

TEXTS = [
    "Hello world, the ice is cold.",
    "  two  spaces\n\tand a tab",
    "héllo ✓ 日本 \U0001f9ca",
    "<|user|>\nWrite a poem<|end|>\n<|assistant|>\n",
]

# Run in a child process: a file that is wrong may abort llama.cpp.
PROBE = """
import ctypes, json, sys
import llama_cpp as L, numpy as np
quiet = L.llama_log_callback(lambda level, text, data: None)
L.llama_log_set(quiet, None)
answers = []
for path in sys.argv[2:]:
    params = L.llama_model_default_params()
    params.n_gpu_layers = 0
    model = L.llama_model_load_from_file(path.encode(), params)
    context_params = L.llama_context_default_params()
    context_params.n_ctx, context_params.n_threads = 64, 1
    context = L.llama_init_from_model(model, context_params)
    vocab = L.llama_model_get_vocab(model)
    ids = (L.llama_token * 4)(1, 5, 100, 300)
    status = L.llama_decode(context, L.llama_batch_get_one(ids, 4))
    row = np.ctypeslib.as_array(L.llama_get_logits_ith(context, -1), (L.llama_vocab_n_tokens(vocab),))
    cut = []
    for text in json.loads(sys.argv[1]):
        out, data = (L.llama_token * 256)(), text.encode()
        cut.append(list(out[: L.llama_tokenize(vocab, data, len(data), out, 256, True, True)]))
    answers.append([status, bool(np.isfinite(row).all()), float(row.std()), cut])
    L.llama_free(context)
    L.llama_model_free(model)
print(json.dumps(answers))
"""


def in_llama_cpp(paths: list[Path]) -> Any:
    command = [sys.executable, "-c", PROBE, json.dumps(TEXTS), *map(str, paths)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=100)
    assert result.returncode == 0, result.stderr[-2000:]
    return json.loads(result.stdout)


# What a file may be besides its family, vocabulary and type.
ODDITIES: list[dict[str, Any]] = [
    {"arch": "llama", "n_expert": 4, "type": "Q8_0"},
    {"arch": "llama", "n_expert": 1, "n_embd": 256, "type": "Q5_K"},
    {"arch": "llama", "version": 2, "alignment": 64},
    {"arch": "gemma3", "alignment": 4096, "n_parts": 3},
    {"arch": "phi3", "version": 2, "n_parts": 4},
    {"arch": "qwen3", "head_size": 32, "tied": True},
    {"arch": "gemma2", "head_size": 8, "n_head": 3, "n_head_kv": 1},
    {"arch": "qwen2", "tied": True, "n_head_kv": 4},
    {"arch": "gpt2", "tied": False, "n_head_kv": 1},
]


@pytest.mark.e2e
def test_every_family_vocabulary_and_type_decodes_finite_logits(tmp_path: Path) -> None:
    vocabs = {arch: ("spm", "bpe")[index % 2] for index, arch in enumerate(FAMILIES)}
    plain: list[dict[str, Any]] = [
        {"arch": arch, "vocab": vocab, "type": kind, "n_embd": 256}
        for arch, vocab in vocabs.items()
        for kind in (FILE_TYPES if arch in {"phi3", "llama"} else ("F16", "Q4_0", "Q6_K"))
    ]
    other = [{"arch": arch, "vocab": "bpe" if vocab == "spm" else "spm"} for arch, vocab in vocabs.items()]
    options = [*plain, *other, *ODDITIES]
    paths = [write_tiny_model(tmp_path / f"{index}.gguf", **chosen) for index, chosen in enumerate(options)]
    for chosen, (status, finite, spread, _) in zip(options, in_llama_cpp(paths), strict=True):
        assert (status, finite) == (0, True), chosen
        assert 1 < spread < 12, chosen


@pytest.mark.e2e
@pytest.mark.parametrize("vocab", ["spm", "bpe"])
@pytest.mark.parametrize("arch", ["phi3", "llama"])
def test_tokenizer_json_cuts_text_as_llama_cpp_does(tmp_path: Path, arch: str, vocab: str) -> None:
    path = write_tiny_model(tmp_path / "m.gguf", arch=arch, vocab=vocab, n_vocab=600, tokenizer=True)
    tokenizer = Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    ((_, _, _, cut),) = in_llama_cpp([path])
    assert cut == [tokenizer.encode(text).ids for text in TEXTS]


def test_the_same_seed_writes_the_same_bytes_and_another_seed_others(tmp_path: Path) -> None:
    first, again, other = (
        write_tiny_model(tmp_path / name, seed=seed).read_bytes()
        for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == again
    assert first != other


def test_a_vocabulary_has_the_size_asked_for_and_unique_texts() -> None:
    for kind in ("spm", "bpe"):
        for n_vocab in (400, 512, 32064):
            vocabulary = make_vocabulary(kind, n_vocab)
            assert len(set(vocabulary.tokens)) == len(vocabulary.types) == len(vocabulary.scores) == n_vocab


@pytest.mark.parametrize("kind", ["Q4_0", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_random_blocks_stand_for_numbers_of_the_spread_asked_for(kind: str) -> None:
    blocks = draw_blocks(Tensor("w", (64, 2048), kind, 0.5), np.random.default_rng(0))
    numbers = gguf.quants.dequantize(blocks, gguf.GGMLQuantizationType[kind])
    assert np.isfinite(numbers).all()
    assert abs(numbers.mean()) < 0.1
    assert 0.45 < numbers.std() < 0.55


def test_phi3_mini_has_its_published_shape() -> None:
    assert (PHI3_MINI.n_layer, PHI3_MINI.n_embd, PHI3_MINI.n_inner, PHI3_MINI.n_vocab) == (
        32,
        3072,
        8192,
        32064,
    )


@pytest.mark.parametrize(
    "options",
    [{"arch": "gpt5"}, {"type": "Q9"}, {"n_head": 5}, {"n_head_kv": 3}, {"n_vocab": 300}, {"vocab": "wp"},
     {"type": "Q4_K", "n_embd": 64}, {"arch": "phi2", "tied": True}, {"arch": "gemma2", "tied": False},
     {"arch": "phi3", "head_size": 8}, {"arch": "phi3", "n_expert": 4}, {"version": 1}, {"n_parts": 99}],
)  # fmt: skip
def test_what_cannot_be_written_is_refused(tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"\d|allowed"):
        write_tiny_model(tmp_path / "m.gguf", **options)


def test_a_split_model_has_every_tensor_once_and_the_alignment_in_every_part(tmp_path: Path) -> None:
    whole = read_gguf(write_tiny_model(tmp_path / "whole.gguf"))
    first = write_tiny_model(tmp_path / "m.gguf", n_parts=4, alignment=64)
    assert first == tmp_path / "m-00001-of-00004.gguf"
    parts = [read_gguf(tmp_path / f"m-{number:05}-of-00004.gguf") for number in range(1, 5)]
    assert [part.alignment for part in parts] == [64] * 4
    names = [tensor.name for part in parts for tensor in part.tensors]
    assert names == [tensor.name for tensor in whole.tensors]


def test_the_version_is_the_one_asked_for(tmp_path: Path) -> None:
    written = [read_gguf(write_tiny_model(tmp_path / f"{v}.gguf", version=v)).version for v in (2, 3)]
    assert written == [2, 3]


def test_an_unknown_option_is_an_error() -> None:
    with pytest.raises(TypeError):
        ModelShape(n_heads=4)  # type: ignore[call-arg]


def test_the_command_writes_a_file_and_says_its_size(tmp_path: Path) -> None:
    script = Path(__file__).parents[2] / "tools" / "make_gguf.py"
    command = [
        sys.executable,
        str(script),
        "--arch",
        "llama",
        "--n-layer",
        "1",
        "--tokenizer",
        "--no-chat-template",
    ]
    result = subprocess.run(
        [*command, str(tmp_path / "m.gguf")], capture_output=True, text=True, check=True
    )
    assert result.stdout.split()[1] == str((tmp_path / "m.gguf").stat().st_size)
    assert (tmp_path / "tokenizer.json").is_file()
