"""
Random tensors for generated models: numbers of a chosen spread, or quantized blocks of random bits.

A tensor is described first (`Tensor`), so that a file's table can be written before any data exists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import gguf
import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]

# Names of the types a model's matrices may have, with the value of general.file_type.
FILE_TYPES = {"F32": 0, "F16": 1, "Q4_0": 2, "Q4_1": 3, "Q8_0": 7, "Q5_0": 8, "Q5_1": 9, "BF16": 32}
FILE_TYPES |= {"Q2_K": 10, "Q3_K": 12, "Q4_K": 15, "Q4_K_M": 15, "Q5_K": 17, "Q6_K": 18}


@dataclass(frozen=True, slots=True)
class Tensor:
    """
    A tensor to draw.

    Attributes:
        name: As in the file.
        shape: Rows first, as numpy has it.
        type: Such as "Q4_K".
        std: Of the numbers drawn; 0 for a tensor of ones.
    """

    name: str
    shape: tuple[int, ...]
    type: str
    std: float


def count_bytes(tensor: Tensor) -> int:
    """
    Return the size of a tensor in the file, without padding.

    Raises:
        ValueError: Its rows do not divide into blocks.
    """
    block, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
    if tensor.shape[-1] % block:
        raise ValueError(
            f"{tensor.name} has rows of {tensor.shape[-1]}; {tensor.type} needs a multiple of {block}"
        )
    return int(np.prod(tensor.shape, dtype=np.int64)) // int(block) * int(size)


def draw(tensor: Tensor, rng: np.random.Generator, *, random_blocks: bool) -> NDArray[Any]:
    """Return the data of a tensor: numbers quantized, or (always for K types) random blocks."""
    if tensor.std == 0.0:
        return np.ones(tensor.shape, dtype=np.float32)
    if tensor.type in _BLOCKS and (random_blocks or tensor.type.endswith("_K")):
        return draw_blocks(tensor, rng)
    numbers: NDArray[Any] = rng.standard_normal(tensor.shape, dtype=np.float32) * np.float32(tensor.std)
    if tensor.type == "F32":
        return numbers
    if tensor.type == "F16":
        half: NDArray[Any] = numbers.astype(np.float16)
        return half
    quantized: Bytes = gguf.quants.quantize(numbers, gguf.GGMLQuantizationType[tensor.type])
    return quantized


@dataclass(frozen=True, slots=True)
class _Block:
    scale_at: int  # byte of the fp16 scale d
    spread: float  # standard deviation of the numbers of a block of random bits at d = 1
    min_at: int | None = None  # byte of the fp16 dmin
    min_ratio: float = 0.0  # dmin / d that makes the mean zero


# With uniform bits E[q] = (2^b-1)/2, and a Q4_K number is d*sc*q - dmin*m with sc and m uniform
# in 0..63; zero mean needs dmin = E[q]*d, and the variance over d^2 is then
# E[sc^2]E[q^2] - (E[sc]E[q])^2 + E[q]^2 var(m).
_BLOCKS = {
    "Q4_0": _Block(0, 4.61),
    "Q8_0": _Block(0, 73.9),
    "Q2_K": _Block(80, 13.9, 82, 1.5),
    "Q3_K": _Block(108, 43.0),
    "Q4_K": _Block(0, 257.0, 2, 7.5),
    "Q5_K": _Block(0, 524.0, 2, 15.5),
    "Q6_K": _Block(208, 1365.0),
}


def draw_blocks(tensor: Tensor, rng: np.random.Generator) -> Bytes:
    """Return random bits under one finite fp16 scale a block."""
    block = _BLOCKS[tensor.type]
    _, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[tensor.type]]
    n_bytes = count_bytes(tensor)
    blocks: Bytes = np.frombuffer(bytearray(rng.bytes(n_bytes)), dtype=np.uint8).reshape(-1, int(size))
    scale = np.float16(tensor.std / block.spread)
    blocks[:, block.scale_at : block.scale_at + 2] = np.frombuffer(scale.tobytes(), dtype=np.uint8)
    if block.min_at is not None:
        least = np.float16(tensor.std / block.spread * block.min_ratio)
        blocks[:, block.min_at : block.min_at + 2] = np.frombuffer(least.tobytes(), dtype=np.uint8)
    return blocks
