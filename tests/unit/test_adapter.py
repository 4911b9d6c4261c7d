"""LoRA adapters: what is refused before llama.cpp sees it, and what a good one does to the logits."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from adapter_samples import RANK, write_adapter
from numpy.typing import NDArray

from gguf_engine import LLM, ModelFileError, ModelLoadError, OptionError
from gguf_engine.backend.base import Batch
from gguf_engine.backend.llama import LlamaBackend
from gguf_engine.cli.answer import figures
from gguf_engine.loader.adapter import check_adapter
from gguf_engine.loader.gguf import read_gguf
from gguf_engine.loader.parts import read_parts
from gguf_engine.params import EngineParams

WEIGHT = "blk.0.attn_output.weight"
A, B = f"{WEIGHT}.lora_a", f"{WEIGHT}.lora_b"
NORM = {"blk.0.attn_norm.weight": np.ones(64, np.float32)}
HALF = {"blk.1.attn_output.weight.lora_a": np.ones((RANK, 64), np.float64)}


def check(path: Path, model: Path) -> None:
    check_adapter(read_gguf(path), read_parts(read_gguf(model)))


def logits(model: Path, *lora: str) -> NDArray[np.float32]:
    backend = LlamaBackend(model, EngineParams(device="cpu", n_ctx=64, n_threads=1, lora=lora))
    batch = Batch()
    batch.add(0, 0, [5, 6, 7], 1)
    row: NDArray[np.float32] = backend.forward(batch)[0].copy()
    backend.close()
    return row


@pytest.mark.parametrize(
    ("options", "code", "says"),
    [
        ({"keys": {"general.type": "model"}}, "architecture", "'model'; allowed: 'adapter'"),
        ({"keys": {"general.type": None}}, "architecture", "None; allowed: 'adapter'"),
        ({"keys": {"adapter.type": "control_vector"}}, "architecture", "allowed: 'lora'"),
        ({"arch": "llama"}, "architecture", "'llama'; allowed: 'phi3'"),
        ({"alpha": "8"}, "architecture", "is a string; llama.cpp reads a f32"),
        ({"alpha": float("nan")}, "hyperparameter", "allowed: a finite number"),
        ({"keys": {"adapter.alora.invocation_tokens": "x"}}, "architecture", "from certain tokens on"),
        ({"weights": ()}, "tensor_missing", "holds no tensors"),
        ({"without": (A,)}, "tensor_missing", f"{A}: is missing beside {B}"),
        ({"without": (B,)}, "tensor_missing", f"{B}: is missing beside {A}"),
        ({"weights": ("blk.9.attn_output.weight",)}, "tensor_unknown", "which the model does not have"),
        ({"extra": NORM}, "tensor_unknown", "llama.cpp ignores it"),
        ({"extra": HALF}, "tensor_type", "is F64; allowed: F32, F16, BF16, Q8_0"),
        ({"shapes": {A: (32, RANK)}}, "tensor_shape", "has shape [32, 4]; blk.0.attn_output.weight needs"),
        ({"shapes": {B: (RANK, 32)}}, "tensor_shape", "needs [4, 64]"),
        ({"shapes": {A: (64, 3)}}, "tensor_shape", "has shape [64, 3]"),
    ],
)
def test_what_is_no_adapter_of_this_model_is_refused(
    tiny_model: Path, tmp_path: Path, options: dict[str, Any], code: str, says: str
) -> None:
    path = write_adapter(tmp_path / "adapter.gguf", tiny_model, **options)
    with pytest.raises(ModelFileError) as caught:
        check(path, tiny_model)
    assert caught.value.code == code
    assert says in str(caught.value)


def test_a_bias_cannot_be_adapted(make_tiny_model: Callable[..., Path], tmp_path: Path) -> None:
    model = make_tiny_model(arch="qwen2")
    bias = {f"blk.0.attn_q.bias.lora_{part}": np.ones((4, 4), np.float32) for part in "ab"}
    path = write_adapter(tmp_path / "adapter.gguf", model, extra=bias)
    with pytest.raises(ModelFileError, match="which is no matrix"):
        check(path, model)


def test_a_model_is_no_adapter(tiny_model: Path) -> None:
    with pytest.raises(ModelFileError, match="name a LoRA adapter"):
        check(tiny_model, tiny_model)


def test_an_embedding_that_is_the_output_too_is_refused_because_llama_cpp_aborts(
    make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    tied = make_tiny_model(arch="llama", tied=True)
    path = write_adapter(tmp_path / "adapter.gguf", tied, weights=("token_embd.weight",))
    with pytest.raises(ModelFileError, match="the output matrix too"):
        check(path, tied)
    code = """
import sys
from pathlib import Path
from gguf_engine.backend.base import Batch
from gguf_engine.backend.llama import LlamaBackend
from gguf_engine.params import EngineParams
params = EngineParams(n_ctx=64, n_threads=1, lora=(sys.argv[2],))
batch = Batch()
batch.add(0, 0, [5], 1)
LlamaBackend(Path(sys.argv[1]), params).forward(batch)
"""
    command = [sys.executable, "-c", code, str(tied), str(path)]
    assert subprocess.run(command, capture_output=True, check=False).returncode < 0


def test_an_embedding_of_its_own_can_be_adapted(
    make_tiny_model: Callable[..., Path], tmp_path: Path
) -> None:
    model = make_tiny_model(arch="llama", tied=False)
    path = write_adapter(tmp_path / "adapter.gguf", model, weights=("token_embd.weight",))
    check(path, model)
    assert not np.array_equal(logits(model, str(path)), logits(model))


def test_an_adapter_changes_the_logits_and_scale_0_does_not(tiny_model: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter.gguf", tiny_model)
    check(path, tiny_model)
    plain, adapted = logits(tiny_model), logits(tiny_model, str(path))
    assert np.abs(adapted - plain).max() > 1e-3
    assert np.array_equal(logits(tiny_model, f"{path}=0"), plain)
    assert np.array_equal(logits(tiny_model, f"{path}=1"), adapted)
    assert not np.array_equal(logits(tiny_model, f"{path}=-1"), adapted)


def test_an_adapter_of_zeros_changes_nothing(tiny_model: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter.gguf", tiny_model, fill=0.0)
    assert np.array_equal(logits(tiny_model, str(path)), logits(tiny_model))


def test_the_scale_is_relative_to_alpha_over_rank(tiny_model: Path, tmp_path: Path) -> None:
    strong = write_adapter(tmp_path / "strong.gguf", tiny_model, alpha=8.0)
    weak = write_adapter(tmp_path / "weak.gguf", tiny_model, alpha=4.0)
    assert np.array_equal(logits(tiny_model, f"{weak}=2"), logits(tiny_model, str(strong)))


def test_two_adapters_work_together(tiny_model: Path, tmp_path: Path) -> None:
    first = write_adapter(tmp_path / "first.gguf", tiny_model)
    second = write_adapter(tmp_path / "second.gguf", tiny_model, weights=("blk.1.ffn_down.weight",))
    both = logits(tiny_model, str(first), str(second))
    assert not np.array_equal(both, logits(tiny_model, str(first)))
    assert not np.array_equal(both, logits(tiny_model, str(second)))


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_loaded_model_says_which_adapters_it_has(
    tiny_model: Path, tmp_path: Path, isolation: Any
) -> None:
    path = write_adapter(tmp_path / "adapter.gguf", tiny_model)
    options: dict[str, Any] = {"n_ctx": 64, "n_threads": 1, "isolation": isolation}
    greedy: dict[str, Any] = {"temperature": 0, "max_tokens": 8, "ignore_eos": True}
    with LLM.load(tiny_model, **options) as plain:
        before = plain.generate([5, 6, 7], **greedy)
    with LLM.load(tiny_model, lora=[f"{path}=2.5"], **options) as llm:
        assert llm.placement is not None
        assert llm.placement.adapters == {str(path): 2.5}
        adapted = llm.generate([5, 6, 7], **greedy)
        assert adapted.token_ids != before.token_ids
        assert f"adapter        {path} (scale 2.5)" in figures(adapted, llm)


def test_load_refuses_an_adapter_that_is_missing_broken_or_not_a_number(
    tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(OptionError, match=r"lora is .*missing\.gguf"):
        LLM.load(tiny_model, lora=[tmp_path / "missing.gguf"])
    bad = write_adapter(tmp_path / "bad.gguf", tiny_model, fill=float("nan"))
    with pytest.raises(ModelFileError, match="tensor_data"):
        LLM.load(tiny_model, lora=[bad])
    other = write_adapter(tmp_path / "other.gguf", tiny_model, arch="llama")
    with pytest.raises(ModelFileError, match="made for this model"):
        LLM.load(tiny_model, lora=[other])


def test_without_the_checks_llama_cpp_says_why_it_refuses(tiny_model: Path, tmp_path: Path) -> None:
    other = write_adapter(tmp_path / "other.gguf", tiny_model, arch="llama")
    with pytest.raises(ModelLoadError, match="arch mismatch"):
        LLM.load(tiny_model, preflight=False, lora=[other], n_ctx=64, n_threads=1)


def test_one_adapter_twice_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = write_adapter(tmp_path / "adapter.gguf", tiny_model)
    with pytest.raises(OptionError, match="each adapter once"):
        LLM.load(tiny_model, lora=[path, f"{path}=2"], n_ctx=64, n_threads=1)
