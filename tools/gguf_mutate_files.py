"""Mutations of what stands at the path: not a regular file, a sparse one, a split model in disorder."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

from gguf_mutations import Base, Variants, mutation
from gguf_raw import ARRAY, I32, STRING, U16, U32, RawModel, read_raw
from make_gguf import write_tiny_model


def _fifo(folder: Path) -> Path:
    os.mkfifo(folder / "model.gguf")
    return folder / "model.gguf"


def _folder(folder: Path) -> Path:
    (folder / "model.gguf").mkdir()
    return folder / "model.gguf"


def _socket(folder: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(folder / "model.gguf"))  # a bound address has at most 107 bytes
    return folder / "model.gguf"


def _link(target: str) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        (folder / "model.gguf").symlink_to(target)
        return folder / "model.gguf"

    return make


@mutation(once=True)
def not_a_file(_: Base) -> Variants:
    """What stands at the path is no regular file; reading it may block for ever or never end."""
    yield "fifo", _fifo
    yield "folder", _folder
    yield "socket", _socket
    yield "nothing", lambda folder: folder / "model.gguf"
    for target in ("/dev/zero", "/dev/null", "/dev/tty", "/proc/self/mem", "model.gguf", "missing", "/"):
        yield f"link to {target}", _link(target)
    yield "a file for a folder", lambda folder: _write(folder / "a", b"GGUF") / "model.gguf"


def _write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


@mutation(once=True)
def sparse_file(base: Base) -> Variants:
    """The file is far larger than what is in it, and its header makes use of that."""

    def sparse(data: bytes) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            path = _write(folder / "model.gguf", data)
            os.truncate(path, 2**40)
            return path

        return make

    yield "zeros", sparse(b"")
    yield "magic", sparse(b"GGUF\x03\0\0\0")
    raw = base.raw.copy()
    raw.n_keys = 4096
    yield "4,096 keys, most of them zeros", sparse(raw.to_bytes())
    raw = base.raw.copy()
    raw.n_tensors = 65_536
    yield "65,536 tensors, most of them zeros", sparse(raw.header())
    raw = base.raw.copy()
    raw.keys[-1].kind = ARRAY
    raw.keys[-1].value = bytes([8, 0, 0, 0]) + (2**21).to_bytes(8, "little")
    raw.tensors, raw.data = [], b""
    yield "an array of 2^21 empty texts", sparse(raw.header())
    raw = base.raw.copy()
    raw.tensor("token_embd.weight").dims = [2**20, 2**17]
    yield "a tensor of half a terabyte", sparse(raw.to_bytes())


@mutation(once=True)
def hole_at_the_end(base: Base) -> Variants:
    """A hole of a terabyte follows the tensors; llama.cpp would map all of it."""

    def make(folder: Path) -> Path:
        path = _write(folder / "model.gguf", base.raw.to_bytes())
        os.truncate(path, 2**40)
        return path

    yield "a terabyte", make


def _parts(base: Base, folder: Path, n_parts: int = 3) -> list[Path]:
    first = write_tiny_model(folder / "model.gguf", **(base.options | {"n_parts": n_parts}))
    stem = first.name.removesuffix(f"-00001-of-{n_parts:05}.gguf")
    return [folder / f"{stem}-{number:05}-of-{n_parts:05}.gguf" for number in range(1, n_parts + 1)]


def _split(base: Base, change: Callable[[list[Path]], object]) -> Callable[[Path], Path]:
    """Return a function that writes three parts, changes them and returns the path to load: the first's."""

    def make(folder: Path) -> Path:
        parts = _parts(base, folder)
        path = change(parts)
        return path if isinstance(path, Path) and path.exists() else parts[0]

    return make


def _edited(base: Base, index: int, edit: Callable[[RawModel], object]) -> Callable[[Path], Path]:
    def change(parts: list[Path]) -> None:
        raw = read_raw(parts[index])
        edit(raw)
        parts[index].write_bytes(raw.to_bytes())

    return _split(base, change)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _swap(first: Path, second: Path) -> None:
    one, other = first.read_bytes(), second.read_bytes()
    first.write_bytes(other)
    second.write_bytes(one)


@mutation(harmless=True)
def split_in_parts(base: Base) -> Variants:
    """The model is split into parts, all in order."""
    for n_parts in (2, 3, 7):
        yield str(n_parts), partial(_first_part, base, n_parts)


def _first_part(base: Base, n_parts: int, folder: Path) -> Path:
    return _parts(base, folder, n_parts)[0]


@mutation()
def split_files(base: Base) -> Variants:
    """A part of a split model is missing, another's, renamed, cut short or no file."""
    yield "second missing", _split(base, lambda parts: parts[1].unlink())
    yield "last missing", _split(base, lambda parts: parts[2].unlink())
    yield "second twice", _split(base, lambda parts: _copy(parts[1], parts[2]))
    yield "first twice", _split(base, lambda parts: _copy(parts[0], parts[1]))
    yield "two swapped", _split(base, lambda parts: _swap(parts[1], parts[2]))
    yield "first and second swapped", _split(base, lambda parts: _swap(parts[0], parts[1]))
    yield "second named", _split(base, lambda parts: parts[1])
    yield "first renamed", _split(base, lambda parts: parts[0].rename(parts[0].with_name("model.gguf")))
    wrong = "model-00001-of-00004.gguf"
    yield "name says four", _split(base, lambda parts: parts[0].rename(parts[0].with_name(wrong)))
    yield "second empty", _split(base, lambda parts: parts[1].write_bytes(b""))
    yield "second a page", _split(base, lambda parts: parts[1].write_bytes(b"<html></html>"))
    yield "second cut", _split(base, lambda parts: os.truncate(parts[1], parts[1].stat().st_size - 100))
    yield "second cut in its header", _split(base, lambda parts: os.truncate(parts[1], 50))

    def special(make: Callable[[Path], Path]) -> Callable[[list[Path]], None]:
        def change(parts: list[Path]) -> None:
            parts[1].unlink()
            (parts[1].parent / "model.gguf").unlink(missing_ok=True)
            make(parts[1].parent).rename(parts[1])

        return change

    yield "second a fifo", _split(base, special(_fifo))
    yield "second a folder", _split(base, special(_folder))
    yield "second a link to /dev/zero", _split(base, special(_link("/dev/zero")))


@mutation()
def split_keys(base: Base) -> Variants:
    """The numbers of a split model contradict each other, are enormous or of the wrong type."""
    for count in (0, 1, 2, 4, 65_535):
        yield (
            f"count {count}",
            _edited(base, 0, partial(RawModel.put, name="split.count", kind=U16, value=count)),
        )
        yield (
            f"count {count} in the second",
            _edited(base, 1, partial(RawModel.put, name="split.count", kind=U16, value=count)),
        )
    for number in (0, 1, 3, 65_535):
        yield (
            f"number {number} of the first",
            _edited(base, 0, partial(RawModel.put, name="split.no", kind=U16, value=number)),
        )
        yield (
            f"number {number} of the second",
            _edited(base, 1, partial(RawModel.put, name="split.no", kind=U16, value=number)),
        )
    for total in (-1, 0, 1, 2**31 - 1):
        change = partial(RawModel.put, name="split.tensors.count", kind=I32, value=total)
        yield f"total {total}", _edited(base, 0, change)
    for key in ("split.no", "split.count", "split.tensors.count"):
        for kind, value in ((U32, 3), (STRING, "3"), (I32, -1), (ARRAY, (U16, [3]))):
            for part in (0, 1):
                label = f"{key} {kind} in part {part}"
                yield label, _edited(base, part, partial(RawModel.put, name=key, kind=kind, value=value))
        yield f"no {key}", _edited(base, 0, partial(RawModel.drop, name=key))
        yield f"no {key} in the second", _edited(base, 1, partial(RawModel.drop, name=key))
    raw = base.raw.copy()
    raw.put("split.count", U16, 65_535)
    raw.put("split.no", U16, 0)
    yield "one file of 65,535", raw


@mutation()
def split_contents(base: Base) -> Variants:
    """A part of a split model holds what belongs into another, or is wrong in itself."""

    def misplaced(parts: list[Path]) -> None:
        first, second = read_raw(parts[0]), read_raw(parts[1])
        second.tensors[0].name = first.tensors[0].name
        parts[1].write_bytes(second.to_bytes())

    def other_version(raw: RawModel) -> None:
        raw.version = 5 - raw.version

    def no_tensors(raw: RawModel) -> None:
        raw.tensors, raw.data = [], b""

    def wrong_type(raw: RawModel) -> None:
        raw.tensors[0].kind = 25

    yield "a tensor twice", _split(base, misplaced)
    yield "another version", _edited(base, 1, other_version)
    yield "a part without tensors", _edited(base, 1, no_tensors)
    yield "an integer tensor", _edited(base, 1, wrong_type)
    yield (
        "another architecture",
        _edited(base, 1, lambda raw: raw.put("general.architecture", STRING, "bert")),
    )
    yield "an alignment", _edited(base, 1, lambda raw: raw.put("general.alignment", U32, 64))
    yield "an alignment of 0", _edited(base, 1, lambda raw: raw.put("general.alignment", U32, 0))
    yield "offset", _edited(base, 1, lambda raw: setattr(raw.tensors[0], "offset", 32))
    yield "dims", _edited(base, 1, lambda raw: setattr(raw.tensors[0], "dims", [2**62, 4]))
    yield "extra tensor", _edited(base, 2, lambda raw: setattr(raw.tensors[-1], "name", b"more.weight"))
    yield (
        "vocabulary",
        _edited(base, 1, lambda raw: raw.put("tokenizer.ggml.tokens", ARRAY, (STRING, ["a"]))),
    )
