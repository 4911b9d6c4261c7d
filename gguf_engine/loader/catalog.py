"""What people may call a model → the place it is at. Knows names only; opens and fetches nothing."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from gguf_engine.errors import ModelNotFoundError, OptionError

DEFAULT_REVISION = "main"
WAYS = "a catalog name, org/repo:file.gguf, org/repo:file.gguf@revision, a .gguf file or a folder with one"

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9_-])?"
_REPO = re.compile(rf"{_NAME}/{_NAME}")
_REPO_SPEC = re.compile(r"(?P<repo>[^/:@]+/[^/:@]+)(?::(?P<file>[^:@]*))?(?:@(?P<revision>[^:@]*))?")
_FILE_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+,()=-]{0,239}")  # what a disk allows, less our suffixes
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<end>\.gguf)", re.IGNORECASE)
_REVISION = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(?:/[A-Za-z0-9_][A-Za-z0-9._-]*)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """
    A model that is bundled, or in a repository of the hub.

    Attributes:
        name: As people ask for it.
        repo: "organisation/repository"; "" for a bundled model.
        file: The weights inside it; "" stands for its only .gguf.
        revision: Branch, tag or commit.
        tokenizer_repo: Where tokenizer.json is, on its main branch; "" is beside the weights, if there.
        bundled: It comes with this package.
    """

    name: str
    repo: str = ""
    file: str = ""
    revision: str = DEFAULT_REVISION
    tokenizer_repo: str = ""
    bundled: bool = False


CATALOG: Mapping[str, ModelSpec] = MappingProxyType(
    {
        "haiku": ModelSpec(name="haiku", file="haiku-q4_k_m.gguf", bundled=True),
        "phi3-mini": ModelSpec(
            name="phi3-mini",
            repo="microsoft/Phi-3-mini-4k-instruct-gguf",
            file="Phi-3-mini-4k-instruct-q4.gguf",
            tokenizer_repo="microsoft/Phi-3-mini-4k-instruct",
        ),
    }
)


def parse_model(name: str | Path, *, revision: str | None = None) -> ModelSpec | Path:
    """
    Return where a model is: a `ModelSpec`, or a local path that may or may not exist.

    A catalog name wins over a path of the same name (write ./phi3-mini for the path), a path that
    exists wins over a repository.

    Args:
        name: One of `WAYS`.
        revision: Overrides the one in the name.

    Raises:
        ModelNotFoundError: Nothing of this name; says what is close to it.
        OptionError: A repository, file or revision name that no hub has.
    """
    place = _parse(name, revision) if isinstance(name, str) else name
    if isinstance(place, Path) and revision is not None:
        raise OptionError("revision", revision, f"none: {place} is a local file, which has no revisions")
    return place


def _parse(name: str, revision: str | None) -> ModelSpec | Path:
    if not name.strip() or "\0" in name:
        raise ModelNotFoundError(name, "is not a model name", f"write {WAYS}")
    if name in CATALOG:
        spec = CATALOG[name]
        if revision is None:
            return spec
        if spec.bundled:
            raise OptionError("revision", revision, f"none: {name} comes with this package")
        return _checked(replace(spec, revision=revision))
    if _looks_local(name):
        return Path(name).expanduser()
    match = _REPO_SPEC.fullmatch(name)
    if match is None:
        raise _unknown(name)
    asked = match["revision"] if revision is None else revision
    spec = ModelSpec(
        name=name,
        repo=match["repo"],
        file=match["file"] or "",
        revision=DEFAULT_REVISION if asked is None else asked,
    )
    if match["file"] == "":
        raise OptionError(
            "model", name, "org/repo:file.gguf", "write the file after the colon, or no colon"
        )
    return _checked(spec)


def _looks_local(name: str) -> bool:
    if name.startswith(("/", "./", "../", "~")) or name in {".", ".."}:
        return True
    try:
        if Path(name).exists():
            return True
    except OSError:  # longer than a path can be
        return False
    return name.lower().endswith(".gguf") and ":" not in name


def _unknown(name: str) -> ModelNotFoundError:
    close = difflib.get_close_matches(name.lower(), CATALOG, n=3, cutoff=0.5)
    meant = f"did you mean {' or '.join(close)}? " if close else ""
    known = ", ".join(sorted(CATALOG))
    return ModelNotFoundError(
        name, "is in no catalog and no such file", f"{meant}known names: {known}; or write {WAYS}"
    )


def _checked(spec: ModelSpec) -> ModelSpec:
    """Refuse what could leave the cache folder or address something other than a file of a repository."""
    check_repo(spec.repo)
    if spec.file:
        check_file(spec.file)
    check_revision(spec.revision)
    return spec


def check_repo(repo: str) -> None:
    """Refuse a repository name that the hub cannot have."""
    if len(repo) > 192 or not _REPO.fullmatch(repo) or "--" in repo or ".." in repo:
        raise OptionError("repository", repo, "organisation/name of letters, digits, '.', '_' and '-'")


def check_file(file: str) -> None:
    """Refuse a file name that would not stay inside the repository's folder."""
    parts = file.split("/")
    if len(file) > 512 or not all(_FILE_PART.fullmatch(part) and ".." not in part for part in parts):
        raise OptionError("file", file, "a path inside the repository, such as model-q4.gguf")


def part_names(file: str) -> tuple[str, ...]:
    """
    Return the names of all the parts of a split model, or the one name of another.

    Raises:
        OptionError: It names a part that is not the first.
    """
    match = _PART.fullmatch(file)
    if match is None:
        return (file,)
    if int(match["number"]) != 1 or match["count"] == "00000":
        raise OptionError("file", file, "the first part of a split model, such as ...-00001-of-00003.gguf")
    return tuple(
        f"{match['stem']}-{number:05d}-of-{match['count']}{match['end']}"
        for number in range(1, int(match["count"]) + 1)
    )


def is_later_part(file: str) -> bool:
    """Return whether a file is a part of a split model, and not its first."""
    match = _PART.fullmatch(file)
    return match is not None and int(match["number"]) != 1


def check_revision(revision: str) -> None:
    """Refuse a revision that is no branch, tag or commit."""
    if len(revision) > 255 or not _REVISION.fullmatch(revision) or ".." in revision:
        raise OptionError("revision", revision, "a branch, a tag or a commit")
