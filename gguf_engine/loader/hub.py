"""
A repository, revision and file → verified files in the cache, downloaded when they are not there.

A revision is resolved to a commit once and every file is fetched by that commit; bytes are hashed while
they arrive and nothing enters the cache whose hash is not the one the hub named, or the lock file. Nothing
is written before every name and ETag has been checked. The only reader of the environment below the
command line.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, urlsplit

from gguf_engine.errors import HubError, OptionError
from gguf_engine.loader.bloblock import hold
from gguf_engine.loader.catalog import DEFAULT_REVISION, ModelSpec, check_file, is_later_part, part_names
from gguf_engine.loader.deadline import Deadline
from gguf_engine.loader.digest import COMMIT
from gguf_engine.loader.disk import check_space
from gguf_engine.loader.download import Limits, download
from gguf_engine.loader.hubcache import RepoCache
from gguf_engine.loader.lockfile import LockedFile, LockedModel
from gguf_engine.loader.partial import PartialFile, discard, n_waiting
from gguf_engine.loader.transport import Transport

DEFAULT_ENDPOINT = "https://huggingface.co"
TOKENIZER_FILE = "tokenizer.json"
LIMITS = Limits()

# Answers after which a copy in the cache serves; the others say that the name is wrong or forbidden.
_UNREACHABLE = {"network", "timeout", "busy", "offline"}
_TRUE = {"1", "ON", "YES", "TRUE"}
_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class CachedFile:
    """One verified file in the cache."""

    repo: str
    commit: str
    file: str
    path: Path
    sha256: str

    def locked(self) -> LockedFile:
        """Return what a lock file says of it."""
        return LockedFile(
            repo=self.repo,
            commit=self.commit,
            file=self.file,
            size=self.path.stat().st_size,
            sha256=self.sha256,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Verified files of one model."""

    weights: tuple[CachedFile, ...]
    tokenizer: CachedFile | None

    def locked(self, spec: ModelSpec) -> LockedModel:
        """Return what a lock file says of the model."""
        return LockedModel(
            name=spec.name,
            revision=spec.revision,
            weights=tuple(file.locked() for file in self.weights),
            tokenizer=None if self.tokenizer is None else self.tokenizer.locked(),
        )


@dataclass(frozen=True, slots=True)
class _Commit:
    """A commit, and the names of all its files; None when the hub was not asked."""

    id: str
    files: tuple[str, ...] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Hub:
    """
    A hub and the cache for it.

    Attributes:
        cache: The cache folder.
        transport: The connection.
        offline: Open no connection.
        limits: When to give up.
        progress: Called with file name, bytes so far and total.
    """

    cache: Path
    transport: Transport
    offline: bool = False
    limits: Limits = LIMITS
    progress: Progress | None = None

    @classmethod
    def open(
        cls,
        *,
        cache_dir: str | Path | None = None,
        endpoint: str | None = None,
        token: str | None = None,
        offline: bool = False,
        progress: Progress | None = None,
    ) -> Hub:
        """Return a hub; what is None comes from the environment, under huggingface_hub's own names."""
        environment = os.environ
        home = _home()
        cache = cache_dir or environment.get("HF_HUB_CACHE") or environment.get("HUGGINGFACE_HUB_CACHE")
        url = (endpoint or environment.get("HF_ENDPOINT") or DEFAULT_ENDPOINT).rstrip("/")
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname or parts.query or parts.fragment:
            raise OptionError("endpoint", url, "a URL such as https://huggingface.co")
        return cls(
            cache=Path(cache).expanduser() if cache else home / "hub",
            transport=Transport(
                endpoint=url,
                token=_checked_token(token or _token(home)),
                allow_http=_is_true("GGUF_ENGINE_ALLOW_HTTP"),
            ),
            limits=LIMITS,
            offline=offline or _is_true("HF_HUB_OFFLINE") or _is_true("TRANSFORMERS_OFFLINE"),
            progress=progress,
        )

    def fetch(self, spec: ModelSpec, locked: LockedModel | None = None) -> Fetched:
        """
        Return the files of a model, from the cache where they are there.

        Args:
            spec: The model.
            locked: The files that it must consist of; what they are is then asked of nobody.

        Raises:
            HubError: They are not there and could not be fetched, or are not the locked ones.
        """
        timed = replace(self.transport, deadline=Deadline(self.limits.deadline_s))
        hub = replace(self, transport=timed)
        try:
            return hub._fetch(spec) if locked is None else hub._fetch_locked(locked)
        except HubError as error:
            if error.code not in _UNREACHABLE - {"busy"}:
                raise
            way_out = (
                f"not all of it is cached in {self.cache}; run `gguf-engine pull {spec.name}` where "
                "there is a network, or use --model haiku, which needs no download"
            )
            raise HubError(error.code, f"{spec.name}: {_without_code(error)}", way_out) from error

    def _fetch_locked(self, locked: LockedModel) -> Fetched:
        pin = locked.tokenizer
        return Fetched(
            weights=tuple(self._file(file.repo, file.commit, file.file, file) for file in locked.weights),
            tokenizer=None if pin is None else self._file(pin.repo, pin.commit, pin.file, pin),
        )

    def _fetch(self, spec: ModelSpec) -> Fetched:
        cache = RepoCache(self.cache, spec.repo)
        is_pinned = COMMIT.fullmatch(spec.revision) is not None
        commit = self._commit(cache, spec.repo, spec.revision)
        first = spec.file or self._only_model(cache, spec, commit)
        weights = tuple(self._file(spec.repo, commit.id, file) for file in part_names(first))
        if spec.tokenizer_repo:
            tokenizer: CachedFile | None = self._tokenizer_from(spec.tokenizer_repo, is_pinned)
        else:
            tokenizer = self._tokenizer_beside(cache, spec.repo, commit)
        cache.remember(spec.revision, commit.id)
        return Fetched(weights=weights, tokenizer=tokenizer)

    def _tokenizer_from(self, repo: str, is_pinned: bool) -> CachedFile:
        cache = RepoCache(self.cache, repo)
        last = cache.commit_of(DEFAULT_REVISION)
        if is_pinned and last is not None and cache.find(last, TOKENIZER_FILE) is not None:
            return self._file(repo, last, TOKENIZER_FILE)
        commit = self._commit(cache, repo, DEFAULT_REVISION)
        tokenizer = self._file(repo, commit.id, TOKENIZER_FILE)
        cache.remember(DEFAULT_REVISION, commit.id)
        return tokenizer

    def _tokenizer_beside(self, cache: RepoCache, repo: str, commit: _Commit) -> CachedFile | None:
        is_cached = cache.find(commit.id, TOKENIZER_FILE) is not None
        if commit.files is not None and TOKENIZER_FILE not in commit.files:
            cache.remember_absent(commit.id, TOKENIZER_FILE)
        if not is_cached and (self.offline or cache.is_absent(commit.id, TOKENIZER_FILE)):
            return None
        try:
            return self._file(repo, commit.id, TOKENIZER_FILE)
        except HubError as error:
            if commit.files is None and error.code == "not_found":
                cache.remember_absent(commit.id, TOKENIZER_FILE)
                return None
            if commit.files is None and error.code in _UNREACHABLE:
                _log.warning("%s; going on without the tokenizer.json of %s, if it has one", error, repo)
                return None
            raise

    def _commit(self, cache: RepoCache, repo: str, revision: str) -> _Commit:
        """Resolve a revision: at the hub, or from the cache when the hub is out of reach."""
        cached = cache.commit_of(revision)
        if cached is not None and (self.offline or COMMIT.fullmatch(revision)):
            return _Commit(cached, None)
        if self.offline:
            raise HubError(
                "offline", f"{repo}@{revision} is not in the cache, and connections are switched off"
            )
        try:
            answer = self.transport.json(f"api/models/{repo}/revision/{quote(revision, safe='')}")
        except HubError as error:
            if cached is None or error.code not in _UNREACHABLE:
                raise
            _log.warning("%s; using the cached commit %s of %s", error, cached, repo)
            return _Commit(cached, None)
        commit = answer.get("sha") if isinstance(answer, dict) else None
        if not isinstance(commit, str) or not COMMIT.fullmatch(commit):
            raise HubError(
                "integrity", f"{repo}@{revision} resolved to {str(commit)[:80]!r}, which is no commit"
            )
        return _Commit(commit, _file_names(answer))

    def _only_model(self, cache: RepoCache, spec: ModelSpec, commit: _Commit) -> str:
        names = commit.files
        if names is None:
            names = tuple(cache.files(commit.id))
            if not _models(names) and not self.offline:
                names = _file_names(self.transport.json(f"api/models/{spec.repo}/revision/{commit.id}"))
        models = _models(names)
        if len(models) == 1:
            check_file(models[0])
            return models[0]
        if not models:
            raise HubError(
                "not_found", f"{spec.repo} holds no .gguf file", "name a repository of GGUF files"
            )
        shown = ", ".join(models[:12])
        raise OptionError("model", spec.name, f"one file of {shown}", f"write {spec.repo}:{models[0]}")

    def _file(self, repo: str, commit: str, file: str, pin: LockedFile | None = None) -> CachedFile:
        """Return one file of a commit: from the cache, or downloaded and verified."""
        cache = RepoCache(self.cache, repo)
        path = cache.find(commit, file)
        if path is None:
            if self.offline:
                raise HubError(
                    "offline", f"{repo}:{file} is not in the cache, and connections are switched off"
                )
            path = self._fetched(cache, repo, commit, file, pin)
        sha256 = cache.sha256_of(commit, file)
        if pin is not None:
            pin.check(path.stat().st_size, sha256, str(path))
        return CachedFile(repo=repo, commit=commit, file=file, path=path, sha256=sha256)

    def _fetched(self, cache: RepoCache, repo: str, commit: str, file: str, pin: LockedFile | None) -> Path:
        url = f"{repo}/resolve/{commit}/{quote(file)}"
        remote = self.transport.head(url)
        if remote.commit is not None and remote.commit != commit:
            what = f"{repo}:{file} was asked of commit {commit}, answered of {remote.commit[:80]!r}"
            raise HubError("integrity", what, "try again; the repository may be changing")
        if pin is not None:
            pin.check(remote.size, remote.sha256, f"{repo}:{file} at the hub")
        blob = cache.blob(remote.etag)
        with hold(
            cache.lock(remote.etag),
            wait_s=self.limits.lock_wait_s,
            deadline=self.transport.deadline,
            sign_of_life=lambda: n_waiting(blob),
        ):
            # Another process may have fetched it while this one waited.
            here = cache.find(commit, file) or cache.adopt(commit, file, remote.etag)
            if here is not None:
                discard(blob)
                return here
            check_space(self.cache, remote.size - n_waiting(blob), file)
            with PartialFile.open(blob, remote.size, None if pin is None else pin.sha256) as partial:
                download(
                    self.transport,
                    url,
                    partial,
                    self.limits,
                    lambda n_done: self.report(file, n_done, remote.size),
                )
                partial.become_blob()
            return cache.link(commit, file, partial.digest)

    def report(self, file: str, n_done: int, n_total: int) -> None:
        """Tell who wants to know how far a file is."""
        if self.progress is not None:
            self.progress(file, n_done, n_total)


def _file_names(answer: object) -> tuple[str, ...]:
    """Return the names of a commit's files in what the hub says of it."""
    siblings = answer.get("siblings") if isinstance(answer, dict) else None
    entries = siblings if isinstance(siblings, list) else []
    names = (entry.get("rfilename") for entry in entries if isinstance(entry, dict))
    return tuple(name for name in names if isinstance(name, str))


def _models(names: tuple[str, ...]) -> list[str]:
    return sorted(name for name in names if name.lower().endswith(".gguf") and not is_later_part(name))


def _home() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("HF_HOME") or f"{base}/huggingface").expanduser()


def _token(home: Path) -> str | None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
        if token := os.environ.get(name, "").strip():
            return token
    path = Path(os.environ.get("HF_TOKEN_PATH") or home / "token")
    try:
        return path.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError):
        return None


def _checked_token(token: str | None) -> str | None:
    if token is not None and not (token.isascii() and token.isprintable() and " " not in token):
        raise OptionError("token", "(hidden)", "printable ASCII without spaces", "check HF_TOKEN")
    return token


def _is_true(name: str) -> bool:
    return os.environ.get(name, "").upper() in _TRUE


def _without_code(error: HubError) -> str:
    return str(error).removesuffix(f" [{error.code}]")


def state_folder() -> Path:
    """Return where this package keeps what it remembers of model files: a folder in the user's cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gguf_engine" / "verdicts"
