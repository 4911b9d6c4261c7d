"""Typed access to the metadata of a GGUF header: a value of the right type and range, or a refusal."""

from __future__ import annotations

from typing import Any, NoReturn

from gguf_engine.errors import ModelFileError
from gguf_engine.loader.gguf import GGUFFile


def shown(value: object) -> str:
    """Return a stranger's value as it may stand in a sentence: printable, and not long."""
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}..."


class Keys:
    """
    Typed access to metadata: each method returns a checked value or raises `ModelFileError`.

    Args:
        gguf: The header.
        code: Of the refusals.
        prefix: Stands before every key, such as "llama.".
    """

    def __init__(self, gguf: GGUFFile, code: str, prefix: str = "") -> None:
        self.gguf, self.code, self.prefix = gguf, code, prefix

    def fail(self, key: str, what: str, help_: str = "", *, code: str | None = None) -> NoReturn:
        """Refuse the file over one key."""
        where = self.prefix + key.removeprefix(self.prefix)
        raise ModelFileError(str(self.gguf.path), code or self.code, where, what, help_)

    def typed(self, key: str, types: tuple[str, ...]) -> Any:
        """Return the value, None where the key is absent."""
        name = self.prefix + key
        if name not in self.gguf.metadata:
            return None
        if self.gguf.value_types[name] not in types:
            self.fail(key, f"is a {self.gguf.value_types[name]}; llama.cpp reads a {types[0]}")
        return self.gguf.metadata[name]

    def integer(self, key: str, low: int, high: int, default: int | None = None) -> int:
        """Return a u32 in low..high."""
        value = self.typed(key, ("u32",))
        if value is None:
            return int(self._default(key, default, f"{low}..{high}"))
        if not low <= value <= high:
            self.fail(key, f"is {value}; allowed: {low}" + (f"..{high}" if high > low else ""))
        return int(value)

    def per_layer(
        self, key: str, n_layer: int, low: int, high: int, default: int | None = None
    ) -> tuple[int, ...]:
        """Return n_layer integers in low..high, from one u32 or an array with one a layer."""
        value = self.typed(key, ("u32", "array[u32]", "array[i32]"))
        if value is None:
            value = self._default(key, default, f"{low}..{high}")
        values = value if isinstance(value, tuple) else (value,) * n_layer
        if len(values) != n_layer:
            self.fail(key, f"has {len(values)} values for {n_layer} layers")
        for layer, number in enumerate(values):
            if not low <= number <= high:
                self.fail(key, f"is {number} in layer {layer}; allowed: {low}..{high}")
        return values

    def same_in_all(
        self, key: str, n_layer: int, high: int, default: int | None = None, *, low: int = 1
    ) -> int:
        """Return an integer in low..high that holds in every layer."""
        values = self.per_layer(key, n_layer, low, high, default)
        for layer, number in enumerate(values):
            if number != values[0]:
                what = f"is {number} in layer {layer} and {values[0]} in layer 0; this architecture has one"
                self.fail(key, what)
        return values[0]

    def real(self, key: str, between: tuple[float, float, str], default: float | None = None) -> float:
        """Return an f32 between two bounds, neither included; the text says so to people."""
        low, high, allowed = between
        value = self.typed(key, ("f32",))
        if value is None:
            return float(self._default(key, default, allowed))
        if not low < value < high:
            self.fail(key, f"is {value}; allowed: {allowed}")
        return float(value)

    def _default(self, key: str, default: Any, allowed: str) -> Any:
        if default is None:
            self.fail(key, f"is missing; allowed: {allowed}", "convert the model anew")
        return default
