"""
Samples → charts, as SVG that follows the page's colours. The only module that imports matplotlib.

Drawn narrow, with labels above their bars: a chart is as readable on a phone as in a column of a wide page.
Colours are placeholders, replaced by the page's CSS variables, so that one drawing fits light and dark.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from gguf_engine.bench.figures import Spread, percentile, spread
from gguf_engine.errors import GGUFEngineError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

N_COLOURS = 8
_INK, _MUTED, _LINE = "#010101", "#020202", "#030303"
_VARIABLES = {
    _INK: "ink",
    _MUTED: "muted",
    _LINE: "line",
    **{f"#0505{i:02x}": f"c{i}" for i in range(N_COLOURS)},
    **{f"#0606{i:02x}": f"s{i}" for i in range(N_COLOURS)},
}
_WIDTH, _ROW, _EDGE = 380.0, 40.0, 34.0  # points: the SVG's own pixels
# Any: matplotlib names every key in its types, from some version on.
_SETTINGS: dict[Any, Any] = {
    "text.parse_math": False,  # a dollar sign in a name is a dollar sign
    "svg.fonttype": "none",
    "svg.hashsalt": "gguf-engine",  # the same record gives the same page
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "font.size": 11.5,
    "text.color": _INK,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _MUTED,
    "xtick.color": _LINE,
    "ytick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.labelcolor": _MUTED,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": _LINE,
    "grid.linewidth": 0.7,
}


class ChartsMissingError(GGUFEngineError):
    """matplotlib is not installed."""


class Bar(NamedTuple):
    """
    One row of a bar chart.

    Attributes:
        label: What it is.
        samples: At least one.
        colour: Which of the page's, below N_COLOURS.
        marks: Name -> a value to show as a tick beside the bar.
    """

    label: str
    samples: Sequence[float]
    colour: int
    marks: Mapping[str, float] = {}


class Curve(NamedTuple):
    """One line of a chart: its points, x ascending, and which of the page's colours."""

    label: str
    points: Sequence[tuple[float, float]]
    colour: int


def check_charts() -> None:
    """
    Return if charts can be drawn.

    Raises:
        ChartsMissingError: They cannot; has the line that changes it.
    """
    try:
        import matplotlib.figure  # noqa: F401 - whether it is there
    except ImportError as error:
        raise ChartsMissingError(
            f"an HTML report needs matplotlib, which cannot be imported ({error}); install it with "
            "`pip install 'gguf-engine[bench]'`"
        ) from error


def bars(rows: Sequence[Bar], unit: str) -> str:
    """Return a bar a row: its length is the median, the dark line the quartiles, dots the samples."""
    with _drawing() as (figure, axes):
        _size(figure, axes, len(rows))
        longest = max(max(*row.samples, *row.marks.values(), 0) for row in rows) or 1.0
        for y, row in enumerate(rows):
            middle = _spread(row.samples)
            colour = f"#0505{row.colour % N_COLOURS:02x}"
            axes.barh(y, middle.median, height=0.42, color=colour)
            if middle.n > 1:
                axes.plot([middle.q1, middle.q3], [y, y], color=_INK, linewidth=1.6)
                axes.plot(row.samples, [y] * middle.n, "|", color=_INK, markersize=5, alpha=0.55)
            for place in row.marks.values():
                axes.plot([place, place], [y - 0.3, y + 0.3], color=_INK, linewidth=2)
            _row_label(axes, y, row.label, f"{number(middle.median)} {unit}")
        _value_axis(axes, longest)
        return _svg(figure)


def stacks(rows: Sequence[tuple[str, Sequence[float]]], unit: str) -> str:
    """Return a bar a row made of parts, in the order of the page's stage colours; parts are >= 0."""
    with _drawing() as (figure, axes):
        _size(figure, axes, len(rows))
        for y, (label, parts) in enumerate(rows):
            left = 0.0
            for i, part in enumerate(parts):
                axes.barh(y, part, left=left, height=0.42, color=f"#0606{i:02x}")
                left += part
            _row_label(axes, y, label, f"{number(left)} {unit}")
        _value_axis(axes, max(sum(parts) for _, parts in rows) or 1.0)
        return _svg(figure)


def shares(samples: Sequence[tuple[str, Sequence[float], int]], x_label: str) -> str:
    """Return, for each row of (label, samples, colour), which share of its samples is at most x."""
    with _drawing() as (figure, axes):
        _size_square(figure, axes)
        low = min(percentile(values, 0.001) or 0 for _, values, _ in samples)
        high = max(percentile(values, 0.999) or 0 for _, values, _ in samples)
        for _, values, colour in samples:
            ordered = sorted(values)
            share = [100.0 * (i + 1) / len(ordered) for i in range(len(ordered))]
            line = f"#0505{colour % N_COLOURS:02x}"
            axes.step([ordered[0], *ordered], [0.0, *share], where="post", color=line, linewidth=2)
        if low > 0 and high / low > 8:
            axes.set_xscale("log")
        else:
            axes.set_xlim(0, high * 1.05 or 1)
        _plain_numbers(axes)
        axes.set_ylim(0, 102)
        axes.set_xlabel(x_label)
        axes.set_ylabel("% of them took at most this")
        axes.grid(visible=True)
        return _svg(figure)


def curves(lines: Sequence[Curve], x_label: str, y_label: str, *, log: bool) -> str:
    """Return lines over a few counts; with `log` a doubling is one step, of far apart speeds as well."""
    with _drawing() as (figure, axes):
        _size_square(figure, axes)
        for line in lines:
            x, y = zip(*line.points, strict=True)
            axes.plot(x, y, "o-", color=f"#0505{line.colour % N_COLOURS:02x}", linewidth=2)
        if log:
            axes.set_xscale("log", base=2)
        heights = [y for line in lines for _, y in line.points]
        if log and max(heights) > 16 * min(heights):
            axes.set_yscale("log", base=2)
        else:
            axes.set_ylim(0, 1.05 * max(heights))
        ticks = sorted({x for line in lines for x, _ in line.points})
        axes.set_xticks(ticks, [_tick(tick, 0) for tick in ticks])
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(_tick)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(visible=True)
        return _svg(figure)


def number(value: float) -> str:
    """Return a number with three figures that count, and no exponent."""
    if value == 0 or not abs(value) < 1e15:
        return f"{value:g}"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    digits = 1 if abs(value) >= 10 else 2 if abs(value) >= 1 else 3
    return f"{value:.{digits}f}" if abs(value) >= 0.01 else f"{value:.2g}"


def _spread(samples: Sequence[float]) -> Spread:
    found = spread(samples)
    assert found is not None
    return found


class _drawing:  # noqa: N801 - a context manager, used like a function
    """An empty figure under this module's settings; nothing of matplotlib's state outlives it."""

    def __enter__(self) -> tuple[Figure, Axes]:
        check_charts()
        import matplotlib as mpl
        from matplotlib.figure import Figure

        self._context: Any = mpl.rc_context(_SETTINGS)
        self._context.__enter__()
        figure = Figure(dpi=72)
        return figure, figure.add_subplot()

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)


def _size(figure: Figure, axes: Axes, n_rows: int) -> None:
    height = n_rows * _ROW + _EDGE
    figure.set_size_inches(_WIDTH / 72, height / 72)
    axes.set_position((0.01, (_EDGE - 8) / height, 0.96, 1 - _EDGE / height))
    axes.set_ylim(n_rows - 0.5, -0.62)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def _size_square(figure: Figure, axes: Axes) -> None:
    figure.set_size_inches(_WIDTH / 72, 270 / 72)
    axes.set_position((0.15, 0.17, 0.83, 0.8))


def _value_axis(axes: Axes, longest: float) -> None:
    axes.set_xlim(0, longest * 1.02)
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter(_tick)
    axes.grid(visible=True, axis="x")
    axes.set_axisbelow(True)
    axes.tick_params(length=0)


def _plain_numbers(axes: Axes) -> None:
    axes.xaxis.set_major_formatter(_tick)
    if axes.get_xscale() == "log":
        from matplotlib.ticker import LogLocator, NullFormatter

        axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _tick(value: float, _: float) -> str:
    return f"{value:,.10g}"


def _row_label(axes: Axes, y: float, label: str, value: str) -> None:
    """Write what a bar is above its left end, and its value above the right edge."""
    place = axes.get_yaxis_transform()
    smaller = min(1.0, (56 - len(value)) / max(1, len(label)))  # both share one line
    font_size = max(8.0, 11.5 * smaller)
    axes.text(0, y - 0.29, label, transform=place, va="bottom", ha="left", fontsize=font_size)
    axes.text(1, y - 0.29, value, transform=place, va="bottom", ha="right", weight="bold")


def _svg(figure: Figure) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r"<defs>\s*<style.*?</style>\s*</defs>", "", text, flags=re.DOTALL)
    text = re.sub(r'<g id="[^"]*"', "<g", text)  # the same in every chart: not allowed on one page
    view = re.search(r'viewBox="[^"]*"', text)
    text = re.sub(r"^<svg[^>]*>", f"<svg {view[0] if view else ''} aria-hidden='true'>", text)
    text = re.sub(r"'DejaVu Sans'[^;\"]*", "system-ui, sans-serif", text)
    for placeholder, variable in _VARIABLES.items():
        text = text.replace(placeholder, f"var(--{variable})")
    return text
