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
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import gguf
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent))  # for tests, which import tools.make_gguf

from gguf_families import FAMILIES, list_keys, list_tensors
from gguf_tensors import FILE_TYPES, count_bytes, draw
from gguf_vocab import Vocabulary, make_vocabulary, write_tokenizer_json

PHI3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}"
    "{{ '<|' + message['role'] + '|>' + '\\n' + message['content'] + '<|end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% else %}{{ eos_token }}{% endif %}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelShape:
    """
    What to write.

    Attributes:
        arch: One of `FAMILIES`.
        vocab: "spm" or "bpe".
        n_head_kv: None is 2 where the family shares keys and values among heads, else n_head.
        n_ff: Width of the feed-forward layer; None is twice n_embd.
        head_size: Width of a head; None is n_embd / n_head, and some families allow no other.
        n_expert: Of each feed-forward layer, 0 for a dense model.
        type: Type of the matrices, as `FILE_TYPES` names it; "Q4_K_M" mixes Q4_K, Q5_K and Q6_K.
        tied: No output matrix: the embedding serves. None is what the family does.
        random_blocks: Draw quantized blocks instead of quantizing drawn numbers; always so for K types.
        version: Of the format, 2 or 3.
        alignment: Of tensors in bytes, a power of two; 32 is the format's own and not written.
        n_parts: Files the model is split into; they are named NAME-00001-of-0000N.gguf.
    """

    arch: str = "phi3"
    vocab: str = "spm"
    n_vocab: int = 512
    n_ctx: int = 512
    n_embd: int = 64
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int | None = None
    n_ff: int | None = None
    head_size: int | None = None
    n_expert: int = 0
    type: str = "F32"
    tied: bool | None = None
    seed: int = 0
    chat_template: str | None = PHI3_TEMPLATE
    random_blocks: bool = False
    version: int = 3
    alignment: int = 32
    n_parts: int = 1

    def __post_init__(self) -> None:
        if self.arch not in FAMILIES:
            raise ValueError(f"arch is {self.arch!r}; allowed: {', '.join(FAMILIES)}")
        family = FAMILIES[self.arch]
        if self.type not in FILE_TYPES:
            raise ValueError(f"type is {self.type!r}; allowed: {', '.join(FILE_TYPES)}")
        if self.version not in {2, 3}:
            raise ValueError(f"version is {self.version}; allowed: 2, 3")
        if self.n_head % self.n_kv:
            raise ValueError(f"n_head_kv is {self.n_kv}; allowed: what divides the {self.n_head} heads")
        if self.head_size is None and self.n_embd % self.n_head:
            raise ValueError(f"n_head is {self.n_head}; allowed: what divides n_embd, {self.n_embd}")
        if not family.head_size and self.n_embd_q != self.n_embd:
            raise ValueError(f"head_size is {self.head_size}; {self.arch} allows only n_embd / n_head")
        if self.n_expert and not family.experts:
            raise ValueError(f"n_expert is {self.n_expert}; {self.arch} has no experts here: allowed is 0")
        if family.tied_fixed and self.is_tied != family.tied:
            raise ValueError(f"tied is {self.tied}; {self.arch} allows only {family.tied}")

    @property
    def n_inner(self) -> int:
        """Return the width of the feed-forward layer."""
        return 2 * self.n_embd if self.n_ff is None else self.n_ff

    @property
    def n_kv(self) -> int:
        """Return the number of key and value heads."""
        if self.n_head_kv is not None:
            return self.n_head_kv
        return min(2, self.n_head) if FAMILIES[self.arch].grouped else self.n_head

    @property
    def n_head_size(self) -> int:
        """Return the width of a head."""
        return self.n_embd // self.n_head if self.head_size is None else self.head_size

    @property
    def n_embd_q(self) -> int:
        """Return the width of the queries of all heads."""
        return self.n_head_size * self.n_head

    @property
    def n_embd_kv(self) -> int:
        """Return the width of a key or value of all its heads."""
        return self.n_head_size * self.n_kv

    @property
    def is_tied(self) -> bool:
        """Return whether the embedding serves as the output matrix."""
        return FAMILIES[self.arch].tied if self.tied is None else self.tied


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
        path: Where; replaced if it is there. A split model is written beside it, part by part.
        tokenizer: Write the matching tokenizer.json beside it too.
        edit: Called with the writer before anything is on disk, to spoil keys or tensors for a test.
        options: Fields of `ModelShape`.

    Returns:
        The path, of a split model that of the first part.
    """
    return write_model(path, ModelShape(**options), tokenizer=tokenizer, edit=edit)


def write_model(
    path: str | Path, shape: ModelShape, *, tokenizer: bool = False, edit: Edit | None = None
) -> Path:
    """Write a model of this shape, holding no more than one tensor in memory; return its first file."""
    target = Path(path)
    vocabulary = make_vocabulary(shape.vocab, shape.n_vocab)
    tensors = list(list_tensors(shape))
    writer = _Writer(target, shape.arch)
    if shape.alignment != 32:
        writer.add_custom_alignment(shape.alignment)
    _add_metadata(writer, shape)
    _add_vocabulary(writer, vocabulary)
    if shape.chat_template is not None:
        writer.add_chat_template(shape.chat_template)
    for tensor in tensors:
        kind = gguf.GGMLQuantizationType[tensor.type]
        n_bytes = count_bytes(tensor)
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), n_bytes, raw_dtype=kind)
    writer.tensors = _in_parts(writer.tensors[0], shape.n_parts)
    if edit is not None:
        edit(writer)
    kept = {name for part in writer.tensors for name in part}
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        paths = [Path(file.name) for file in writer.fout or ()]
        for index, tensor in enumerate(tensors):
            if tensor.name in kept:
                rng = np.random.Generator(np.random.SFC64([shape.seed, index]))
                writer.write_tensor_data(draw(tensor, rng, random_blocks=shape.random_blocks))
    finally:
        writer.close()
    for written in paths:
        _set_version(written, shape.version)
    if tokenizer:
        write_tokenizer_json(vocabulary, target.with_name("tokenizer.json"), rstrip=_is_phi3_like(shape))
    return paths[0]


def _in_parts(tensors: dict[str, Any], n_parts: int) -> list[dict[str, Any]]:
    """Deal the tensors out to parts of nearly equal count, in order."""
    if not 1 <= n_parts <= len(tensors):
        raise ValueError(f"n_parts is {n_parts}; allowed: 1..{len(tensors)}, the number of tensors")
    rows, cuts = list(tensors.items()), [len(tensors) * part // n_parts for part in range(n_parts + 1)]
    return [dict(rows[low:high]) for low, high in pairwise(cuts)]


class _Writer(gguf.GGUFWriter):  # type: ignore[misc]
    """A writer that names the alignment in every part: each is a GGUF file of its own."""

    def add_shard_kv_data(self) -> None:
        super().add_shard_kv_data()
        if self.data_alignment != 32:
            for keys in self.kv_data:
                value = gguf.GGUFValue(self.data_alignment, gguf.GGUFValueType.UINT32)
                keys.setdefault("general.alignment", value)


def _set_version(path: Path, version: int) -> None:
    """Versions 2 and 3 differ in nothing else."""
    with path.open("r+b") as file:
        file.seek(4)
        file.write(version.to_bytes(4, "little"))


def _is_phi3_like(shape: ModelShape) -> bool:
    return shape.arch == "phi3" and shape.vocab == "spm"


def _add_metadata(writer: gguf.GGUFWriter, shape: ModelShape) -> None:
    # llama.cpp goes by the name: "phi3" makes control tokens swallow the whitespace after them.
    family = "phi3" if _is_phi3_like(shape) else "model"
    writer.add_name(f"random {family} {shape.n_embd}x{shape.n_layer} seed {shape.seed}")
    for key, value in list_keys(shape):
        add = writer.add_uint32 if isinstance(value, int) else writer.add_float32
        add(f"{shape.arch}.{key}", value)
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


_NUMBERS = (
    "n_vocab", "n_ctx", "n_embd", "n_layer", "n_head", "n_head_kv", "n_ff", "head_size", "n_expert", "seed",
    "version", "alignment", "n_parts",
)  # fmt: skip


def main() -> None:
    """Read the command line and write one model."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").strip().splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="tiny")
    parser.add_argument("--tokenizer", action="store_true", help="write tokenizer.json beside it")
    parser.add_argument("--no-chat-template", action="store_true")
    parser.add_argument("--tied", action="store_true", default=None)
    parser.add_argument("--random", dest="random_blocks", action="store_true", default=None)
    parser.add_argument("--arch", choices=list(FAMILIES))
    parser.add_argument("--vocab", choices=["spm", "bpe"])
    parser.add_argument("--type", choices=list(FILE_TYPES))
    for name in _NUMBERS:
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
