"""
A lock file: the exact files that models may be made of.

    gguf-engine-lock 1
    model phi3-mini main
    weights microsoft/Phi-3-mini-4k-instruct-gguf@<commit> Phi-3-mini-4k-instruct-q4.gguf <size> <sha256>
    tokenizer microsoft/Phi-3-mini-4k-instruct@<commit> tokenizer.json <size> <sha256>

One line a file: role, repository@commit, file, size in bytes, sha256. A split model has a line for each
part, a model without tokenizer.json no such line. What comes with this package stands as
`bundled`, its revision as `-`. Empty lines, and lines that begin with #, say nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from gguf_engine.errors import HubError, OptionError
from gguf_engine.loader.catalog import ModelSpec, check_file, check_repo, check_revision, part_names
from gguf_engine.loader.digest import COMMIT, SHA256

LOCK_NAME = "gguf-engine.lock"
HEADER = "gguf-engine-lock 1"
MAX_LOCK_BYTES = 2**20
_BUNDLED = "bundled"


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedFile:
    """
    One file, byte for byte.

    Attributes:
        repo: "organisation/repository"; "" for a file of this package.
        commit: 40 hexadecimal digits; "" for a file of this package.
        file: Its name there.
        size: In bytes.
        sha256: 64 hexadecimal digits.
    """

    repo: str
    commit: str
    file: str
    size: int
    sha256: str

    def check(self, size: int, sha256: str | None, found: str) -> None:
        """
        Return if a file has this size and, where it is known, this sha256.

        Raises:
            HubError: integrity, with what was expected and what was found.
        """
        if size != self.size or sha256 not in (None, self.sha256):
            has = f"{size} bytes" + ("" if sha256 is None else f" with sha256 {sha256}")
            wanted = f"{self.size} bytes with sha256 {self.sha256}"
            raise HubError(
                "integrity",
                f"{found} has {has}, the lock file wants {wanted}",
                "find out who changed it; if the change is meant, lock the model again",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class LockedModel:
    """
    A model, as it was locked.

    Attributes:
        name: As it was asked for.
        revision: As it was asked for; "" for a model of this package.
        weights: All its parts, in order.
        tokenizer: tokenizer.json, where it has one.
    """

    name: str
    revision: str
    weights: tuple[LockedFile, ...]
    tokenizer: LockedFile | None

    @property
    def files(self) -> tuple[LockedFile, ...]:
        """Return the weights, then the tokenizer."""
        return self.weights if self.tokenizer is None else (*self.weights, self.tokenizer)


def format_lock(models: Sequence[LockedModel]) -> str:
    """Return the text of a lock file."""
    lines = [HEADER]
    for model in models:
        lines.append(f"model {model.name} {model.revision or '-'}")
        roles = ["weights"] * len(model.weights) + ["tokenizer"]
        for role, file in zip(roles, model.files, strict=False):
            source = f"{file.repo}@{file.commit}" if file.repo else _BUNDLED
            lines.append(f"{role} {source} {file.file} {file.size} {file.sha256}")
    return "\n".join(lines) + "\n"


def read_lock(path: str | Path) -> tuple[LockedModel, ...]:
    """
    Read a lock file.

    Raises:
        OptionError: There is none, or a line of it is wrong; says which.
    """
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_LOCK_BYTES + 1)
    except OSError as error:
        raise _refused(path, f"{error.strerror}; make one with `gguf-engine lock MODEL`") from None
    return parse_lock(data, path)


def parse_lock(data: bytes, source: str | Path) -> tuple[LockedModel, ...]:
    """
    Read the bytes of a lock file.

    Args:
        data: At most MAX_LOCK_BYTES, ASCII.
        source: Where they come from, for errors.

    Raises:
        OptionError: A line of it is wrong; says which.
    """
    if len(data) > MAX_LOCK_BYTES or not data.isascii():
        raise _refused(source, f"it is longer than {MAX_LOCK_BYTES} bytes or not ASCII")
    models: list[LockedModel] = []
    header_seen = False
    for number, line in enumerate(data.decode("ascii").splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            if header_seen:
                _take_line(models, line.split())
            elif line.strip() != HEADER:
                raise _LineError(f"is not {HEADER!r}")
        except (_LineError, OptionError) as error:
            raise _refused(source, f"line {number} ({line[:100]!r}) {error}") from None
        header_seen = True
    for model in models:
        if not _is_whole(model):
            raise _refused(source, f"the model {model.name} needs a line for each part of its weights")
    if not models:
        raise _refused(source, "it names no model")
    return tuple(models)


def find_locked(
    models: Sequence[LockedModel], spec: ModelSpec, asked: str, source: str | Path
) -> LockedModel:
    """
    Return the model of a lock file that a name stands for.

    Raises:
        OptionError: It has none of this name, or one of another revision.
    """
    same = [
        model
        for model in models
        if model.weights[0].repo == spec.repo and spec.file in ("", model.weights[0].file)
    ]
    if not same:
        names = ", ".join(model.name for model in models)
        allowed = f"a model of the lock file {source}: {names}"
        raise OptionError("model", asked, allowed, f"lock it: `gguf-engine lock {asked}`")
    for model in same:
        if spec.bundled or spec.revision in (model.revision, model.weights[0].commit):
            return model
    allowed = " or ".join(f"{model.revision} ({model.weights[0].commit})" for model in same)
    raise OptionError(
        "revision", spec.revision, f"{allowed}, as the lock file {source} says", "or lock the model again"
    )


class _LineError(Exception):
    """What is wrong with a line."""


def _take_line(models: list[LockedModel], words: Sequence[str]) -> None:
    role = words[0]
    if role == "model":
        models.append(_model(words))
    elif role not in ("weights", "tokenizer"):
        raise _LineError("begins with none of model, weights, tokenizer")
    elif not models:
        raise _LineError("stands before the first model")
    else:
        file, model = _file(words), models[-1]
        if model.tokenizer is not None:
            raise _LineError("comes after the tokenizer, which is the last line of a model")
        if role == "tokenizer":
            models[-1] = replace(model, tokenizer=file)
            return
        origin = (file.repo, file.commit)
        if any((part.repo, part.commit) != origin for part in model.weights):
            raise _LineError("is of another repository or commit than the part before it")
        models[-1] = replace(model, weights=(*model.weights, file))


def _model(words: Sequence[str]) -> LockedModel:
    if len(words) != 3 or not words[1].isprintable():
        raise _LineError("is not `model NAME REVISION`")
    revision = "" if words[2] == "-" else words[2]
    if revision:
        check_revision(revision)
    return LockedModel(name=words[1], revision=revision, weights=(), tokenizer=None)


def _file(words: Sequence[str]) -> LockedFile:
    if len(words) != 5:
        raise _LineError("is not `ROLE REPOSITORY@COMMIT FILE SIZE SHA256`")
    _, source, name, size, sha256 = words
    repo, _, commit = ("", "", "") if source == _BUNDLED else source.partition("@")
    if source != _BUNDLED:
        check_repo(repo)
        if not COMMIT.fullmatch(commit):
            raise _LineError("names no commit of 40 hexadecimal digits")
    check_file(name)
    if not size.isdecimal() or len(size) > 15:
        raise _LineError("names no size in bytes")
    if not SHA256.fullmatch(sha256):
        raise _LineError("names no sha256 of 64 hexadecimal digits")
    return LockedFile(repo=repo, commit=commit, file=name, size=int(size), sha256=sha256)


def _is_whole(model: LockedModel) -> bool:
    names = tuple(file.file for file in model.weights)
    try:
        return bool(names) and names == part_names(names[0])
    except OptionError:
        return False


def _refused(source: str | Path, why: str) -> OptionError:
    return OptionError("lock", str(source), f"a lock file that `gguf-engine lock` made; {why}")
