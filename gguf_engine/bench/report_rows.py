"""The cases of one or more records as rows of a report: their names, colours and figures."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from gguf_engine.bench import figures
from gguf_engine.bench.figures import Spread
from gguf_engine.bench.record import OURS, Case, MemorySpeed, Record, Trial

_ENGINES = {"bare": "bare llama.cpp loop"}


@dataclass(frozen=True, slots=True)
class Row:
    """
    One case.

    Attributes:
        run: The name of its record; "" where there is one record.
        record, case: Where it stands.
        colour: Cases on one device with one engine have one; it may be shared beyond that.
    """

    run: str
    record: Record
    case: Case
    colour: int

    @property
    def place(self) -> str:
        """Where it ran, and by which engine where there are several: what is fast or slow."""
        device = (
            self.threads if self.case.device == "cpu" else f"{self.model_of_device} ({self.case.device})"
        )
        is_alone = all(case.engine == OURS for case in self.record.cases)
        engine = "" if is_alone else f"{self.engine}, "
        return f"{self.run}: {engine}{device}" if self.run else f"{engine}{device}"

    @property
    def threads(self) -> str:
        """Such as "cpu, 2 threads"."""
        return f"{self.case.device}, {self.case.n_threads} thread{'s' * (self.case.n_threads != 1)}"

    @property
    def engine(self) -> str:
        """The engine, in words where its name is none."""
        return _ENGINES.get(self.case.engine, self.case.engine)

    @property
    def subject(self) -> str:
        """The device as a sentence names it."""
        where = self.threads if self.case.device == "cpu" else self.case.device
        of = f" of {self.run}" if self.run else ""
        by = "" if self.case.engine == OURS else f" with {self.engine}"
        return f"{self.model_of_device} ({where}){of}{by}"

    @property
    def model_of_device(self) -> str:
        """What the device is sold as."""
        if self.case.device == "cpu":
            return self.record.machine.cpu
        names = {card.name: card.description for card in self.record.machine.devices}
        return names.get(self.case.device, self.case.device)

    @property
    def label(self) -> str:
        """The place, and what is not plain about the case."""
        case = self.case
        parts = [self.place]
        if case.depth:
            parts.append(f"after {case.depth:,} tokens")
        if case.concurrency > 1:
            parts.append(f"{case.concurrency} at once")
        if case.neighbour:
            parts.append("beside a busy program")
        return ", ".join(parts)

    @property
    def decode(self) -> Spread | None:
        """Tokens per second after the first."""
        return self.over(figures.decode_tokens_per_s)

    @property
    def prefill(self) -> Spread | None:
        """Prompt tokens per second."""
        return self.over(self.prefill_of)

    def prefill_of(self, trial: Trial) -> float | None:
        """Return a trial's prompt tokens per second."""
        return figures.prefill_tokens_per_s(trial, self.record.workload.n_prompt)

    @property
    def achieved(self) -> Spread | None:
        """Bytes of weights read per second in decode."""
        return self.over(lambda trial: figures.decode_bytes_per_s(trial, self.record.model))

    @property
    def memory(self) -> MemorySpeed | None:
        """What the memory of the host gave to so many threads; a GPU has its own."""
        return figures.memory_of(self.record, self.case.n_threads) if self.case.device == "cpu" else None

    @property
    def memory_limit(self) -> float | None:
        """Bytes per second that plain loops reached, the faster of reading and copying."""
        speed = self.memory
        samples = [] if speed is None else [speed.read_bytes_per_s, speed.copy_bytes_per_s]
        return max((statistics.median(each) for each in samples if each), default=None)

    def over(self, figure: Callable[[Trial], float | None]) -> Spread | None:
        """Return the spread of a figure over the trials."""
        return figures.over_trials(self.case, figure)

    def samples(self, figure: Callable[[Trial], float | None]) -> list[float]:
        """Return the values of a figure that are there."""
        return [value for trial in self.case.trials if (value := figure(trial)) is not None]


def rows_of(records: Sequence[Record], names: Sequence[str]) -> tuple[Row, ...]:
    """
    Return every case that has trials, in the order of the records.

    Args:
        records: At least one.
        names: What to call each; of one record its name is not shown.
    """
    colours: dict[tuple[int, str, str, int], int] = {}
    rows: list[Row] = []
    for i, (record, name) in enumerate(zip(records, names, strict=True)):
        for case in record.cases:
            if case.trials:
                group = (i, case.engine, case.device, case.n_threads)
                colour = colours.setdefault(group, len(colours))
                rows.append(Row(name if len(records) > 1 else "", record, case, colour))
    return tuple(rows)


def plain(rows: Iterable[Row]) -> list[Row]:
    """Return the rows of each record with the least context and the fewest requests at once."""
    found = list(rows)
    least = {
        id(row.record): min(
            (each.case.depth, each.case.concurrency) for each in found if each.record is row.record
        )
        for row in found
    }
    return [row for row in found if (row.case.depth, row.case.concurrency) == least[id(row.record)]]


def contestants(rows: Iterable[Row]) -> list[Row]:
    """Return the fastest plain row of each device of each record, fastest first; ours, if there are any."""
    quiet = [row for row in plain(rows) if row.decode is not None and not row.case.neighbour]
    found = [row for row in quiet if row.case.engine == OURS] or quiet
    best: dict[tuple[int, str], Row] = {}
    for row in found:
        key = (id(row.record), row.case.device)
        if key not in best or speed(row) > speed(best[key]):
            best[key] = row
    return sorted(best.values(), key=speed, reverse=True)


def speed(row: Row) -> float:
    """Return median tokens per second in decode, 0 where they are not known."""
    return row.decode.median if row.decode else 0.0


def is_clear(first: Spread, second: Spread) -> bool:
    """Return whether the middle halves of two samples lie apart: else a difference may be chance."""
    return first.q1 > second.q3 or second.q1 > first.q3
