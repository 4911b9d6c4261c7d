"""Small tokenizers made on the spot: SentencePiece-like and byte-level, as JSON and as GGUF metadata."""

from __future__ import annotations

import ctypes
import json
from functools import lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gguf
import tokenizers
from hypothesis import settings, strategies
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

from gguf_engine.text.tokenizer import Tokenizer

calm = settings(deadline=None)
"""For property tests: a busy machine fails none of them."""

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

CORPUS = [
    "The ice is quiet now. A puck slides over the blue line, and the goalkeeper waits.",
    "Write a haiku about ice hockey! What's the capital of France? It isn't 1234567.",
    "Eis und Schnee überall; ein Tor fällt. Où est la crosse? 冬の氷 静かな音 🏒🏒 привет мир",
    "def score(x):\n    return x + 1\n\n\n\tprint(score(41))  # forty-two\r\n   ...   ",
    "aaaa aaa aa a bananas banana ananas abab ababab babab",
] * 3

PHI3_CONTROLS = ("<|endoftext|>", "<|assistant|>", "<|end|>", "<|user|>", "<|system|>")
LLAMA3_CONTROLS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
)

PHI3_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{'<|' + message['role'] + '|>' + '\n' "
    "+ message['content'] + '<|end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}"
)
LLAMA3_TEMPLATE = (
    "{% for message in messages %}{% set content = '<|start_header_id|>' + message['role'] "
    "+ '<|end_header_id|>\n\n' + message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

LLAMA3_REGEX = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

TEXTS = [
    "Hello",
    " two  spaces ",
    "ice hockey 🏒",
    "über Où\n\n\tx",
    "1234567 it's",
    "冬の氷",
    "👩‍👩‍👧 é e\u0301",
    "▁ and Ġ",
    "aaaaaaa",
    "\r\n \n",
]


def any_text(controls: tuple[str, ...]) -> strategies.SearchStrategy[str]:
    """Text of every kind, with control texts, halves of them and their characters mixed in."""
    halves = [text[:cut] for text in controls for cut in (1, 2, len(text) - 1)]
    ends = [text[cut:] for text in controls for cut in (1, 2, len(text) - 1)]
    parts = strategies.one_of(
        strategies.text(max_size=8),
        strategies.sampled_from([*controls, *halves, *ends, *TEXTS]),
        strategies.text(alphabet="<|>end/sunk _▁ \n", max_size=6),
    )
    return strategies.lists(parts, max_size=8).map("".join)


@lru_cache
def spm_metadata(size: int = 600) -> dict[str, Any]:
    """A vocabulary as a SentencePiece model's GGUF has it, with Phi-3's control tokens at its end."""
    words = tokenizers.Tokenizer(models.BPE(unk_token="<unk>"))  # noqa: S106 - a piece, no password
    words.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    words.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
    words.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=size - 264, show_progress=False))
    by_id = {i: piece for piece, i in words.get_vocab().items()}
    # The trainer numbers characters first; SentencePiece has them last, with the lowest scores.
    learned = [by_id[i] for i in sorted(by_id)]
    pieces = sorted(learned, key=lambda piece: len(piece) == 1)
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *pieces, *PHI3_CONTROLS]
    first, n_pieces = 259, len(pieces)
    types = (
        [UNKNOWN, CONTROL, CONTROL] + [BYTE] * 256 + [NORMAL] * n_pieces + [CONTROL] * len(PHI3_CONTROLS)
    )
    return {
        "general.architecture": "llama",
        "general.name": "phi3",
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": [0.0] * first + [-float(i) for i in range(n_pieces)] + [-1000.0] * 5,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": first + n_pieces,
        "tokenizer.ggml.unknown_token_id": 0,
        "tokenizer.ggml.add_bos_token": True,
    }


@lru_cache
def spm_json() -> str:
    """The same vocabulary as a tokenizer.json of Phi-3's kind: its control tokens swallow white space."""
    metadata = spm_metadata()
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    vocab = {text: i for i, text in enumerate(tokens)}
    known = {text for text, kind in zip(tokens, types, strict=True) if kind == NORMAL}
    merges = [
        (piece[:cut], piece[cut:])
        for piece in tokens
        if piece in known
        for cut in range(len(piece) - 1, 0, -1)
        if piece[:cut] in known and piece[cut:] in known
    ]
    built = tokenizers.Tokenizer(
        models.BPE(vocab, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True)  # noqa: S106
    )
    built.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    built.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    keeps = ("<unk>", "<s>", "<|endoftext|>")
    built.add_special_tokens(
        [
            tokenizers.AddedToken(text, special=True, normalized=False, rstrip=text not in keeps)
            for text, kind in zip(tokens, types, strict=True)
            if kind in (CONTROL, UNKNOWN)
        ]
    )
    return str(built.to_str())


@lru_cache
def byte_level_json(controls: tuple[str, ...] = LLAMA3_CONTROLS, regex: str = LLAMA3_REGEX) -> str:
    """A byte-level tokenizer.json of Llama 3's kind: a post-processor begins every text with BOS."""
    built = tokenizers.Tokenizer(models.BPE())
    built.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(regex), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    built.decoder = decoders.ByteLevel()
    built.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=600, show_progress=False, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
        ),
    )
    built.add_special_tokens([tokenizers.AddedToken(text, special=True) for text in controls])
    bos = controls[0]
    built.post_processor = processors.TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, built.token_to_id(bos))]
    )
    return str(built.to_str())


@lru_cache
def byte_level_metadata(pre: str = "llama-bpe") -> dict[str, Any]:
    """The same vocabulary as a GGUF has it."""
    data = json.loads(byte_level_json())
    added = {token["content"]: token["id"] for token in data["added_tokens"]}
    by_id = {i: text for text, i in (data["model"]["vocab"] | added).items()}
    tokens = [by_id[i] for i in range(len(by_id))]
    return {
        "general.architecture": "llama",
        "general.name": "sample",
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [CONTROL if text in added else NORMAL for text in tokens],
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else " ".join(merge) for merge in data["model"]["merges"]
        ],
        "tokenizer.ggml.bos_token_id": added["<|begin_of_text|>"],
        "tokenizer.ggml.eos_token_id": added["<|end_of_text|>"],
    }


@lru_cache
def from_json(text: str) -> Tokenizer:
    """A tokenizer.json as this package loads it."""
    with TemporaryDirectory() as folder:
        path = Path(folder, "tokenizer.json")
        path.write_text(text, encoding="utf-8")
        return Tokenizer.from_file(path)


def hf(text: str) -> tokenizers.Tokenizer:
    """A tokenizer.json as the `tokenizers` library itself loads it: the oracle of many tests."""
    return tokenizers.Tokenizer.from_str(text)


def write_gguf(path: Path, metadata: dict[str, Any]) -> Path:
    """Write a GGUF that holds a vocabulary and no tensor."""
    writer = gguf.GGUFWriter(path, metadata["general.architecture"])
    for key, value in metadata.items():
        if key == "general.architecture":
            continue
        if isinstance(value, list):
            writer.add_array(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path


class LlamaVocab:
    """llama.cpp's own tokenizer over a GGUF without tensors: the oracle of the GGUF tests."""

    def __init__(self, path: Path) -> None:
        from llama_cpp import llama_cpp

        self._lib = llama_cpp
        params = llama_cpp.llama_model_default_params()
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        assert self._model, f"llama.cpp refused {path}"
        self._vocab = llama_cpp.llama_model_get_vocab(self._model)

    def encode(self, text: str, *, control_tokens: bool = False, add_bos: bool = False) -> list[int]:
        data = text.encode()
        room = len(data) + 16
        ids = (ctypes.c_int32 * room)()
        n_ids = self._lib.llama_tokenize(self._vocab, data, len(data), ids, room, add_bos, control_tokens)
        assert n_ids >= 0
        return list(ids[:n_ids])

    def close(self) -> None:
        self._lib.llama_model_free(self._model)
