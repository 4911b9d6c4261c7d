"""
A repository, revision and file → verified files in the cache, downloaded when they are not there.

A revision is resolved to a commit once and every file is fetched by that commit; bytes are hashed while
they arrive and nothing enters the cache whose hash is not the one the hub named. Nothing is written
before every name and ETag has been checked. The only reader of the environment below the command line.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO
from urllib.parse import quote, urlsplit

from gguf_engine.errors import HubError, OptionError
from gguf_engine.loader.catalog import DEFAULT_REVISION, ModelSpec, check_file
from gguf_engine.loader.hubcache import COMMIT, Digest, RepoCache, writing
from gguf_engine.loader.transport import RemoteFile, Transport

DEFAULT_ENDPOINT = "https://huggingface.co"
TOKENIZER_FILE = "tokenizer.json"
RETRIES = 4
RETRY_WAIT_S = 0.5
SPARE_BYTES = 2**26

# Answers after which a copy in the cache serves; the others say that the name is wrong or forbidden.
_UNREACHABLE = {"network", "timeout", "busy", "offline"}
_TRUE = {"1", "ON", "YES", "TRUE"}
_log = logging.getLogger(__name__)

Progress = Callable[[str, int, int | None], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fetched:
    """Verified files of one model."""

    weights: Path
    tokenizer: Path | None
    commit: str


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
        progress: Called with file name, bytes so far and total.
    """

    cache: Path
    transport: Transport
    offline: bool = False
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
            offline=offline or _is_true("HF_HUB_OFFLINE") or _is_true("TRANSFORMERS_OFFLINE"),
            progress=progress,
        )

    def fetch(self, spec: ModelSpec) -> Fetched:
        """
        Return the files of a model, from the cache where they are there.

        Raises:
            HubError: They are not there and could not be fetched.
        """
        try:
            return self._fetch(spec)
        except HubError as error:
            if error.code not in _UNREACHABLE:
                raise
            way_out = (
                f"nothing usable of it is cached in {self.cache}; run `gguf-engine pull {spec.name}` where "
                "there is a network, set HF_ENDPOINT, or use --model haiku, which needs no download"
            )
            raise HubError(error.code, f"{spec.name}: {_without_code(error)}", way_out) from error

    def _fetch(self, spec: ModelSpec) -> Fetched:
        cache = RepoCache(self.cache, spec.repo)
        commit = self._commit(cache, spec.repo, spec.revision)
        file = spec.file or self._only_model(cache, spec, commit)
        weights = self._file(cache, spec.repo, commit.id, file)
        if spec.tokenizer_repo:
            tokenizer: Path | None = self._tokenizer_from(spec.tokenizer_repo)
        else:
            tokenizer = self._tokenizer_beside(cache, spec.repo, commit)
        cache.remember(spec.revision, commit.id)
        return Fetched(weights=weights, tokenizer=tokenizer, commit=commit.id)

    def _tokenizer_from(self, repo: str) -> Path:
        cache = RepoCache(self.cache, repo)
        commit = self._commit(cache, repo, DEFAULT_REVISION)
        path = self._file(cache, repo, commit.id, TOKENIZER_FILE)
        cache.remember(DEFAULT_REVISION, commit.id)
        return path

    def _tokenizer_beside(self, cache: RepoCache, repo: str, commit: _Commit) -> Path | None:
        if commit.files is not None and TOKENIZER_FILE not in commit.files:
            return None
        cached = cache.find(commit.id, TOKENIZER_FILE)
        if cached is not None or (commit.files is None and self.offline):
            return cached
        try:
            return self._file(cache, repo, commit.id, TOKENIZER_FILE)
        except HubError as error:
            if commit.files is None and error.code in _UNREACHABLE | {"not_found"}:
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
        siblings = answer.get("siblings") or []
        names = (entry.get("rfilename") for entry in siblings if isinstance(entry, dict))
        return _Commit(commit, tuple(name for name in names if isinstance(name, str)))

    def _only_model(self, cache: RepoCache, spec: ModelSpec, commit: _Commit) -> str:
        names = commit.files
        if names is None:
            names = tuple(cache.files(commit.id))
            if not names and not self.offline:
                names = self._listing(spec.repo, commit.id)
        models = sorted(name for name in names if name.lower().endswith(".gguf"))
        if len(models) == 1:
            check_file(models[0])
            return models[0]
        if not models:
            raise HubError(
                "not_found", f"{spec.repo} holds no .gguf file", "name a repository of GGUF files"
            )
        shown = ", ".join(models[:12])
        raise OptionError("model", spec.name, f"one file of {shown}", f"write {spec.repo}:{models[0]}")

    def _listing(self, repo: str, commit: str) -> tuple[str, ...]:
        answer = self.transport.json(f"api/models/{repo}/revision/{commit}")
        siblings = answer.get("siblings") if isinstance(answer, dict) else None
        return tuple(str(entry["rfilename"]) for entry in siblings or [] if "rfilename" in entry)

    def _file(self, cache: RepoCache, repo: str, commit: str, file: str) -> Path:
        """Return one file of a commit: from the cache, or downloaded and verified."""
        cached = cache.find(commit, file)
        if cached is not None:
            return cached
        if self.offline:
            raise HubError(
                "offline", f"{repo}:{file} is not in the cache, and connections are switched off"
            )
        url = f"{repo}/resolve/{commit}/{quote(file)}"
        remote = self.transport.head(url)
        if remote.commit is not None and remote.commit != commit:
            what = f"{repo}:{file} was asked of commit {commit}, answered of {remote.commit[:80]!r}"
            raise HubError("integrity", what, "try again; the repository may be changing")
        adopted = cache.adopt(commit, file, remote.etag)
        if adopted is not None:
            return adopted
        self._check_space(remote, file)
        self._download(cache, url, file, remote)
        return cache.link(commit, file, remote.etag)

    def _check_space(self, remote: RemoteFile, file: str) -> None:
        with writing(self.cache):
            self.cache.mkdir(parents=True, exist_ok=True)
            free = shutil.disk_usage(self.cache).free
        if free < remote.size + SPARE_BYTES:
            what = f"{file} needs {remote.size} bytes, {self.cache} has {free} free"
            raise HubError("disk_full", what, "free some, or set HF_HOME to a larger disk")

    def _download(self, cache: RepoCache, url: str, file: str, remote: RemoteFile) -> None:
        """Fetch into a new blob, going on where a broken connection left off."""
        with cache.new_blob(remote.etag) as target:
            arrival = _Arrival(target, remote, cache.folder)
            for attempt in range(RETRIES + 1):
                try:
                    self._receive(url, file, arrival)
                except HubError as error:
                    if error.code not in {"network", "timeout", "busy"} or attempt == RETRIES:
                        raise
                if arrival.n_done >= remote.size:
                    break
                time.sleep(RETRY_WAIT_S * 2**attempt)
            arrival.check(file)

    def _receive(self, url: str, file: str, arrival: _Arrival) -> None:
        with self.transport.get(url, start=arrival.n_done, validator=arrival.validator) as (
            response,
            start,
        ):
            if start != arrival.n_done:
                arrival.restart()
            arrival.validator = response.headers.get("etag", "")
            self._report(file, arrival.n_done, arrival.remote.size)
            for piece in self.transport.chunks(response):
                arrival.take(piece)
                if arrival.n_done > arrival.remote.size:
                    return
                self._report(file, arrival.n_done, arrival.remote.size)

    def _report(self, file: str, n_done: int, n_total: int) -> None:
        if self.progress is not None:
            self.progress(file, n_done, n_total)


class _Arrival:
    """The bytes of a file while they come in; `validator` is the ETag of the answer they came from."""

    def __init__(self, target: BinaryIO, remote: RemoteFile, folder: Path) -> None:
        self.target, self.remote, self.folder = target, remote, folder
        self.validator = ""
        self.restart()

    def restart(self) -> None:
        self.n_done = 0
        self.digest = Digest(self.remote.etag, self.remote.size)
        self.target.seek(0)
        self.target.truncate()

    def take(self, piece: bytes) -> None:
        self.n_done += len(piece)
        if self.n_done <= self.remote.size:
            self.digest.update(piece)
            with writing(self.folder):
                self.target.write(piece)

    def check(self, file: str) -> None:
        """Refuse what is not, byte for byte, the file that the hub named."""
        if self.n_done != self.remote.size:
            sent = "more" if self.n_done > self.remote.size else self.n_done
            what = f"{file}: the hub announced {self.remote.size} bytes and sent {sent}"
            raise HubError("network" if self.n_done < self.remote.size else "integrity", what, "try again")
        if not self.digest.matches():
            what = f"{file}: the bytes that came are not those the hub names ({self.remote.etag})"
            raise HubError(
                "integrity", what, "try again; if it stays so, a proxy or mirror alters the file"
            )


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
