"""Records → one HTML page that stands alone: no script, no font, no picture from elsewhere."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from gguf_engine.bench import figures
from gguf_engine.bench.record import STAGES, Record, RecordError, Trial
from gguf_engine.bench.report_answers import agreement, answer_rows
from gguf_engine.bench.report_charts import Bar, Curve, bars, check_charts, curves, shares, stacks
from gguf_engine.bench.report_rows import Row, plain, rows_of, speed
from gguf_engine.bench.report_tables import cards, figures_table
from gguf_engine.bench.report_words import sentences, verdict

MAX_LINES = 8  # of one chart: more cannot be told apart


class Chart(NamedTuple):
    """One figure of the page; `key` is (name, the page's colour) for what has no label of its own."""

    title: str
    caption: str
    svg: Any
    key: Sequence[tuple[str, str]] = ()


class Section(NamedTuple):
    """Charts that answer one question."""

    title: str
    lead: str
    charts: Sequence[Chart]


def render_report(records: Sequence[Record], names: Sequence[str] = ()) -> str:
    """
    Return the page over one or more records.

    Args:
        records: In the order to show them; whether they can be compared is checked by who compares.
        names: What to call each, such as the name of its file; by default A, B and so on.

    Raises:
        ChartsMissingError: matplotlib is not installed.
        RecordError: No record, or none with a case that has trials.
    """
    check_charts()
    from jinja2 import Environment

    called = list(names) or [chr(ord("A") + i) for i in range(len(records))]
    rows = rows_of(records, called)
    if not rows:
        raise RecordError("a report needs a record with at least one case; run `gguf-engine bench` first")
    answers = answer_rows(records, called)
    # Names of models and devices are a stranger's text: everything is escaped but the charts.
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(
        files(__package__).joinpath("report.html").read_text(encoding="utf-8")
    )
    return template.render(
        title=f"{' and '.join(dict.fromkeys(record.model.name for record in records))}: benchmark report",
        verdict=verdict(rows),
        sentences=[*agreement(answers), *sentences(rows)],
        marks=[_of(records, name, mark) for record, name in zip(records, called, strict=True)
               for mark in record.marks],
        notes=[_of(records, name, note) for record, name in zip(records, called, strict=True)
               for note in record.notes],
        workload=_workload(records[0]),
        sections=list(_sections(rows)),
        answers=answers,
        table=figures_table(rows),
        cards=list(cards(records, called)),
    )  # fmt: skip


def _of(records: Sequence[Record], name: str, sentence: str) -> str:
    return f"{name}: {sentence}" if len(records) > 1 else sentence


def _workload(record: Record) -> str:
    work = record.workload
    n_trials = sorted({len(case.trials) for case in record.cases})
    trials = f"{n_trials[0]}" if len(n_trials) == 1 else f"{n_trials[0]} to {n_trials[-1]}"
    return (
        f"Every case reads a prompt of {work.n_prompt:,} tokens and writes {work.n_tokens:,}, {trials} "
        "times, each time in a new process; cases take turns."
    )


def _sections(rows: Sequence[Row]) -> Iterator[Section]:
    for section in (_speed(rows), _time(rows), _growth(rows), _memory(rows)):
        if section.charts:
            yield section


def _speed(rows: Sequence[Row]) -> Section:
    charts = (
        _bars(
            plain(rows),
            "Writing (decode)",
            "Tokens per second after the first. Longer is faster.",
            figures.decode_tokens_per_s,
        ),
        _bars(
            plain(rows),
            "Reading the prompt (prefill)",
            "Prompt tokens per second. Longer is faster.",
            None,
        ),
    )
    lead = "The bar is the median of all trials, the dark line their middle half, each small tick a trial."
    return Section("How fast", lead, [chart for chart in charts if chart])


def _bars(
    rows: Sequence[Row], title: str, caption: str, figure: Callable[[Trial], float | None] | None
) -> Chart | None:
    drawn = [
        Bar(row.label, samples, row.colour)
        for row in rows
        if (samples := row.samples(figure or row.prefill_of))
    ]
    return Chart(title, caption, _safe(bars(drawn, "tokens/s"))) if drawn else None


def _safe(svg: str) -> Any:
    """Tell the template that this is markup; labels in it were escaped by who drew it."""
    from markupsafe import Markup

    return Markup(svg)  # noqa: S704


def _time(rows: Sequence[Row]) -> Section:
    found = [_stages(plain(rows)), _first_tokens(plain(rows)), _gaps(plain(rows))]
    lead = "The same requests, by what somebody who waits for the answer sees."
    return Section("Where the time goes", lead, [chart for chart in found if chart])


def _stages(rows: Sequence[Row]) -> Chart | None:
    drawn: list[tuple[str, list[float]]] = []
    for row in rows:
        trials = [trial for trial in row.case.trials if trial.stages and trial.total_s is not None]
        if trials:
            parts = [_mean(trial.stages.get(stage, 0.0) for trial in trials) for stage in STAGES]
            rest = _mean(max(0.0, figures.rest_s(trial) or 0.0) for trial in trials)
            drawn.append((row.label, [1e3 * part for part in (*parts, rest)]))
    if not drawn:
        return None
    names = [*(stage.replace("_", " ") for stage in STAGES), "unexplained"]
    caption = "Milliseconds of one request by stage, means of all trials. Shorter is faster."
    key = [(name, f"s{i}") for i, name in enumerate(names)]
    return Chart("Stages", caption, _safe(stacks(drawn, "ms")), key)


def _mean(values: Iterator[float]) -> float:
    found = list(values)
    return sum(found) / len(found)


def _first_tokens(rows: Sequence[Row]) -> Chart | None:
    drawn = [
        Bar(row.label, [1e3 * value for value in samples], row.colour)
        for row in rows
        if (samples := row.samples(figures.first_token_s))
    ]
    caption = "Milliseconds from the prompt's ids to the first token. Shorter is faster."
    return Chart("First token", caption, _safe(bars(drawn, "ms"))) if drawn else None


def _gaps(rows: Sequence[Row]) -> Chart | None:
    found = [(row, figures.token_gaps_s(row.case)) for row in rows]
    drawn = [(row.label, [1e3 * gap for gap in gaps], row.colour) for row, gaps in found if gaps]
    if not drawn:
        return None
    left_out = f" The first {MAX_LINES} of {len(drawn)} cases." if len(drawn) > MAX_LINES else ""
    caption = f"A steep line is an even pace; a long tail at the top is a stutter.{left_out}"
    shown = drawn[:MAX_LINES]
    colours = _line_colours([colour for _, _, colour in shown])
    recoloured = [(label, gaps, colour) for (label, gaps, _), colour in zip(shown, colours, strict=True)]
    key = [(label, f"c{colour}") for label, _, colour in recoloured]
    return Chart(
        "Time between tokens", caption, _safe(shares(recoloured, "milliseconds between two tokens")), key
    )


def _line_colours(wanted: Sequence[int]) -> Sequence[int]:
    """Return the colours of rows where each has its own; else others, for lines have no labels."""
    reduced = [colour % MAX_LINES for colour in wanted]
    return reduced if len(set(reduced)) == len(reduced) else range(len(reduced))


def _growth(rows: Sequence[Row]) -> Section:
    quiet = [row for row in rows if not row.case.neighbour]
    least = {(id(row.record), row.case.depth, row.case.concurrency) for row in plain(rows)}
    depths, counts = ({(run, n[i]) for run, *n in least} for i in (0, 1))
    together = _curves(
        [row for row in quiet if (id(row.record), row.case.depth) in depths],
        lambda row: row.case.concurrency,
        (
            "Requests at once",
            "All requests' tokens per second. A line that rises as fast as the count is ideal.",
        ),
        ("requests at once", True),
    )
    deep = _curves(
        [row for row in quiet if (id(row.record), row.case.concurrency) in counts],
        lambda row: row.case.depth,
        ("A longer conversation", "Tokens per second when so many tokens stand before the answer."),
        ("tokens in the context before", False),
    )
    return Section("What more work does", "", [chart for chart in (together, deep) if chart])


def _curves(
    rows: Sequence[Row], x_of: Callable[[Row], int], words: tuple[str, str], axis: tuple[str, bool]
) -> Chart | None:
    """Draw decode speed over one option, a line for each place; the rows differ in nothing else."""
    lines: dict[str, list[Row]] = {}
    for row in rows:
        if row.decode:
            lines.setdefault(row.place, []).append(row)
    several = [sorted(line, key=x_of) for line in lines.values() if len({x_of(row) for row in line}) > 1]
    if not several:
        return None
    shown = several[:MAX_LINES]
    colours = _line_colours([line[0].colour for line in shown])
    drawn = [
        Curve(line[0].place, [(x_of(row), speed(row)) for row in line], colour)
        for line, colour in zip(shown, colours, strict=True)
    ]
    key = [(curve.label, f"c{curve.colour}") for curve in drawn]
    x_label, log = axis
    return Chart(*words, _safe(curves(drawn, x_label, "tokens/s", log=log)), key)


def _memory(rows: Sequence[Row]) -> Section:
    drawn: list[Bar] = []
    for row in plain(rows):
        samples = row.samples(lambda trial, row=row: figures.decode_bytes_per_s(trial, row.record.model))  # type: ignore[misc]
        if samples:
            limit = row.memory_limit
            marks = {} if limit is None else {"memory": limit / 1e9}
            drawn.append(Bar(row.label, [value / 1e9 for value in samples], row.colour, marks))
    caption = (
        "Gigabytes of weights read per second while writing. The tick across a bar is what a plain loop "
        "over large buffers gets from this memory: who reaches it cannot be faster with these weights."
    )
    charts = [Chart("Weights through memory", caption, _safe(bars(drawn, "GB/s")))] if drawn else []
    used = [
        Bar(row.label, [value / 2**20 for value in samples], row.colour)
        for row in rows
        if not row.case.neighbour
        and (samples := [t.peak_host_bytes for t in row.case.trials if t.peak_host_bytes is not None])
    ]
    if used:
        caption = "Most memory the process held, in MiB, of the host. Shorter is less."
        charts.append(Chart("Memory taken", caption, _safe(bars(used, "MiB"))))
    lead = "Every token reads all weights once: where computing is quick enough, memory sets the pace."
    return Section("Memory", lead, charts)
