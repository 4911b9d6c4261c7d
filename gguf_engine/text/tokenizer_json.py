"""
A tokenizer.json from a stranger → its text and facts, refused where `tokenizers` would be harmed by it.

The library trusts its files: it runs any pattern, makes a text as long as a rule says, aborts the
process when memory ends. What it is given is checked here first, against lists of what is known.
"""

from __future__ import annotations

import base64
import json
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gguf_engine.errors import TokenizerError
from gguf_engine.text.patterns import PatternError, check_pattern
from gguf_engine.text.vocabulary import MAX_ADDED, MAX_TOKENS

MAX_FILE_BYTES = 64 * 2**20
MAX_VALUES = 2**21
"""Values in the file, counted as commas; Gemma's vocabulary of 262,144 pieces has 1.3 million."""
MAX_LISTS = 2**20
MAX_PIECE_CHARS = 4096
MAX_UNIGRAM_NODES = 3 * 2**18
"""Different beginnings of a Unigram model's pieces, in bytes: the library keeps a table for each."""
MAX_ADDED_CHARS = 3 * 2**18
MAX_STEPS = 64
MAX_NESTING = 4
MAX_GROWTH = 64
"""How many characters the normalizers, or the decoders, may make of one."""
MAX_TEXT_CHARS = 256
MAX_CHARSMAP_CHARS = 2**21
MAX_WORD_CHARS = 1000

_WAY_OUT = "pass the model's own tokenizer.json, or none: most GGUF files hold the vocabulary too"
_MODELS = (None, "BPE", "Unigram", "WordLevel", "WordPiece")
_NORMALIZERS = (
    "BertNormalizer ByteLevel Lowercase NFC NFD NFKC NFKD Nmt Precompiled Prepend Replace Strip "
    "StripAccents"
)
_PRE_TOKENIZERS = (
    "BertPreTokenizer ByteLevel CharDelimiterSplit Digits FixedLength Metaspace Punctuation Split "
    "UnicodeScripts Whitespace WhitespaceSplit"
)
_PROCESSORS = "BertProcessing ByteLevel RobertaProcessing TemplateProcessing"
_DECODERS = "BPEDecoder ByteFallback ByteLevel CTC Fuse Metaspace Replace Strip WordPiece"
_KINDS = {
    "normalizer": ("normalizers", _NORMALIZERS),
    "pre_tokenizer": ("pretokenizers", _PRE_TOKENIZERS),
    "post_processor": ("processors", _PROCESSORS),
    "decoder": ("decoders", _DECODERS),
}
_REPR = reprlib.Repr()
_REPR.maxstring = 100


class TokenizerFile(NamedTuple):
    """
    A checked tokenizer.json.

    Attributes:
        text: What `tokenizers` may be given.
        n_vocab: One more than the largest id.
        added: The id of each added token.
    """

    text: str
    n_vocab: int
    added: Mapping[str, int]


def read_tokenizer_json(path: Path) -> TokenizerFile:
    """
    Read and check a tokenizer.json.

    Raises:
        TokenizerError: No such file, too large, not JSON, or with something in it that is on none of
            our lists; names the part.
    """
    text = _read(path)
    data = _parse(text, path)
    try:
        ids, added = _vocabulary(data)
        for part in _KINDS:
            _check_part(data, part)
        n_vocab = 1 + max(max(ids.values(), default=-1), max(added.values(), default=-1))
        _check_special_ids(data.get("post_processor"), n_vocab)
    except _RefusedError as error:
        raise TokenizerError(f"{path}: {error}; {_WAY_OUT}") from error
    return TokenizerFile(text, n_vocab, added)


class _RefusedError(Exception):
    """What is wrong, without the path."""


def _read(path: Path) -> str:
    if not path.is_file():
        kind = "is a directory" if path.is_dir() else "does not exist or is no regular file"
        raise TokenizerError(f"{path} {kind}; expected a tokenizer.json")
    try:
        with path.open("rb") as file:
            # Read, not asked for: a file may grow.
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise TokenizerError(f"{path} cannot be read: {error.strerror}") from error
    if len(data) > MAX_FILE_BYTES:
        size = path.stat().st_size
        raise TokenizerError(f"{path} has {size} bytes; a tokenizer.json may have {MAX_FILE_BYTES}")
    n_lists = data.count(b"[") + data.count(b"{")
    if data.count(b",") > MAX_VALUES or n_lists > MAX_LISTS:
        raise TokenizerError(
            f"{path} holds {data.count(b',')} values and {n_lists} lists; "
            f"allowed: {MAX_VALUES} and {MAX_LISTS}; {_WAY_OUT}"
        )
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise TokenizerError(f"{path} is not UTF-8 at byte {error.start}") from error


def _parse(text: str, path: Path) -> dict[str, Any]:
    try:
        data = json.loads(text, object_pairs_hook=_unique)
    except _RefusedError as error:
        raise TokenizerError(f"{path}: {error}; {_WAY_OUT}") from error
    except (ValueError, RecursionError) as error:
        raise TokenizerError(f"{path} is not JSON: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("model"), dict):
        raise TokenizerError(f"{path} is not a tokenizer.json: it has no model with a vocab")
    return data


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Refuse a key held twice: this parser and the library's could take different ones."""
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise _RefusedError(f"it holds the key {_short(twice)} twice in one object")
    return found


def _vocabulary(data: dict[str, Any]) -> tuple[dict[str, int], dict[str, int]]:
    """Return the id of each piece, and of each added token."""
    model = data["model"]
    kind, vocab = model.get("type"), model.get("vocab")
    if kind not in _MODELS:
        raise _RefusedError(f"its model is {_short(kind)}; allowed: {', '.join(filter(None, _MODELS))}")
    if isinstance(vocab, list):
        ids = _unigram_ids(vocab)
    elif isinstance(vocab, dict):
        ids = vocab
    else:
        raise _RefusedError("it has no model with a vocab")
    for piece, i in ids.items():
        if type(i) is not int or not 0 <= i < MAX_TOKENS:
            raise _RefusedError(f"the piece {_short(piece)} has the id {i}; allowed: 0..{MAX_TOKENS - 1}")
        if len(piece) > MAX_PIECE_CHARS:
            raise _RefusedError(f"id {i} is a piece of {len(piece)} characters; allowed: {MAX_PIECE_CHARS}")
    if len(set(ids.values())) != len(ids):
        raise _RefusedError(_twins(ids))
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "unk_token"):
        _text(model, name, "model", required=False)
    if _number(model.get("max_input_chars_per_word", 0), "model.max_input_chars_per_word") > MAX_WORD_CHARS:
        raise _RefusedError(f"model.max_input_chars_per_word is more than {MAX_WORD_CHARS}")
    return ids, _added_ids(data.get("added_tokens"), ids)


def _unigram_ids(vocab: list[Any]) -> dict[str, int]:
    ids: dict[str, int] = {}
    for i, entry in enumerate(vocab):
        if not (isinstance(entry, list) and len(entry) == 2 and isinstance(entry[0], str)):
            raise _RefusedError(f"id {i} of the vocab is {_short(entry)}; allowed: [text, score]")
        if entry[0] in ids:
            raise _RefusedError(f"the ids {ids[entry[0]]} and {i} are both {_short(entry[0])}")
        ids[entry[0]] = i
    if sum(map(len, ids)) > MAX_UNIGRAM_NODES // 4 and _n_beginnings(ids) > MAX_UNIGRAM_NODES:
        raise _RefusedError(f"its pieces have more than {MAX_UNIGRAM_NODES} different beginnings")
    return ids


def _n_beginnings(pieces: Iterable[str]) -> int:
    n_bytes, before = 0, b""
    for piece in sorted(piece.encode("utf-8", "replace") for piece in pieces):
        shared = 0
        for one, other in zip(before, piece, strict=False):
            if one != other:
                break
            shared += 1
        n_bytes += len(piece) - shared
        before = piece
    return n_bytes


def _twins(ids: Mapping[str, int]) -> str:
    first: dict[int, str] = {}
    for piece, i in ids.items():
        if i in first:
            return f"id {i} is both {_short(first[i])} and {_short(piece)}"
        first[i] = piece
    raise AssertionError("no two pieces have one id")


def _added_ids(added: Any, ids: Mapping[str, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    if added is None:
        return found
    if not isinstance(added, list) or len(added) > MAX_ADDED:
        raise _RefusedError(f"added_tokens is no list of at most {MAX_ADDED} tokens")
    by_id = {i: piece for piece, i in ids.items()} if added else {}
    for n, token in enumerate(added):
        if not isinstance(token, dict):
            raise _RefusedError(
                f"added_tokens[{n}] is {_short(token)}; allowed: an object with id and content"
            )
        i, content = token.get("id"), token.get("content")
        if type(i) is not int or not 0 <= i < MAX_TOKENS:
            raise _RefusedError(f"added_tokens[{n}] has the id {i}; allowed: 0..{MAX_TOKENS - 1}")
        if not isinstance(content, str) or not content:
            raise _RefusedError(f"added_tokens[{n}] (id {i}) has no content")
        if by_id.setdefault(i, content) != content:
            raise _RefusedError(f"id {i} is both {_short(by_id[i])} and {_short(content)}")
        if ids.get(content, i) != i or found.setdefault(content, i) != i:
            other = ids.get(content, found.get(content))
            raise _RefusedError(f"the ids {other} and {i} are both {_short(content)}")
    n_chars = sum(map(len, found))
    if n_chars > MAX_ADDED_CHARS:
        raise _RefusedError(f"its added tokens have {n_chars} characters; allowed: {MAX_ADDED_CHARS}")
    return found


def _check_part(data: Mapping[str, Any], part: str) -> None:
    member, kinds = _KINDS[part]
    growth = 1
    for n, step in enumerate(_steps(data.get(part), part, member, 0)):
        kind = step.get("type")
        if kind not in kinds.split():
            raise _RefusedError(f"{part} holds a step of type {_short(kind)}; allowed: Sequence, {kinds}")
        if n >= MAX_STEPS:
            raise _RefusedError(f"{part} has more than {MAX_STEPS} steps")
        growth *= _check_step(step, f"{part}.{kind}")
        if growth > MAX_GROWTH:
            raise _RefusedError(f"{part} can make more than {MAX_GROWTH} characters of one")


def _steps(component: Any, part: str, member: str, depth: int) -> Iterator[dict[str, Any]]:
    if component is None and depth == 0:
        return
    if not isinstance(component, dict):
        raise _RefusedError(f"{part} holds {_short(component)}; allowed: an object with a type")
    if component.get("type") != "Sequence":
        yield component
        return
    inner = component.get(member)
    if not isinstance(inner, list) or depth == MAX_NESTING:
        raise _RefusedError(f"{part} holds a Sequence without {member}, or more than {MAX_NESTING} deep")
    for step in inner:
        yield from _steps(step, part, member, depth + 1)


def _check_step(step: Mapping[str, Any], where: str) -> int:
    """Return how many characters a step can make of one."""
    kind, growth = step["type"], 1
    if kind in ("Replace", "Split"):
        length = _check_match(step.get("pattern"), f"{where}.pattern")
        if kind == "Replace":
            growth = max(1, -(-len(_text(step, "content", where)) // length))
    elif kind == "Prepend":
        growth = 1 + len(_text(step, "prepend", where))
    elif kind == "Precompiled":
        growth = _charsmap_growth(step.get("precompiled_charsmap"), f"{where}.precompiled_charsmap")
    elif kind == "FixedLength" and _number(step.get("length"), f"{where}.length") < 1:
        raise _RefusedError(f"{where}.length is 0; allowed: 1 and more")
    elif kind == "Strip" and where.startswith("decoder"):
        for name in ("start", "stop"):
            if _number(step.get(name), f"{where}.{name}") > MAX_TEXT_CHARS:
                raise _RefusedError(f"{where}.{name} is {step[name]}; allowed: 0..{MAX_TEXT_CHARS}")
        _text(step, "content", where)
    for name in ("prefix", "suffix", "pad_token", "word_delimiter_token", "replacement", "delimiter"):
        _text(step, name, where, required=False)
    return growth


def _charsmap_growth(charsmap: Any, where: str) -> int:
    """
    Check SentencePiece's table of characters: u32 length of a trie, the trie, texts that end in NUL.

    The library makes room for as many bytes as the length says, and aborts when there are not.
    """
    if not isinstance(charsmap, str) or len(charsmap) > MAX_CHARSMAP_CHARS:
        raise _RefusedError(f"{where} is no text of at most {MAX_CHARSMAP_CHARS} characters")
    try:
        data = base64.b64decode(charsmap, validate=True)
    except ValueError as error:
        raise _RefusedError(f"{where} is not base64: {error}") from error
    n_trie = int.from_bytes(data[:4], "little")
    if len(data) < 4 or n_trie % 4 or not 0 < n_trie <= len(data) - 4:
        raise _RefusedError(f"{where} says its trie has {n_trie} bytes; there are {max(0, len(data) - 4)}")
    longest = max(map(len, data[4 + n_trie :].split(b"\0")))
    # Published ones replace one sign by 33 bytes at most.
    return 1 + longest // 8


def _check_match(pattern: Any, where: str) -> int:
    """Check what is looked for; return how many characters it has at least."""
    if isinstance(pattern, dict) and len(pattern) == 1:
        ((kind, text),) = pattern.items()
        if kind == "String" and isinstance(text, str) and 0 < len(text) <= MAX_TEXT_CHARS:
            return len(text)
        if kind == "Regex" and isinstance(text, str) and text:
            try:
                check_pattern(text)
            except PatternError as error:
                raise _RefusedError(f"{where} {_short(text)} {error}") from error
            return 1
    raise _RefusedError(
        f"{where} is {_short(pattern)}; allowed: a Regex, or a String of 1..{MAX_TEXT_CHARS} characters"
    )


def _check_special_ids(component: Any, n_vocab: int) -> None:
    """Refuse a post-processor that adds an id which is none."""
    for step in _steps(component, "post_processor", "processors", 0):
        where = f"post_processor.{step.get('type')}"
        ids: list[Any] = [step[name][1:2] for name in ("sep", "cls") if isinstance(step.get(name), list)]
        if step.get("type") == "TemplateProcessing":
            tokens = step.get("special_tokens")
            if not isinstance(tokens, dict) or not all(
                isinstance(token, dict) for token in tokens.values()
            ):
                raise _RefusedError(f"{where}.special_tokens is no object of tokens")
            ids += [token.get("ids") for token in tokens.values()]
            for name in ("single", "pair"):
                if not isinstance(step.get(name), list) or len(step[name]) > MAX_STEPS:
                    raise _RefusedError(f"{where}.{name} is no list of at most {MAX_STEPS} pieces")
        for group in ids:
            if not isinstance(group, list) or len(group) > MAX_STEPS:
                raise _RefusedError(f"{where} holds {_short(group)}; allowed: at most {MAX_STEPS} ids")
            for i in group:
                if type(i) is not int or not 0 <= i < n_vocab:
                    raise _RefusedError(f"{where} adds the id {_short(i)}; allowed: 0..{n_vocab - 1}")


def _text(owner: Mapping[str, Any], name: str, where: str, *, required: bool = True) -> str:
    value = owner.get(name)
    if value is None and not required:
        return ""
    if not isinstance(value, str) or len(value) > MAX_TEXT_CHARS:
        raise _RefusedError(
            f"{where}.{name} is {_short(value)}; allowed: at most {MAX_TEXT_CHARS} characters"
        )
    return value


def _number(value: Any, where: str) -> int:
    if type(value) is not int or value < 0:
        raise _RefusedError(f"{where} is {_short(value)}; allowed: 0 and more")
    return value


def _short(value: object) -> str:
    return _REPR.repr(value)
