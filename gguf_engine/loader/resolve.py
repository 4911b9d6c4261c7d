"""What people may call a model → checked files on this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from gguf_engine.errors import HubError, ModelNotFoundError, OptionError
from gguf_engine.loader.catalog import ModelSpec, is_later_part, parse_model, part_names

if TYPE_CHECKING:
    from gguf_engine.loader.lockfile import LockedFile, LockedModel

Progress = Callable[[str, int, int | None], None]


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
    lock: str | Path | None = None,
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
        lock: A lock file; files that differ from what it names are refused. The bytes of local and
            bundled models are hashed each time.
        progress: Called with file name, bytes so far and total bytes (None when unknown).

    Raises:
        ModelNotFoundError: No such name, file or folder.
        OptionError: A repository, file, revision, endpoint or lock file that is not one; a model or
            revision that the lock file does not name.
        HubError: The download failed, or a file is not the locked one; `code` says how.
    """
    from gguf_engine.loader.lockfile import find_locked, read_lock

    locked_models = None if lock is None else read_lock(lock)
    place = parse_model(model, revision=revision)
    if isinstance(place, Path):
        files = _local(str(model), place)
        if locked_models is not None:
            _check_any(files, locked_models, str(lock))
        return files
    locked = None if locked_models is None else find_locked(locked_models, place, str(model), str(lock))
    if place.bundled:
        files = _bundled(place)
        if locked is not None:
            _check(files, locked)
        return files
    from gguf_engine.loader.hub import Hub

    hub = Hub.open(cache_dir=cache_dir, endpoint=endpoint, token=token, offline=offline, progress=progress)
    fetched = hub.fetch(place, locked)
    return ModelFiles(
        model=str(model),
        weights=fetched.weights[0].path,
        tokenizer=None if fetched.tokenizer is None else fetched.tokenizer.path,
        revision=place.revision,
        commit=fetched.weights[0].commit,
    )


def lock_model(
    model: str,
    *,
    revision: str | None = None,
    cache_dir: str | Path | None = None,
    endpoint: str | None = None,
    token: str | None = None,
    offline: bool = False,
    progress: Progress | None = None,
) -> LockedModel:
    """
    Return what a lock file says of a model; it is downloaded first if it is not here.

    The arguments are those of `resolve_model`.

    Raises:
        OptionError: A local file, which has no repository and commit; and as `resolve_model`.
        HubError: The download failed; `code` says how.
    """
    place = parse_model(model, revision=revision)
    if isinstance(place, Path):
        raise OptionError(
            "model", model, "a catalog name or org/repo:file@revision", "a local file has no commit to lock"
        )
    if place.bundled:
        return _locked_bundle(place, _bundled(place))
    from gguf_engine.loader.hub import Hub

    hub = Hub.open(cache_dir=cache_dir, endpoint=endpoint, token=token, offline=offline, progress=progress)
    return hub.fetch(place).locked(place)


def _locked_bundle(spec: ModelSpec, files: ModelFiles) -> LockedModel:
    from gguf_engine.loader.lockfile import LockedModel

    return LockedModel(
        name=spec.name,
        revision="",
        weights=(_locked_file(files.weights),),
        tokenizer=None if files.tokenizer is None else _locked_file(files.tokenizer),
    )


def _locked_file(path: Path) -> LockedFile:
    from gguf_engine.loader.digest import digest_of
    from gguf_engine.loader.lockfile import LockedFile

    size, sha256 = path.stat().st_size, digest_of(path).sha256
    return LockedFile(repo="", commit="", file=path.name, size=size, sha256=sha256)


def _check(files: ModelFiles, locked: LockedModel) -> None:
    """Refuse local files whose bytes are not the locked ones; their names may differ."""
    names = part_names(files.weights.name)
    paths = [files.weights.with_name(name) for name in names]
    if files.tokenizer is not None:
        paths.append(files.tokenizer)
    if len(paths) != len(locked.files):
        what = f"{files.model} is {len(paths)} files, {locked.name} in the lock file {len(locked.files)}"
        raise HubError("integrity", what, "put the same files together, tokenizer.json beside the weights")
    for path, pin in zip(paths, locked.files, strict=True):
        if not path.is_file():
            raise ModelNotFoundError(files.model, f"no such file: {path}", "put all its parts there")
        found = _locked_file(path)
        pin.check(found.size, found.sha256, str(path))


def _check_any(files: ModelFiles, models: Sequence[LockedModel], lock: str) -> None:
    """Refuse a local model whose bytes are none of the locked ones."""
    weights = _locked_file(files.weights)
    for locked in models:
        if locked.weights[0].sha256 == weights.sha256:
            _check(files, locked)
            return
    names = ", ".join(model.name for model in models)
    what = f"{files.weights} has the sha256 {weights.sha256}, which {lock} does not name for {names}"
    raise HubError("integrity", what, "use the file that was locked, or no --lock")


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
    later_parts = [path for path in found if is_later_part(path.name)]
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
