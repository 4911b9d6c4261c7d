"""
The ways in which a model file can be wrong: one named function for each, over several good models.

A mutation yields (label, what to write) for each of its variants. `list_cases` gives them all;
the functions stand in gguf_mutate_*.py by what they break.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from gguf_raw import RawModel, read_raw
from make_gguf import write_tiny_model

Content = RawModel | bytes | Callable[[Path], Path]
"""A file's parts, its bytes, or a function that makes it in a folder and returns its path."""
Variants = Iterator[tuple[str, Content]]


@dataclass(frozen=True, slots=True)
class Base:
    """
    A good model to break.

    Attributes:
        name: Says its family, vocabulary and type.
        raw: Its parts; mutations copy before they change.
        options: What `write_tiny_model` made it from.
    """

    name: str
    raw: RawModel
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Mutation:
    """
    A way to break a model.

    Attributes:
        name: Its function's.
        breaks: What it breaks, in a line.
        make: The function.
        once: The model matters so little that one is enough.
        harmless: What it makes must be accepted and work.
    """

    name: str
    breaks: str
    make: Callable[[Base], Variants]
    once: bool
    harmless: bool


@dataclass(frozen=True, slots=True)
class Case:
    """One broken file: which mutation of which model, and the variant."""

    mutation: Mutation
    base: str
    label: str
    content: Content

    @property
    def name(self) -> str:
        """Return what identifies it."""
        return f"{self.mutation.name}/{self.base}/{self.label}"

    def write(self, folder: Path) -> Path:
        """Write the file into a folder and return its path."""
        if callable(self.content):
            return self.content(folder)
        path = folder / "model.gguf"
        path.write_bytes(self.content if isinstance(self.content, bytes) else self.content.to_bytes())
        return path


MUTATIONS: dict[str, Mutation] = {}


def mutation(
    *, once: bool = False, harmless: bool = False
) -> Callable[[Callable[[Base], Variants]], Callable[[Base], Variants]]:
    """Register a mutation; its docstring says what it breaks."""

    def register(make: Callable[[Base], Variants]) -> Callable[[Base], Variants]:
        breaks = (make.__doc__ or "").strip().splitlines()[0]
        MUTATIONS[make.__name__] = Mutation(make.__name__, breaks, make, once, harmless)
        return make

    return register


_SMALL: dict[str, Any] = {"n_vocab": 400, "n_embd": 32, "n_layer": 2, "n_ctx": 64}
BASES: dict[str, dict[str, Any]] = {
    "phi3-spm-f32": {"arch": "phi3"},
    "llama-bpe-q8_0": {"arch": "llama", "vocab": "bpe", "type": "Q8_0"},
    "llama-moe-spm-q4_0": {"arch": "llama", "n_expert": 4, "type": "Q4_0"},
    "qwen2-bpe-f16": {"arch": "qwen2", "vocab": "bpe", "type": "F16"},
    "qwen3-spm-f32": {"arch": "qwen3", "head_size": 16},
    "gemma2-spm-f32": {"arch": "gemma2"},
    "gemma3-bpe-bf16": {"arch": "gemma3", "vocab": "bpe", "type": "BF16"},
    "phi2-bpe-f32": {"arch": "phi2", "vocab": "bpe"},
    "gpt2-bpe-q5_0": {"arch": "gpt2", "vocab": "bpe", "type": "Q5_0"},
    "llama-spm-q4_k-v2": {"arch": "llama", "type": "Q4_K", "n_embd": 256, "version": 2, "alignment": 64},
    "stablelm-spm-f32": {"arch": "stablelm"},
    "starcoder2-bpe-f32": {"arch": "starcoder2", "vocab": "bpe"},
}  # fmt: skip


def make_bases(folder: Path, names: Iterable[str] = tuple(BASES)) -> list[Base]:
    """Write the good models into a folder and return them in parts."""
    made = []
    for name in names:
        options = _SMALL | BASES[name]
        path = write_tiny_model(folder / f"{name}.gguf", **options)
        made.append(Base(name, read_raw(path), options))
    return made


def names_of_mutations() -> tuple[str, ...]:
    """Return the names of all mutations."""
    for part in ("format", "tensors", "keys", "vocabulary", "files"):
        import_module(f"gguf_mutate_{part}")  # which registers
    return tuple(MUTATIONS)


def list_cases(
    bases: Sequence[Base],
    mutations: Iterable[str] | None = None,
    *,
    at_most: int | None = None,
    seed: int = 0,
) -> Iterator[Case]:
    """
    Yield every case: each mutation over each base, one after the other.

    Args:
        bases: From `make_bases`.
        mutations: Names; None is all.
        at_most: Variants to draw, of each mutation of each base; None is all.
        seed: Of the draw.
    """
    known = names_of_mutations()
    for name in known if mutations is None else mutations:
        chosen = MUTATIONS[name]
        for base in bases[:1] if chosen.once else bases:
            variants = chosen.make(base)
            if at_most is not None:
                variants = _draw(variants, at_most, random.Random(f"{name} {base.name} {seed}"))
            for label, content in variants:
                yield Case(chosen, base.name, label, content)


def _draw(variants: Variants, count: int, rng: random.Random) -> Variants:
    """Yield `count` of them, each as likely as the others, holding no more than that."""
    kept: list[tuple[str, Content]] = []
    for index, variant in enumerate(variants):
        if len(kept) < count:
            kept.append(variant)
        elif (at := rng.randrange(index + 1)) < count:
            kept[at] = variant
    yield from kept
