"""Files that options name: refused at once, not after the work that was to be read or written."""

# ruff: noqa: PTH110, PTH112, PTH113 - unlike Path's own, these raise nothing where a folder may not be searched

from __future__ import annotations

import os
from pathlib import Path

from gguf_engine.errors import OptionError

_FOLDER = "it is a folder: name a file in it"


def check_readable(option: str, name: str, allowed: str) -> None:
    """
    Return if there is a file of this name that can be read.

    Args:
        option: How it is typed.
        name: As typed.
        allowed: What the file has to be, for the error.

    Raises:
        OptionError: There is none; says why.
    """
    if os.path.isdir(name):
        why = _FOLDER
    elif not os.path.exists(name):
        why = "there is no such file: check the path"
    elif not os.access(name, os.R_OK):
        why = "its permissions forbid it: change them, or copy the file"
    else:
        return
    raise OptionError(option, name, allowed, why)


def check_writable(option: str, name: str) -> None:
    """
    Return if a file of this name can be made or written anew.

    Raises:
        OptionError: It cannot; says why.
    """
    folder = Path(name).absolute().parent
    if os.path.isdir(name):
        why = _FOLDER
    elif not os.path.isdir(folder):
        why = f"there is no folder {folder}: make it first, or choose another file"
    elif not os.access(name if os.path.exists(name) else folder, os.W_OK):
        why = "its permissions forbid it: change them, or choose another file"
    else:
        return
    raise OptionError(option, name, "a file that can be written", why)


def check_regular(option: str, name: str, allowed: str) -> None:
    """
    Return if there is no file of this name yet, or a regular one.

    Raises:
        OptionError: It is a pipe or a device.
    """
    if os.path.exists(name) and not os.path.isfile(name):
        raise OptionError(option, name, allowed, "it is a pipe or a device: choose another")
