"""Whether one model can guess for another: the same ids have to stand for the same tokens."""

from __future__ import annotations

from typing import NoReturn

from gguf_engine.errors import OptionError
from gguf_engine.loader.gguf import GGUFFile
from gguf_engine.loader.keys import shown
from gguf_engine.loader.vocabulary import TOKENS, TYPES

UNUSED = 5
_MODEL = "tokenizer.ggml.model"


def check_draft(target: GGUFFile, draft: GGUFFile) -> None:
    """
    Refuse a draft model whose vocabulary is not the target's.

    One may go on where the other ends, as far as that is padding (tokens of the type "unused"): models
    of one family are padded to different sizes.

    Raises:
        OptionError: The first id that differs.
    """
    ours, theirs = target.metadata.get(TOKENS, ()), draft.metadata.get(TOKENS, ())
    kinds = target.metadata.get(_MODEL), draft.metadata.get(_MODEL)
    if kinds[0] != kinds[1]:
        _refuse(draft, f"its tokenizer is of the kind {kinds[1]!r}, the target's {kinds[0]!r}")
    n_both = min(len(ours), len(theirs))
    if ours[:n_both] != theirs[:n_both]:
        index = next(i for i in range(n_both) if ours[i] != theirs[i])
        _refuse(draft, f"its id {index} is {shown(theirs[index])}, the target's {shown(ours[index])}")
    longer = target if len(ours) > n_both else draft
    types = longer.metadata.get(TYPES, ())
    for index in range(n_both, max(len(ours), len(theirs))):
        if index >= len(types) or types[index] != UNUSED:
            _refuse(
                draft, f"it has {len(theirs)} tokens, the target {len(ours)}: id {index} is in one only"
            )


def _refuse(draft: GGUFFile, why: str) -> NoReturn:
    help_ = f"{why}; use a smaller model of the same family, or draft='lookup'"
    raise OptionError("draft", str(draft.path), "a model with the target's vocabulary", help_)
