"""The parts of a split model: all there, each checked like the first, their numbers and totals agreeing."""

from __future__ import annotations

import re

from gguf_engine.errors import ModelFileError
from gguf_engine.loader.gguf import GGUFFile, read_gguf
from gguf_engine.loader.keys import Keys

_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")


def read_parts(first: GGUFFile) -> tuple[GGUFFile, ...]:
    """
    Return the headers of every part of a model: of one in a single file, that one.

    Alignment and format version are each part's own: llama.cpp's splitter writes them so.

    Raises:
        ModelFileError: A part is missing or broken, or is not the part its name says; code "split",
            "duplicate_tensor", or one of `read_gguf`.
    """
    keys = Keys(first, "split")
    count = keys.typed("split.count", ("u16",)) or 0
    if count <= 1:
        return (first,)
    match = _NAME.fullmatch(first.path.name)
    number = keys.typed("split.no", ("u16",))
    if number != 0:
        keys.fail("split.no", f"is {number}; the model is named by its part 0", "name the first part")
    if match is None or int(match["number"]) != 1 or int(match["count"]) != count:
        what = f"is {count}, but the file is not named like part 1 of {count}"
        keys.fail("split.count", what, f"name the files NAME-00001-of-{count:05}.gguf and so on")
    parts = [first]
    for index in range(1, count):
        path = first.path.with_name(f"{match['stem']}-{index + 1:05}-of-{count:05}.gguf")
        if not path.exists():
            keys.fail("split.count", f"is {count}, but {path.name} is missing", "download every part")
        part = read_gguf(path)
        _check_number(part, index, count)
        parts.append(part)
    _check_distinct(parts)
    total = keys.typed("split.tensors.count", ("i32",))
    found = sum(len(part.tensors) for part in parts)
    if total != found:
        keys.fail("split.tensors.count", f"is {total}; the parts hold {found}", "download every part anew")
    return tuple(parts)


def _check_number(part: GGUFFile, index: int, count: int) -> None:
    keys = Keys(part, "split")
    found = keys.typed("split.no", ("u16",)), keys.typed("split.count", ("u16",))
    if found != (index, count):
        what = f"says part {found[0]} of {found[1]}; this is part {index} (from 0) of {count}"
        keys.fail("split.no", what, "download the part anew")


def _check_distinct(parts: tuple[GGUFFile, ...] | list[GGUFFile]) -> None:
    """Check that no tensor is in two parts; within one, `read_gguf` has."""
    seen: set[str] = set()
    for part in parts:
        for tensor in part.tensors:
            if tensor.name in seen:
                what = "is in an earlier part too"
                raise ModelFileError(str(part.path), "duplicate_tensor", tensor.name, what)
            seen.add(tensor.name)
