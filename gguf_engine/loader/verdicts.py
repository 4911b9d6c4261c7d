"""
What was found out about model files, remembered by sha256: tensors that were checked, files that killed.

One folder holds it: a record a model, and an index from a file's identity on its disk (device, inode,
size, times) to its sha256, so that a second load costs one stat. Losing the folder costs one reading of
each file; nothing in it is trusted that does not parse.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

_SHA256 = re.compile(r"[0-9a-f]{64}")
# A file that changed so lately may change again within the same tick of the file system's clock.
_SETTLED_NS = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """
    What is known about a model's bytes.

    Attributes:
        sha256: Of the file; of a split model, of its parts' sha256 texts joined by newlines.
        size: Bytes of all parts.
        rules: `preflight.RULES` when this was written. A killer is given another chance by newer rules.
        tensors: Whether every tensor was read and none held a NaN, an infinity or a broken block
            scale; None if nobody looked.
        where: The tensor at fault, if `tensors` is "bad".
        what: What is wrong with it.
        killed: The last words of a process that this file ended; None if none is known.
    """

    sha256: str
    size: int
    rules: int = 0
    tensors: Literal["good", "bad"] | None = None
    where: str = ""
    what: str = ""
    killed: str | None = None


class Verdicts:
    """
    The remembered verdicts. A folder that cannot be written forgets; that is no error.

    Args:
        folder: Where they are kept; None remembers nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    @classmethod
    def open(cls, folder: Path | None) -> Verdicts:
        """Return the verdicts kept in `folder`, which need not exist yet."""
        return cls(folder)

    def identify(self, paths: Sequence[Path], *, blobs: bool = False) -> str | None:
        """
        Return the sha256 of a model's parts if it is known without reading them, else None.

        Args:
            paths: Of all parts, in order.
            blobs: They were just verified in a hub cache, where a large file is named by its sha256.
        """
        known: list[str] = []
        for path in paths:
            name = path.resolve().name
            sha256 = name if blobs and _SHA256.fullmatch(name) else self._indexed(path)
            if sha256 is None:
                return None
            known.append(sha256)
        return combined(known)

    def _indexed(self, path: Path) -> str | None:
        sha256 = self._load("index", _identity(path)).get("sha256")
        return sha256 if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None

    def remember(self, path: Path, sha256: str) -> None:
        """Note the sha256 of one file as it is now on its disk."""
        status = path.stat()
        if time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > _SETTLED_NS:
            self._save("index", _identity(path), {"sha256": sha256})

    def of(self, paths: Sequence[Path], *, blobs: bool = False) -> Verdict | None:
        """Return what is known of these parts without reading them; see `identify`."""
        sha256 = self.identify(paths, blobs=blobs)
        return None if sha256 is None else self.of_sha256(sha256)

    def of_sha256(self, sha256: str) -> Verdict | None:
        """Return what is known of these bytes."""
        record = self._load("records", sha256)
        names = {field.name for field in fields(Verdict)}
        types: dict[str, Any] = {"size": int, "rules": int, "tensors": (str, type(None))}
        types |= {"where": str, "what": str, "killed": (str, type(None))}
        if set(record) != names or record["sha256"] != sha256 or record["tensors"] not in _TENSORS:
            return None
        if not all(isinstance(record[name], kind) for name, kind in types.items()):
            return None
        return Verdict(**record)

    def record(self, verdict: Verdict) -> None:
        """Keep a verdict instead of what was known before about the same bytes."""
        self._save("records", verdict.sha256, asdict(verdict))

    def _load(self, kind: str, name: str) -> dict[str, Any]:
        if self.folder is None:
            return {}
        try:
            record = json.loads((self.folder / kind / f"{name}.json").read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return record if isinstance(record, dict) else {}

    def _save(self, kind: str, name: str, record: dict[str, Any]) -> None:
        """Write a record whole or not at all: under another name first."""
        if self.folder is None:
            return
        folder = self.folder / kind
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, fresh = tempfile.mkstemp(dir=folder, suffix=".new")
            try:
                with os.fdopen(descriptor, "w", encoding="ascii") as file:
                    json.dump(record, file)
                Path(fresh).replace(folder / f"{name}.json")
            except BaseException:
                Path(fresh).unlink()
                raise


_TENSORS = (None, "good", "bad")


def combined(sha256s: Iterable[str]) -> str:
    """Return the sha256 that stands for a model of these parts."""
    texts = list(sha256s)
    return texts[0] if len(texts) == 1 else hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _identity(path: Path) -> str:
    # The time of the last change of the inode too: nobody can set it back.
    status = path.stat()
    numbers = status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
    return "-".join(f"{number:x}" for number in numbers)
