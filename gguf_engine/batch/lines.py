"""Bytes of JSONL or CSV → numbered lines; a line → its values. A CSV becomes the JSONL it stands for."""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO

from gguf_engine.errors import OptionError

MAX_LINE_BYTES = 16 * 2**20
MAX_ID_CHARACTERS = 1000
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class Line:
    """
    One line of the input, not read further than to its end.

    Attributes:
        number: Of the line on which it begins, from 1.
        end: Bytes of the input up to and with it.
        data: Its bytes; for a row of a CSV, a JSON object with its text as `input`.
        fault: Why it is no line that can be read; "" if it is one.
    """

    number: int
    end: int
    data: bytes
    fault: str = ""

    @property
    def digest(self) -> str:
        """The first 16 hex digits of its sha256."""
        return hashlib.sha256(self.data).hexdigest()[:16]


def read_jsonl(source: BinaryIO) -> Iterator[Line]:
    """
    Yield the lines of a JSONL file; blank ones are counted and left out.

    Args:
        source: Read as the lines are asked for. A line longer than 16 MiB is a fault, and not kept.
    """
    for number, end, data in _split(source):
        stripped = data.strip()
        if len(data) > MAX_LINE_BYTES:
            yield Line(number, end, data[:80], f"it is longer than {MAX_LINE_BYTES} bytes")
        elif stripped:
            yield Line(number, end, stripped)


def read_csv(source: BinaryIO, column: str) -> Iterator[Line]:
    """
    Yield the rows of a CSV file whose first row names the columns; blank rows are left out.

    Args:
        source: UTF-8, read as the rows are asked for.
        column: The column with the inputs. A column "id" gives the ids; others are not read.

    Raises:
        OptionError: There is no such column, or two; the first row is read at once.
    """
    table = _Table(source)
    try:
        names = next(table.rows, [])
    except csv.Error as error:
        raise OptionError("column", column, "a column of a CSV file", f"its first row: {error}") from None
    if names.count(column) != 1:
        known = f": {', '.join(names)[:500]}" if names else "; there is no first row"
        raise OptionError("column", column, f"one that the first row names once{known}")
    id_at = names.index("id") if names.count("id") == 1 and column != "id" else None
    return _csv_lines(table, column, names.index(column), id_at)


def column_names(source: BinaryIO) -> list[str]:
    """Return what the first row of a CSV file names; nothing where it has none, or is no CSV."""
    try:
        return next(_Table(source).rows, [])
    except csv.Error:
        return []


class _Table:
    """
    The rows of a CSV file.

    Attributes:
        n_lines, n_bytes: Read so far.
        rows: Yields the next ones.
    """

    def __init__(self, source: BinaryIO) -> None:
        self.n_lines = self.n_bytes = 0
        self.rows = csv.reader(self._texts(source), strict=True)

    def _texts(self, source: BinaryIO) -> Iterator[str]:
        for self.n_lines, self.n_bytes, data in _split(source):
            yield data.decode("utf-8", "surrogateescape")


def _csv_lines(table: _Table, column: str, at: int, id_at: int | None) -> Iterator[Line]:
    while True:
        number = table.n_lines + 1
        try:
            row = next(table.rows, None)
        except csv.Error as error:
            yield Line(number, table.n_bytes, str(error).encode(), f"this row is not CSV: {error}")
            continue
        if row is None:
            return
        if len(row) <= at:
            if row:
                what = f"it has {len(row)} columns, and {column!r} is column {at + 1}"
                yield Line(number, table.n_bytes, json.dumps(row).encode(), what)
            continue
        values = {"input": row[at]}
        if id_at is not None and id_at < len(row) and row[id_at]:
            values = {"id": row[id_at], **values}
        yield Line(number, table.n_bytes, json.dumps(values).encode())


def _split(source: BinaryIO) -> Iterator[tuple[int, int, bytes]]:
    """Yield number, end and bytes of each line; of one that is too long, as much as shows that it is."""
    number = end = 0
    while data := source.readline(MAX_LINE_BYTES + 1):
        number, end = number + 1, end + len(data)
        last = data
        while len(last) > MAX_LINE_BYTES and not last.endswith(b"\n"):
            last = source.readline(MAX_LINE_BYTES + 1)
            end += len(last)
        yield number, end, data.removeprefix(_BOM) if number == 1 else data


def read_values(line: Line) -> dict[str, Any]:
    """
    Return the JSON object of a line.

    Raises:
        OptionError: It is none, or not UTF-8 text.
    """
    if line.fault:
        shown = line.data[:80].decode("utf-8", "replace")
        raise OptionError("line", shown, "one that can be read", line.fault)
    try:
        text = line.data.decode("utf-8")
        values = json.loads(text, parse_constant=_refuse_constant)
        json.dumps(values, ensure_ascii=False).encode()  # finds the lone surrogates of escapes
    except UnicodeError as error:
        raise OptionError("line", line.data[:80], "UTF-8 text", str(error)) from None
    except (ValueError, RecursionError) as error:
        raise OptionError("line", text[:80], "a JSON object", str(error)) from None
    if not isinstance(values, dict):
        raise OptionError("line", text[:80], "a JSON object")
    return values


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def read_id(values: dict[str, Any], line: Line) -> str | int:
    """
    Return the id of a line's object, its number where it has none; `values` has none afterwards.

    Raises:
        OptionError: It is neither a text of at most 1000 characters nor an integer.
    """
    line_id = values.pop("id", None)
    if line_id is None:
        return line.number
    if isinstance(line_id, str) and len(line_id) <= MAX_ID_CHARACTERS:
        return line_id
    if isinstance(line_id, int) and not isinstance(line_id, bool):
        return line_id
    raise OptionError("id", line_id, f"a text of at most {MAX_ID_CHARACTERS} characters, or an integer")
