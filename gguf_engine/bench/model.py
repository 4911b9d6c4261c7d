"""A model's name → what the benchmark needs of it: checked files, what a token reads, where it can run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf_engine.backend.devices import Device, choose
from gguf_engine.backend.processors import usable_processors
from gguf_engine.backend.threads import choose_threads
from gguf_engine.bench.record import Model
from gguf_engine.loader.gguf import GGUFFile, TensorInfo
from gguf_engine.params import EngineParams
from gguf_engine.text.tokenizer import Tokenizer


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenedModel:
    """
    A model that is here and checked.

    Attributes:
        model: What the record says of it.
        path: The .gguf; of a split model the first part.
        tokenizer: Its tokenizer.
        tokenizer_path: tokenizer.json, None where the vocabulary comes from the .gguf.
        n_ctx_train: Positions it was trained for.
        devices: Names of the devices asked for.
        threads: Counts of threads asked for, or the engine's own choice.
    """

    model: Model
    path: Path
    tokenizer: Tokenizer
    tokenizer_path: str | None
    n_ctx_train: int
    devices: tuple[str, ...]
    threads: tuple[int, ...]


def open_for_bench(
    name: str,
    devices: Sequence[dict[str, Any]],
    asked: Sequence[str],
    threads: Sequence[int],
    progress: Any,
    **hub: Any,
) -> OpenedModel:
    """
    Find, fetch and check a model.

    Args:
        name: As in `LLM.load`.
        devices: What the machine has, as dicts of Device.
        asked: Names of devices.
        threads: Counts of threads; none means the engine's own choice.
        progress: As in `LLM.load`.
        hub: Options of `resolve_model`.
    """
    from gguf_engine.backend.llama import has_finite_numbers
    from gguf_engine.loader.gguf import read_gguf
    from gguf_engine.loader.hub import state_folder
    from gguf_engine.loader.parts import read_parts
    from gguf_engine.loader.preflight import preflight
    from gguf_engine.loader.resolve import resolve_model
    from gguf_engine.loader.tensor_check import check_tensors
    from gguf_engine.loader.verdicts import Verdicts

    # A device that is not there should be refused before a long download.
    names = [choose(each, [Device(**device) for device in devices]).name for each in asked]
    fetch = None if progress is None else lambda *done: progress("download", *done)
    check = None if progress is None else lambda *done: progress("check", *done)
    files = resolve_model(name, progress=fetch, **hub)
    gguf = read_gguf(files.weights)
    preflight(gguf)
    parts = read_parts(gguf)
    verdict = check_tensors(
        parts,
        Verdicts.open(state_folder()),
        has_finite_numbers,
        blobs=files.commit is not None,
        progress=check,
    )
    if files.tokenizer is None:
        tokenizer = Tokenizer.from_metadata(gguf.metadata)
    else:
        tokenizer = Tokenizer.from_file(files.tokenizer)
        if "tokenizer.ggml.tokens" in gguf.metadata:
            tokenizer = tokenizer.with_model(gguf.metadata)
    model = describe(Path(name).name, parts, verdict.sha256, files.commit)
    own, _ = choose_threads(EngineParams(), usable_processors(), model.bytes)
    architecture = model.architecture
    return OpenedModel(
        model=model,
        path=files.weights,
        tokenizer=tokenizer,
        tokenizer_path=None if files.tokenizer is None else str(files.tokenizer),
        n_ctx_train=int(gguf.metadata[f"{architecture}.context_length"]),
        devices=tuple(dict.fromkeys(names)),
        threads=tuple(dict.fromkeys(threads)) or (own,),
    )


def describe(name: str, parts: Sequence[GGUFFile], sha256: str, commit: str | None) -> Model:
    """Return what a record says of a model."""
    metadata = parts[0].metadata
    architecture = str(metadata.get("general.architecture", ""))
    tensors = [tensor for part in parts for tensor in part.tensors]
    n_experts = metadata.get(f"{architecture}.expert_count") or 0
    n_used = metadata.get(f"{architecture}.expert_used_count") or n_experts
    share = n_used / n_experts if n_experts else 1.0
    types: Counter[str] = Counter()
    for tensor in tensors:
        types[tensor.type] += tensor.n_bytes
    used = [(tensor, _share(tensor, tensors, share)) for tensor in tensors]
    return Model(
        name=name,
        sha256=sha256,
        commit=commit,
        bytes=sum(part.size for part in parts),
        architecture=architecture,
        type=types.most_common(1)[0][0],
        n_params=sum(math.prod(tensor.shape) for tensor in tensors),
        n_params_a_token=round(sum(math.prod(tensor.shape) * part for tensor, part in used)),
        weight_bytes_a_token=round(sum(tensor.n_bytes * part for tensor, part in used)),
    )


def _share(tensor: TensorInfo, tensors: Sequence[TensorInfo], experts: float) -> float:
    """Return the part of a tensor that one token is multiplied with."""
    if tensor.name == "token_embd.weight":  # a row is looked up, unless it is the output matrix, too
        return 0.0 if any(other.name == "output.weight" for other in tensors) else 1.0
    return experts if "_exps." in tensor.name else 1.0
