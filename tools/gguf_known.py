"""The names of keys and tensors that the installed llama.cpp looks for, read from its library file."""

from __future__ import annotations

import importlib.util
import re
from functools import lru_cache
from pathlib import Path


@lru_cache(maxsize=1)
def _library() -> bytes:
    found = importlib.util.find_spec("llama_cpp")
    if found is None or found.origin is None:
        raise RuntimeError("llama_cpp is not installed; install llama-cpp-python")
    folder = Path(found.origin).parent / "lib"
    names = ("libllama.so", "libllama.dylib", "llama.dll")
    path = next((folder / name for name in names if (folder / name).exists()), None)
    if path is None:
        raise RuntimeError(f"{folder} holds no llama library; allowed: one of {', '.join(names)}")
    return path.read_bytes()


@lru_cache(maxsize=1)
def known_keys() -> tuple[str, ...]:
    """Return the keys it reads, those of an architecture with "%s" for its name; sorted."""
    own = re.findall(rb"%s\.[a-z0-9_]+(?:\.[a-z0-9_]+)*\0", _library())
    shared = re.findall(rb"(?:tokenizer|general)(?:\.[a-z0-9_]+)+\0", _library())
    return tuple(sorted({key[:-1].decode() for key in own + shared}))


@lru_cache(maxsize=1)
def known_tensors() -> tuple[str, ...]:
    """Return the tensors of a layer that it knows, without their ending, such as "attn_q_norm"; sorted."""
    found = re.findall(rb"blk\.%d\.([a-z0-9_]+(?:\.[a-z0-9_]+)*)\0", _library())
    return tuple(sorted({name.decode() for name in found}))
