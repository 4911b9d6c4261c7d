"""Typed access to the metadata of a GGUF header: a value of the right type and range, or a refusal."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NoReturn

from gguf_engine.errors import ModelFileError
from gguf_engine.loader.gguf import GGUFFile


class Keys:
    """Typed access to metadata: each method returns a checked value or raises `ModelFileError`."""

    def __init__(self, gguf: GGUFFile, code: str) -> None:
        self.gguf, self.code = gguf, code

    def fail(self, key: str, what: str, help_: str = "", *, code: str | None = None) -> NoReturn:
        """Refuse the file over one key."""
        raise ModelFileError(str(self.gguf.path), code or self.code, key, what, help_)

    def typed(self, key: str, types: tuple[str, ...]) -> Any:
        """Return the value, None where the key is absent."""
        if key not in self.gguf.metadata:
            return None
        if self.gguf.value_types[key] not in types:
            self.fail(key, f"is a {self.gguf.value_types[key]}; llama.cpp reads a {types[0]}")
        return self.gguf.metadata[key]

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Return a u32 in low..high."""
        value = self.typed(key, ("u32",))
        if value is None:
            if default is None:
                self.fail(key, f"is missing; allowed: {low}..{high}", "convert the model anew")
            return default
        if not low <= value <= high:
            self.fail(key, f"is {value}; allowed: {low}..{high}")
        return int(value)

    def per_layer(
        self, key: str, n_layer: int, high: int, default: tuple[int, ...] | None
    ) -> tuple[int, ...]:
        """Return n_layer integers in 1..high, from one u32 or an array with one a layer."""
        value = self.typed(key, ("u32", "array[u32]", "array[i32]"))
        if value is None:
            if default is None:
                self.fail(key, f"is missing; allowed: 1..{high}", "convert the model anew")
            return default
        values = value if isinstance(value, tuple) else (value,) * n_layer
        if len(values) != n_layer:
            self.fail(key, f"has {len(values)} values for {n_layer} layers")
        for layer, number in enumerate(values):
            if not 1 <= number <= high:
                self.fail(key, f"is {number} in layer {layer}; allowed: 1..{high}")
        return values

    def real(self, key: str, allowed: str, good: Callable[[float], bool], default: float | None) -> float:
        """Return a finite f32 for which good() holds."""
        value = self.typed(key, ("f32",))
        if value is None:
            if default is None:
                self.fail(key, f"is missing; allowed: {allowed}", "convert the model anew")
            return default
        if not math.isfinite(value) or not good(value):
            self.fail(key, f"is {value}; allowed: {allowed}")
        return float(value)
