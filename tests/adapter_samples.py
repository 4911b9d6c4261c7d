"""LoRA adapters for generated models, written with gguf-py."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from gguf_engine.loader.gguf import read_gguf

RANK = 4


def write_adapter(
    path: Path,
    model: Path,
    *,
    weights: tuple[str, ...] = ("blk.0.attn_output.weight",),
    arch: str | None = None,
    keys: Mapping[str, Any] | None = None,
    alpha: Any = 8.0,
    fill: float | None = None,
    shapes: Mapping[str, tuple[int, ...]] | None = None,
    without: tuple[str, ...] = (),
    extra: Mapping[str, Any] | None = None,
) -> Path:
    """
    Write an adapter for some weights of a model.

    Args:
        keys: Text keys that replace the right ones; None drops a key.
        fill: Every number of the tensors; None draws them.
        shapes: Shapes of tensors instead of the right ones, in ggml's order.
        without: Tensors to leave out.
        extra: Further tensors.
    """
    header = read_gguf(model)
    table = {tensor.name: tensor.shape for tensor in header.tensors}
    writer = gguf.GGUFWriter(str(path), arch or header.metadata["general.architecture"])
    texts = {"general.type": "adapter", "adapter.type": "lora", **(keys or {})}
    for key, value in texts.items():
        if value is not None:
            writer.add_string(key, value)
    if isinstance(alpha, float):
        writer.add_float32("adapter.lora.alpha", alpha)
    elif alpha is not None:
        writer.add_string("adapter.lora.alpha", alpha)
    random = np.random.default_rng(0)
    for name in weights:
        n_in, n_out = table.get(name, (64, 64))
        right = {f"{name}.lora_a": (n_in, RANK), f"{name}.lora_b": (RANK, n_out)}
        if name == "token_embd.weight":
            right = {f"{name}.lora_a": (RANK, n_out), f"{name}.lora_b": (RANK, n_in)}
        for tensor, shape in right.items():
            if tensor not in without:
                dims = tuple(reversed((shapes or {}).get(tensor, shape)))
                drawn = random.normal(0, 0.5, dims) if fill is None else np.full(dims, fill)
                writer.add_tensor(tensor, drawn.astype(np.float32))
    for name, array in (extra or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
