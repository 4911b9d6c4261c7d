"""The `tokenizers` library at arm's length: files checked, panics caught, loaded objects changed."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import tokenizers

from gguf_engine.errors import TokenizerError
from gguf_engine.text.pieces import DecoderKind, decoder_kind, steps
from gguf_engine.text.tokenizer_json import read_tokenizer_json

Place = Literal["start", "after", "inside"]
"""Of a text: at the very start, after a control token, or going on from other text."""


@contextmanager
def guard(what: str) -> Iterator[None]:
    """Turn whatever `tokenizers` raises into a TokenizerError, its Rust panics too."""
    try:
        yield
    except TokenizerError:
        raise
    except Exception as error:
        raise TokenizerError(f"{what}: {error}") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise TokenizerError(f"{what}: tokenizers panicked ({error})") from error


def load(path: Path) -> tuple[tokenizers.Tokenizer, int]:
    """
    Load a tokenizer.json, with nothing in it that drops or draws: no truncation, padding or dropout.

    Returns:
        The tokenizer, and one more than its largest id.

    Raises:
        TokenizerError: No such file, or one that is not safe to load or cannot be loaded.
    """
    file = read_tokenizer_json(path)
    with guard(f"{path} is not a tokenizer.json that can be loaded"):
        built = tokenizers.Tokenizer.from_str(file.text)
        built.no_truncation()
        built.no_padding()
        if getattr(built.model, "dropout", None) is not None:
            built.model.dropout = None
        for content, i in file.added.items():
            # The library gives a new id to a token whose own is not the next free one, and says nothing.
            if built.token_to_id(content) != i:
                raise TokenizerError(
                    f"{path}: the added token {content[:100]!r} has the id {i}, but loads as "
                    f"{built.token_to_id(content)}; ids of added tokens go on where the vocabulary ends"
                )
    return built, file.n_vocab


def _state(component: Any) -> dict[str, Any] | None:
    """Return a component of a tokenizer as its JSON."""
    if component is None:
        return None
    loaded: dict[str, Any] = json.loads(component.__getstate__())
    return loaded


def decoding(built: tokenizers.Tokenizer) -> tuple[DecoderKind, bool]:
    """Return which table fits the decoder, and whether it drops a leading space."""
    decoder = _state(built.decoder)
    kind = decoder_kind(decoder, _state(built.pre_tokenizer))
    strips = kind == "spm" and any(step["type"] == "Strip" for step in steps(decoder, "decoders"))
    return kind, strips


def unknown_id(built: tokenizers.Tokenizer) -> int | None:
    """Return the id for what the vocabulary lacks; None where bytes stand in for it."""
    unknown = getattr(built.model, "unk_token", None)
    return built.token_to_id(unknown) if unknown else None


def _loaded(text: str) -> tokenizers.Tokenizer:
    loaded = tokenizers.Tokenizer.from_str(text)
    # This setting is not saved.
    loaded.encode_special_tokens = True
    return loaded


def mark_special(built: tokenizers.Tokenizer, special_ids: frozenset[int]) -> tokenizers.Tokenizer:
    """Return a tokenizer in which these added tokens are special, so that text does not give them."""
    flags = built.get_added_tokens_decoder()
    unmarked = [i for i in special_ids if i in flags and not flags[i].special]
    if not unmarked:
        return built
    marked = _loaded(built.to_str())
    marked.add_special_tokens(
        [
            tokenizers.AddedToken(
                flags[i].content,
                special=True,
                normalized=False,
                lstrip=flags[i].lstrip,
                rstrip=flags[i].rstrip,
                single_word=flags[i].single_word,
            )
            for i in unmarked
        ]
    )
    return marked


def without_space(built: tokenizers.Tokenizer, place: Place) -> tokenizers.Tokenizer:
    """
    Return the tokenizer for text that does not begin the whole.

    After a control token a Metaspace of scheme "first" adds no space, while the normalizer of Llama's
    kind does: `tokenizers` normalizes each text between added tokens by itself. Inside a text, no
    step may add one.
    """
    data = json.loads(built.to_str())
    changed = False
    for step in steps(data["pre_tokenizer"], "pretokenizers"):
        if step.get("prepend_scheme") == "first" or (place == "inside" and "prepend_scheme" in step):
            step["prepend_scheme"], changed = "never", True
        elif place == "inside" and step.get("add_prefix_space"):
            step["add_prefix_space"], changed = False, True
    if place == "inside":
        kept = [n for n in steps(data["normalizer"], "normalizers") if n.get("type") != "Prepend"]
        data["normalizer"], changed = {"type": "Sequence", "normalizers": kept}, True
    if not changed:
        return built
    return _loaded(json.dumps(data))
