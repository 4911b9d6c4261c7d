"""What people may call a model → checked files on this machine."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from gguf_engine.errors import ModelNotFoundError
from gguf_engine.loader.catalog import ModelSpec, parse_model

Progress = Callable[[str, int, int | None], None]

_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """
    A model whose files are here.

    Attributes:
        model: As asked for.
        weights: The .gguf; of a split model the first part.
        tokenizer: tokenizer.json, when there is one.
        revision: As asked for; None for local files.
        commit: What the revision resolved to; None for local files.
    """

    model: str
    weights: Path
    tokenizer: Path | None
    revision: str | None = None
    commit: str | None = None


def resolve_model(
    model: str | Path,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> ModelFiles:
    """
    Return the files of a model, downloaded first if they are not here.

    Args:
        model: A catalog name, org/repo:file@revision, a .gguf file, or a folder with one.
        revision: Branch, tag or commit; overrides the one in the name.
        cache_dir: The hub cache; None is $HF_HUB_CACHE, $HF_HOME/hub or ~/.cache/huggingface/hub.
        endpoint: The hub; None is $HF_ENDPOINT or https://huggingface.co.
        token: For private and gated repositories; None is $HF_TOKEN or the saved login.
        offline: Open no connection; also with $HF_HUB_OFFLINE=1.
        progress: Called with file name, bytes so far and total bytes (None when unknown).

    Raises:
        ModelNotFoundError: No such name, file or folder.
        OptionError: A repository, file, revision or endpoint that is not one.
        HubError: The download failed; `code` says how.
    """
    place = parse_model(model, revision=revision)
    if isinstance(place, Path):
        return _local(str(model), place)
    if place.bundled:
        return _bundled(place)
    from gguf_engine.loader.hub import Hub

    hub = Hub.open(cache_dir=cache_dir, endpoint=endpoint, token=token, offline=offline, progress=progress)
    fetched = hub.fetch(place)
    return ModelFiles(
        model=str(model),
        weights=fetched.weights,
        tokenizer=fetched.tokenizer,
        revision=place.revision,
        commit=fetched.commit,
    )


def _bundled(spec: ModelSpec) -> ModelFiles:
    folder = Path(str(resources.files("gguf_engine") / "data"))
    weights = folder / spec.file
    if not weights.is_file():
        raise ModelNotFoundError(spec.name, f"this installation lacks {weights}", "reinstall gguf-engine")
    return ModelFiles(model=spec.name, weights=weights, tokenizer=_beside(weights))


def _local(model: str, path: Path) -> ModelFiles:
    if path.is_dir():
        weights = _only_model_in(model, path)
    elif path.exists():
        weights = path
    else:
        raise ModelNotFoundError(model, f"no such file: {path}", _nearby(path))
    return ModelFiles(model=model, weights=weights, tokenizer=_beside(weights))


def _only_model_in(model: str, folder: Path) -> Path:
    found = sorted(path for path in folder.iterdir() if path.suffix.lower() == ".gguf")
    later_parts = [
        path for path in found if (match := _PART.fullmatch(path.name)) and int(match["number"]) > 1
    ]
    models = [path for path in found if path not in later_parts]
    if len(models) == 1:
        return models[0]
    if not models:
        has = f"the folder holds no {'first part of a split' if later_parts else '.gguf'} model"
        raise ModelNotFoundError(model, has, "name a .gguf file, or run `gguf-engine pull phi3-mini`")
    names = ", ".join(path.name for path in models[:8])
    raise ModelNotFoundError(
        model, f"the folder holds {len(models)} models: {names}", f"name one: {models[0]}"
    )


def _beside(weights: Path) -> Path | None:
    tokenizer = weights.with_name("tokenizer.json")
    return tokenizer if tokenizer.is_file() else None


def _nearby(path: Path) -> str:
    if not path.parent.is_dir():
        return f"the folder {path.parent} does not exist either"
    others = sorted(other.name for other in path.parent.glob("*.gguf"))[:8]
    if not others:
        return "download a model with `gguf-engine pull phi3-mini`, or use --model haiku, which is bundled"
    return f"{path.parent} has {', '.join(others)}"
