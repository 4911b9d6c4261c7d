"""
Write valid GGUF models with random weights, for tests and benchmarks.

    python tools/make_gguf.py --arch phi3 --vocab spm --type Q8_0 --tokenizer tiny.gguf
    python tools/make_gguf.py --shape phi3-mini phi3-mini-random-q4_k_m.gguf

The first is a few hundred kilobytes. The second has Phi-3-mini's exact shape and the block types of
Q4_K_M (2.4 GB), written tensor by tensor: it computes what the real model computes, and says nothing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which import tools.make_gguf

from gguf_vocab import Vocabulary, make_vocabulary, write_tokenizer_json

Bytes = NDArray[np.uint8]
PHI3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
FILE_TYPES |= {"Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q4_K_M": 15, "Q5_K": 17, "Q6_K": 18}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """
    What to write.

    Attributes:
        arch: "phi3" (fused attention and feed-forward inputs) or "llama".
        vocab: "spm" or "bpe".
        n_ff: Width of the feed-forward layer; None is twice n_embd.
        type: Type of the matrices, as `FILE_TYPES` names it; "Q4_K_M" mixes Q4_K, Q5_K and Q6_K.
        tied: No output matrix: the embedding serves.
        random_blocks: Draw quantized blocks instead of quantizing drawn numbers; always so for K types.
    """

    arch: str = "phi3"
    vocab: str = "spm"
    n_vocab: int = 512
    n_ctx: int = 512
    n_embd: int = 64
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    n_ff: int | None = None
    type: str = "F32"
    tied: bool = False
    seed: int = 0
    chat_template: str | None = PHI3_TEMPLATE
    random_blocks: bool = False

    def __post_init__(self) -> None:
        if self.arch not in {"phi3", "llama"}:
            raise ValueError(f"arch is {self.arch!r}; allowed: phi3, llama")
        if self.type not in FILE_TYPES:
            raise ValueError(f"type is {self.type!r}; allowed: {', '.join(FILE_TYPES)}")
        if self.n_embd % self.n_head or self.n_head % self.n_head_kv:
            raise ValueError(
                f"n_embd {self.n_embd}, n_head {self.n_head}, n_head_kv {self.n_head_kv}: "
                "each must divide the one before"
            )

    @property
    def n_inner(self) -> int:
        """Return the width of the feed-forward layer."""
        return 2 * self.n_embd if self.n_ff is None else self.n_ff

    @property
    def n_embd_kv(self) -> int:
        """Return the width of a key or value of all its heads."""
        return self.n_embd // self.n_head * self.n_head_kv


PHI3_MINI = ModelShape(
    n_vocab=32064, n_ctx=4096, n_embd=3072, n_layer=32, n_head=32, n_head_kv=32, n_ff=8192,
    type="Q4_K_M", random_blocks=True,
)  # fmt: skip
SHAPES = {"tiny": ModelShape(), "phi3-mini": PHI3_MINI}

Edit = Callable[[gguf.GGUFWriter], None]


def write_tiny_model(
    path: str | Path, *, tokenizer: bool = False, edit: Edit | None = None, **options: Any
) -> Path:
    """
    Write a small model that llama.cpp loads and decodes with finite logits.

    Args:
        path: Where; replaced if it is there.
        tokenizer: Write the matching tokenizer.json beside it too.
        edit: Called with the writer before anything is on disk, to spoil keys or tensors for a test.
        options: Fields of `ModelShape`.
    """
    return write_model(path, ModelShape(**options), tokenizer=tokenizer, edit=edit)


def write_model(
    path: str | Path, shape: ModelShape, *, tokenizer: bool = False, edit: Edit | None = None
) -> Path:
    """Write a model of this shape, holding no more than one tensor in memory."""
    target = Path(path)
    vocabulary = make_vocabulary(shape.vocab, shape.n_vocab)
    writer = gguf.GGUFWriter(target, shape.arch)
    _add_metadata(writer, shape)
    _add_vocabulary(writer, vocabulary)
    if shape.chat_template is not None:
        writer.add_chat_template(shape.chat_template)
    for tensor in _tensors(shape):
        kind = gguf.GGMLQuantizationType[tensor.type]
        writer.add_tensor_info(
            tensor.name, tensor.shape, np.dtype(np.float32), _n_bytes(tensor), raw_dtype=kind
        )
    if edit is not None:
        edit(writer)
    kept = dict(writer.tensors[0])
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for index, tensor in enumerate(_tensors(shape)):
            if tensor.name in kept:
                rng = np.random.Generator(np.random.SFC64([shape.seed, index]))
                writer.write_tensor_data(_draw(tensor, rng, random_blocks=shape.random_blocks))
    finally:
        writer.close()
    if tokenizer:
        write_tokenizer_json(vocabulary, target.with_name("tokenizer.json"), rstrip=_is_phi3_like(shape))
    return target


def _is_phi3_like(shape: ModelShape) -> bool:
    return shape.arch == "phi3" and shape.vocab == "spm"


def _add_metadata(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    n_rot = shape.n_embd // shape.n_head
    # llama.cpp goes by the name: "phi3" makes control tokens swallow the whitespace after them.
    family = "phi3" if _is_phi3_like(shape) else "model"
    writer.add_name(f"random {family} {shape.n_embd}x{shape.n_layer} seed {shape.seed}")
    writer.add_context_length(shape.n_ctx)
    writer.add_embedding_length(shape.n_embd)
    writer.add_block_count(shape.n_layer)
    writer.add_feed_forward_length(shape.n_inner)
    writer.add_head_count(shape.n_head)
    writer.add_head_count_kv(shape.n_head_kv)
    writer.add_rope_dimension_count(n_rot)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_file_type(FILE_TYPES[shape.type])
    writer.add_quantization_version(2)


def _add_vocabulary(writer: gguf.GGUFWriter, vocabulary: Vocabulary) -> None:
    writer.add_tokenizer_model(vocabulary.metadata_name)
    writer.add_tokenizer_pre("default" if vocabulary.kind == "spm" else "gpt-2")
    writer.add_token_list(vocabulary.tokens)
    writer.add_token_types(vocabulary.types)
    if vocabulary.kind == "spm":
        writer.add_token_scores(vocabulary.scores)
    else:
        writer.add_token_merges([" ".join(pair) for pair in vocabulary.merges] or ["a b"])
    writer.add_bos_token_id(vocabulary.bos)
    writer.add_eos_token_id(vocabulary.eos)
    writer.add_unk_token_id(vocabulary.unknown)
    writer.add_add_bos_token(vocabulary.kind == "spm")
    writer.add_add_eos_token(False)


@dataclass(frozen=True, slots=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]  # rows first, as numpy has it
    type: str
    std: float  # of the numbers drawn; 0 for a tensor of ones


def _tensors(shape: ModelShape) -> Iterator[_Tensor]:
    """Yield every tensor in the order of the file. Spreads keep activations and logits near 1 to 3."""
    mixed = shape.type == "Q4_K_M"
    base = "Q4_K" if mixed else shape.type
    n, n_kv, n_ff = shape.n_embd, shape.n_embd_kv, shape.n_inner
    in_std, ff_std, out_std = n**-0.5, n_ff**-0.5, 3.0 * n**-0.5
    yield _Tensor("token_embd.weight", (shape.n_vocab, n), base, out_std if shape.tied else 0.5)
    yield _Tensor("output_norm.weight", (n,), "F32", 0.0)
    if not shape.tied:
        yield _Tensor("output.weight", (shape.n_vocab, n), "Q6_K" if mixed else base, out_std)
    for layer in range(shape.n_layer):
        down = "Q6_K" if mixed and _more_bits(layer, shape.n_layer) else base
        yield _Tensor(f"blk.{layer}.attn_norm.weight", (n,), "F32", 0.0)
        if shape.arch == "phi3":
            qkv = "Q5_K" if mixed else base
            yield _Tensor(f"blk.{layer}.attn_qkv.weight", (n + 2 * n_kv, n), qkv, in_std)
        else:
            yield _Tensor(f"blk.{layer}.attn_q.weight", (n, n), base, in_std)
            yield _Tensor(f"blk.{layer}.attn_k.weight", (n_kv, n), base, in_std)
            yield _Tensor(f"blk.{layer}.attn_v.weight", (n_kv, n), down, in_std)
        yield _Tensor(f"blk.{layer}.attn_output.weight", (n, n), base, in_std)
        yield _Tensor(f"blk.{layer}.ffn_norm.weight", (n,), "F32", 0.0)
        if shape.arch == "phi3":
            yield _Tensor(f"blk.{layer}.ffn_up.weight", (2 * n_ff, n), base, in_std)
        else:
            yield _Tensor(f"blk.{layer}.ffn_gate.weight", (n_ff, n), base, in_std)
            yield _Tensor(f"blk.{layer}.ffn_up.weight", (n_ff, n), base, in_std)
        yield _Tensor(f"blk.{layer}.ffn_down.weight", (n, n_ff), down, ff_std)


def _more_bits(layer: int, n_layer: int) -> bool:
    """Source: use_more_bits of llama.cpp's quantizer, which makes the M mixes."""
    eighth = n_layer // 8
    return layer < eighth or layer >= 7 * n_layer // 8 or (layer - eighth) % 3 == 2


def _n_bytes(tensor: _Tensor) -> int:
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
    if tensor.shape[-1] % block:
        raise ValueError(
            f"{tensor.name} has rows of {tensor.shape[-1]}; {tensor.type} needs a multiple of {block}"
        )
    return int(np.prod(tensor.shape, dtype=np.int64)) // int(block) * int(size)


def _draw(tensor: _Tensor, rng: np.random.Generator, *, random_blocks: bool) -> NDArray[Any]:
    if tensor.std == 0.0:
        return np.ones(tensor.shape, dtype=np.float32)
    if tensor.type in _BLOCKS and (random_blocks or tensor.type.endswith("_K")):
        return _draw_blocks(tensor, rng)
    numbers: NDArray[Any] = rng.standard_normal(tensor.shape, dtype=np.float32) * np.float32(tensor.std)
    if tensor.type == "F32":
        return numbers
    if tensor.type == "F16":
        half: NDArray[Any] = numbers.astype(np.float16)
        return half
    quantized: Bytes = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[tensor.type])
    return quantized


@dataclass(frozen=True, slots=True)
class _Block:
    scale_at: int  # byte of the fp16 scale d
    spread: float  # standard deviation of the numbers of a block of random bits at d = 1
    min_at: int | None = None  # byte of the fp16 dmin
    min_ratio: float = 0.0  # dmin / d that makes the mean zero


# With uniform bits E[q] = (2^b-1)/2, and a Q4_K number is d*sc*q - dmin*m with sc and m uniform
# in 0..63; zero mean needs dmin = E[q]*d, and the variance over d^2 is then
# E[sc^2]E[q^2] - (E[sc]E[q])^2 + E[q]^2 var(m).
_BLOCKS = {
    "Q4_0": _Block(0, 4.61),
    "Q8_0": _Block(0, 73.9),
    "Q2_K": _Block(80, 13.9, 82, 1.5),
    "Q3_K": _Block(108, 43.0),
    "Q4_K": _Block(0, 257.0, 2, 7.5),
    "Q5_K": _Block(0, 524.0, 2, 15.5),
    "Q6_K": _Block(208, 1365.0),
}


def _draw_blocks(tensor: _Tensor, rng: np.random.Generator) -> Bytes:
    """Return random bits under one finite fp16 scale a block."""
    block = _BLOCKS[tensor.type]
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
    n_bytes = _n_bytes(tensor)
    blocks: Bytes = np.frombuffer(bytearray(rng.bytes(n_bytes)), dtype=np.uint8).reshape(-1, int(size))
    scale = np.float16(tensor.std / block.spread)
    blocks[:, block.scale_at : block.scale_at + 2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
    if block.min_at is not None:
        least = np.float16(tensor.std / block.spread * block.min_ratio)
        blocks[:, block.min_at : block.min_at + 2] = np.frombuffer(least.tobytes(), dtype=np.uint8)
    return blocks


def main() -> None:
    """Read the command line and write one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--tokenizer", action="store_true", help="write tokenizer.json beside it")
    parser.add_argument("--no-chat-template", action="store_true")
    parser.add_argument("--tied", action="store_true", default=None)
    parser.add_argument("--random", dest="random_blocks", action="store_true", default=None)
    parser.add_argument("--arch", choices=["phi3", "llama"])
    parser.add_argument("--vocab", choices=["spm", "bpe"])
    parser.add_argument("--type", choices=list(FILE_TYPES))
    for name in ("n_vocab", "n_ctx", "n_embd", "n_layer", "n_head", "n_head_kv", "n_ff", "seed"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int)
    given = {name: value for name, value in vars(parser.parse_args()).items() if value is not None}
    out, shape = given.pop("out"), SHAPES[given.pop("shape")]
    tokenizer, no_template = given.pop("tokenizer"), given.pop("no_chat_template")
    if no_template:
        given["chat_template"] = None
    path = write_model(out, replace(shape, **given), tokenizer=tokenizer)
    print(f"{path} {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
