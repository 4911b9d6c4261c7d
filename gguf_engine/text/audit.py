"""A tokenizer.json beside the vocabulary of a GGUF → what agrees, and the first id that does not."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from gguf_engine.errors import TokenizerError
from gguf_engine.text.vocabulary import BYTE, NORMAL, USER_DEFINED, Vocabulary

if TYPE_CHECKING:
    from gguf_engine.text.tokenizer import Tokenizer

Verdict = Literal["same", "gguf", "differs"]

_WAY_OUT = "pass the tokenizer.json of this very model, or none: the GGUF holds the vocabulary too"
_SHOWN_IDS = 8
_N_PIECE_TEXTS = 512
SAMPLES = (
    "Hello, world!",
    " two  spaces   three",
    "It isn't 1234567; they'RE $1.50!!",
    "über Où été 冬の氷 привет 👩‍👩‍👧 🏒",
    "def f(x):\n    return x + 1\n\n\n\t# done\r\n",
    "CamelCase snake_case https://example.org/a?b=c",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """
    One comparison of a tokenizer.json with a GGUF.

    Attributes:
        name: What was compared.
        gguf, tokenizer_json: What each says.
        verdict: "same"; "gguf" where they differ and the GGUF's word is taken; "differs" where they
            cannot both be this model's, and the tokenizer.json is refused.
        detail: For what differs: where first, and both texts.
    """

    name: str
    gguf: str
    tokenizer_json: str
    verdict: Verdict
    detail: str = ""


def audit(found: Tokenizer, metadata: Mapping[str, Any]) -> list[Check]:
    """
    Compare a tokenizer.json with a GGUF in all that can be compared.

    Args:
        found: What `Tokenizer.from_file` gave.
        metadata: The GGUF's keys and values.

    Returns:
        What `compare` gives, and a check of how both encode sample texts.

    Raises:
        TokenizerError: The GGUF holds no vocabulary, or a broken one.
    """
    return [*compare(found, Vocabulary.from_metadata(metadata)), _encoding(found, metadata)]


def refuse_differences(checks: Sequence[Check]) -> None:
    """
    Raise what the first check that differs says.

    Raises:
        TokenizerError: Names the first differing id, and both texts.
    """
    wrong = next((check for check in checks if check.verdict == "differs"), None)
    if wrong is not None:
        raise TokenizerError(f"the tokenizer.json is not this model's: {wrong.detail}; {_WAY_OUT}")


def compare(found: Tokenizer, vocabulary: Vocabulary) -> list[Check]:
    """
    Compare size, every piece, control tokens, BOS, its rule, and the tokens that end an answer.

    The GGUF may hold more ids (padding), as long as they are no ordinary pieces; a tokenizer.json
    may leave out such ids in the middle too.
    """
    return [
        _size(found, vocabulary),
        _pieces(found, vocabulary),
        _control(found, vocabulary),
        _bos(found, vocabulary),
        _bos_rule(found, vocabulary),
        _ends(found, vocabulary),
    ]


def _size(found: Tokenizer, vocabulary: Vocabulary) -> Check:
    n_found, n_model = found.n_vocab, len(vocabulary.tokens)
    sizes = f"the tokenizer.json has {n_found} ids, the model {n_model}"
    detail = ""
    if n_found > n_model:
        detail = f"{sizes}: id {n_model} is {found.token_text(n_model)!r} in the tokenizer.json only"
    else:
        lost = next((i for i in range(n_found, n_model) if vocabulary.types[i] in (NORMAL, BYTE)), None)
        if lost is not None:
            detail = f"{sizes}: id {lost} is {vocabulary.tokens[lost]!r} in the GGUF only"
    verdict: Verdict = "differs" if detail else "same" if n_found == n_model else "gguf"
    padding = f"{n_model - n_found} more, none of them text" if verdict == "gguf" else ""
    return Check(
        name="ids",
        gguf=str(n_model),
        tokenizer_json=str(n_found),
        verdict=verdict,
        detail=detail or padding,
    )


def _pieces(found: Tokenizer, vocabulary: Vocabulary) -> Check:
    ours, theirs = vocabulary.tokens, found.pieces()
    n_both = min(len(ours), len(theirs))
    wrong = [i for i in range(n_both) if ours[i] != theirs[i] and not _is_same(i, theirs[i], vocabulary)]
    n_same = sum(map(bool, theirs[:n_both])) - len(wrong)
    detail = ""
    if wrong:
        i = wrong[0]
        detail = f"id {i} is {theirs[i]!r} there and {ours[i]!r} in the GGUF ({len(wrong)} ids differ)"
    return Check(
        name="pieces",
        gguf=f"{n_both} compared",
        tokenizer_json=f"{n_same} equal, {len(wrong)} not",
        verdict="differs" if wrong else "same",
        detail=detail,
    )


def _is_same(i: int, theirs: str, vocabulary: Vocabulary) -> bool:
    """Tell whether two spellings are one piece; converters write the spaces of some out."""
    ours, kind = vocabulary.tokens[i], vocabulary.types[i]
    if not theirs:
        return kind not in (NORMAL, BYTE) and i not in vocabulary.end_ids and i != vocabulary.bos_id
    ours, theirs = ours.replace("▁", " "), theirs.replace("▁", " ")
    return ours == theirs or (kind == USER_DEFINED and ours.strip() == theirs.strip() != "")


def _control(found: Tokenizer, vocabulary: Vocabulary) -> Check:
    ours, theirs = vocabulary.control_ids, found.special_ids
    only = sorted(ours ^ theirs)
    detail = ""
    if only:
        where = "GGUF" if only[0] in ours else "tokenizer.json"
        text = vocabulary.tokens[only[0]] if only[0] < len(vocabulary.tokens) else ""
        detail = f"id {only[0]} {text!r} is one in the {where} only; what either calls control is"
    return Check(
        name="control tokens",
        gguf=_shown(sorted(ours)),
        tokenizer_json=_shown(sorted(theirs)),
        verdict="gguf" if only else "same",
        detail=detail,
    )


def _bos(found: Tokenizer, vocabulary: Vocabulary) -> Check:
    ours, theirs = vocabulary.bos_id, found.bos_id
    # Only a post-processor says which; otherwise it was guessed by its text.
    is_wrong = found.add_bos and ours is not None and ours != theirs
    detail = ""
    if is_wrong and ours is not None and theirs is not None:
        detail = (
            f"it begins texts with id {theirs} {found.token_text(theirs)!r}, "
            f"the GGUF with id {ours} {vocabulary.tokens[ours]!r}"
        )
    return Check(
        name="BOS",
        gguf=_named(ours, vocabulary.tokens),
        tokenizer_json=_named(theirs, found.pieces()),
        verdict="differs" if is_wrong else "same" if ours == theirs else "gguf",
        detail=detail,
    )


def _bos_rule(found: Tokenizer, vocabulary: Vocabulary) -> Check:
    same = found.add_bos == vocabulary.add_bos
    return Check(
        name="text begins with BOS",
        gguf="yes" if vocabulary.add_bos else "no",
        tokenizer_json="yes" if found.add_bos else "no",
        verdict="same" if same else "gguf",
        detail="" if same else "the GGUF's rule is used",
    )


def _ends(found: Tokenizer, vocabulary: Vocabulary) -> Check:
    pieces = found.pieces()
    lost = [i for i in sorted(vocabulary.end_ids) if i >= len(pieces) or not pieces[i]]
    same = vocabulary.end_ids == found.end_ids
    detail = ""
    if lost:
        text = vocabulary.tokens[lost[0]]
        detail = f"id {lost[0]} is {text!r} in the GGUF, where it ends answers, and missing there"
    return Check(
        name="end of an answer",
        gguf=_shown(sorted(vocabulary.end_ids)),
        tokenizer_json=_shown(sorted(found.end_ids)),
        verdict="differs" if lost else "same" if same else "gguf",
        detail=detail,
    )


def _encoding(found: Tokenizer, metadata: Mapping[str, Any]) -> Check:
    from gguf_engine.text.tokenizer import Tokenizer

    name = "sample texts"
    try:
        built = Tokenizer.from_metadata(metadata)
    except TokenizerError as error:
        return Check(
            name=name,
            gguf="cannot be built",
            tokenizer_json="",
            verdict="gguf",
            detail=f"not compared: {error}",
        )
    texts = [*SAMPLES, *_piece_texts(found)]
    for text in texts:
        ours, theirs = built.encode(text, add_bos=False), found.encode(text, add_bos=False)
        if ours != theirs:
            at = next(
                (n for n, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), 0
            )
            detail = f"{text!r} goes on, {at} ids in, as {_shown(ours[at:])} in the GGUF, "
            detail += f"as {_shown(theirs[at:])} there"
            return Check(
                name=name,
                gguf=f"{len(ours)} ids",
                tokenizer_json=f"{len(theirs)} ids",
                verdict="differs",
                detail=detail,
            )
    return Check(
        name=name, gguf=f"{len(texts)} encoded", tokenizer_json=f"{len(texts)} equal", verdict="same"
    )


def _piece_texts(found: Tokenizer) -> list[str]:
    """Return the texts of ids from all over the vocabulary: each needs the merges that lead to it."""
    ids = sorted({n * found.n_vocab // _N_PIECE_TEXTS for n in range(_N_PIECE_TEXTS)} - found.special_ids)
    texts = [found.decode([i]) for i in ids]
    texts = [text for text in texts if text and "\ufffd" not in text]
    # Two together are seldom a piece, which some vocabularies take whole without merging.
    return [*texts, *map("".join, pairwise(texts))]


def _shown(ids: Sequence[int]) -> str:
    rest = len(ids) - _SHOWN_IDS
    return ", ".join(map(str, ids[:_SHOWN_IDS])) + (f" and {rest} more" if rest > 0 else "") or "none"


def _named(token_id: int | None, pieces: Sequence[str]) -> str:
    return "none" if token_id is None else f"{token_id} {pieces[token_id]!r}"
