"""Charts: lines, bars side by side and histograms, each on light and on dark paper."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image, ImageDraw, ImageFont

from voxelpool.errors import DataError
from voxelpool.visualization.bars import COLORS, Color, axis_of

Float = NDArray[np.float64]

SIZE = (520, 340)
"""Width and height of a chart, in pixels of a screen of ordinary density."""
DENSITY = 2  # pixels of the picture for each of these
_FINE = 2  # everything is drawn this much larger and then averaged, for smooth edges
_SCALE = DENSITY * _FINE
_LEFT, _RIGHT, _TOP, _BOTTOM = 58, 18, 66, 46


@dataclass(frozen=True)
class Paper:
    """The colours that a chart is drawn with, beside those of its lines."""

    ground: Color
    ink: Color
    faint: Color
    rule: Color
    lift: float
    """Share of white that is mixed into the lines' colours."""


LIGHT = Paper((255, 255, 255), (24, 27, 34), (98, 105, 118), (226, 229, 235), 0.0)
DARK = Paper((22, 25, 32), (230, 233, 240), (156, 163, 178), (52, 57, 68), 0.3)
_BLACK = 9  # a colour of `COLORS` too dark for dark paper without more


@dataclass(frozen=True, eq=False)
class Line:
    """One line of a chart.

    Args:
        name: in the legend.
        x: (n,) numbers; where x or y is not finite, the line has a gap.
        y: (n,) numbers.

    Raises:
        DataError: lengths that differ.
    """

    name: str
    x: ArrayLike
    y: ArrayLike

    def __post_init__(self) -> None:
        x, y = np.asarray(self.x, np.float64), np.asarray(self.y, np.float64)
        if x.shape != y.shape or x.ndim != 1:
            raise DataError(f"line {self.name!r}: x and y must be (n,), got {x.shape}, {y.shape}")
        object.__setattr__(self, "x", x)
        object.__setattr__(self, "y", y)


def smoothed(values: ArrayLike, reach: int) -> Float:
    """Each value's mean with those at most ``reach`` places away; fewer at both ends."""
    values = np.asarray(values, np.float64)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    rows = np.arange(len(values))
    first, last = np.maximum(rows - reach, 0), np.minimum(rows + reach + 1, len(values))
    means: Float = (sums[last] - sums[first]) / (last - first)
    return means


def draw_lines(
    lines: Sequence[Line],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    x_range: tuple[float, float] | None = None,
    y_range: tuple[float, float] | None = None,
    log: bool = False,
    marks: bool = False,
    dark: bool = False,
) -> Image.Image:
    """Draws lines over a common axis.

    Args:
        lines: in the order of the legend; without any finite value the chart says so.
        title: above.
        x_label: below.
        y_label: above the axis of values.
        x_range: of the axis below; by default what the lines span.
        y_range: of the axis of values; by default whole steps around what the lines span.
        log: logarithmic values; those that are not positive are left out.
        marks: a dot at each point.
        dark: light on dark.
    """
    chart = _Chart(title, DARK if dark else LIGHT)
    spots = np.concatenate([np.zeros((0, 2)), *(_shown(line.x, line.y, log) for line in lines)])
    if not len(spots):
        return chart.nothing()
    x_low, x_high = x_range or (float(spots[:, 0].min()), float(spots[:, 0].max()))
    if x_high == x_low:
        x_low, x_high = x_low - 1, x_high + 1
    low, high = y_range or (float(spots[:, 1].min()), float(spots[:, 1].max()))
    if log:
        chart.log_axis(low, high)
    else:
        chart.axis(low, high, fixed=y_range is not None)
    chart.labels(x_label, y_label)
    chart.places(x_low, x_high)
    chart.legend([line.name for line in lines])
    for row, line in enumerate(lines):
        chart.polyline(line.x, line.y, row, log=log, marks=marks)
    return chart.picture()


def draw_groups(
    groups: Mapping[str, Sequence[float]],
    names: Sequence[str],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    y_range: tuple[float, float] | None = None,
    dark: bool = False,
) -> Image.Image:
    """Draws bars side by side, such as recall and AP at several distances.

    Args:
        groups: bars of one colour by their name in the legend, one for each of ``names``; none is
            drawn for a NaN.
        names: below the bars.
        title: above.
        x_label: below the names.
        y_label: above the axis of values.
        y_range: of the axis of values; by default from 0 to what the highest bar needs.
        dark: light on dark.

    Raises:
        DataError: a group of another length.
    """
    chart = _Chart(title, DARK if dark else LIGHT)
    for name, values in groups.items():
        if len(values) != len(names):
            raise DataError(f"group {name!r} has {len(values)} bars for {len(names)} names")
    finite = [value for values in groups.values() for value in values if math.isfinite(value)]
    if not finite:
        return chart.nothing()
    chart.axis(*(y_range or (0.0, max(*finite, 0.0))), fixed=y_range is not None)
    chart.labels(x_label, y_label)
    chart.legend(list(groups))
    step = chart.width / len(names)
    room = 0.78 * step / len(groups)
    for place, name in enumerate(names):
        left = chart.left + step * (place + 0.11)
        chart.text(chart.left + step * (place + 0.5), chart.bottom + 6, name, "ma")
        for row, values in enumerate(groups.values()):
            if math.isfinite(values[place]):
                ends = left + room * row, left + room * (row + 0.92)
                chart.bar(*ends, 0.0, float(values[place]), row)
    return chart.picture()


def draw_histogram(
    edges: ArrayLike,
    counts: Mapping[str, ArrayLike],
    *,
    title: str,
    x_label: str = "",
    y_label: str = "",
    mark: float | None = None,
    dark: bool = False,
) -> Image.Image:
    """Draws histograms of the same bins, stacked.

    Args:
        edges: (k + 1,) ends of the bins, evenly spaced.
        counts: (k,) of each group by its name in the legend, the lowest first.
        title: above.
        x_label: below.
        y_label: above the axis of counts.
        mark: a dashed line at this value.
        dark: light on dark.

    Raises:
        DataError: counts of another length.
    """
    chart = _Chart(title, DARK if dark else LIGHT)
    ends = np.asarray(edges, np.float64)
    parts = {name: np.asarray(part, np.float64) for name, part in counts.items()}
    for name, part in parts.items():
        if part.shape != (len(ends) - 1,):
            raise DataError(f"{name!r}: {len(ends) - 1} bins, but counts of shape {part.shape}")
    total = np.sum(list(parts.values()), axis=0)
    if not total.any():
        return chart.nothing()
    chart.axis(0.0, float(total.max()), whole=True)
    chart.labels(x_label, y_label)
    chart.places(float(ends[0]), float(ends[-1]))
    chart.legend([f"{name} ({round(part.sum())})" for name, part in parts.items()])
    base = np.zeros(len(total))
    for row, part in enumerate(parts.values()):
        for (left, right), low, height in zip(pairwise(ends), base, part, strict=True):
            if height:
                chart.bar(
                    chart.column(left) + 0.5, chart.column(right) - 0.5, low, low + height, row
                )
        base += part
    if mark is not None and ends[0] <= mark <= ends[-1]:
        chart.dashes(chart.column(mark))
    return chart.picture()


class _Chart:
    """A frame with axes; lengths in pixels of an ordinary screen."""

    def __init__(self, title: str, paper: Paper) -> None:
        self.paper = paper
        self.canvas = Image.new("RGB", (SIZE[0] * _SCALE, SIZE[1] * _SCALE), paper.ground)
        self.draw = ImageDraw.Draw(self.canvas)
        self.left, self.top = float(_LEFT), float(_TOP)
        self.width, self.height = float(SIZE[0] - _LEFT - _RIGHT), float(SIZE[1] - _TOP - _BOTTOM)
        self.bottom = self.top + self.height
        self.row: Callable[[float], float] = lambda value: self.bottom
        self.column: Callable[[float], float] = lambda place: self.left
        self._labelled = 0.0  # width of the writing above the frame, left of the legend
        self.text(14, 22, title, "ls", 15, paper.ink)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        anchor: str,
        size: int = 12,
        color: Color | None = None,
    ) -> None:
        font = ImageFont.load_default(size * _SCALE)
        self.draw.text((x * _SCALE, y * _SCALE), text, color or self.paper.faint, font, anchor)

    def length(self, text: str, size: int = 12) -> float:
        return self.draw.textlength(text, ImageFont.load_default(size * _SCALE)) / _SCALE

    def color(self, row: int) -> Color:
        """Of the line in a row of the legend."""
        color = COLORS[row % len(COLORS)]
        lift = 0.7 if row % len(COLORS) == _BLACK and self.paper.lift else self.paper.lift
        mixed = np.array(color) + lift * (255 - np.array(color))
        red, green, blue = np.rint(mixed).astype(int).tolist()
        return red, green, blue

    def line(self, spots: Sequence[tuple[float, float]], color: Color, width: float) -> None:
        scaled = [(x * _SCALE, y * _SCALE) for x, y in spots]
        self.draw.line(scaled, fill=color, width=round(width * _SCALE), joint="curve")

    def nothing(self) -> Image.Image:
        """What is shown where there is nothing to show."""
        middle = self.left + self.width / 2, self.top + self.height / 2
        self.text(*middle, "nothing to show", "mm", 14)
        return self.picture()

    def picture(self) -> Image.Image:
        return self.canvas.reduce(_FINE)

    def axis(self, low: float, high: float, *, fixed: bool = False, whole: bool = False) -> None:
        """The axis of values, at round steps."""
        first, last, step = axis_of([low, high])
        if whole and step < 1:
            first, last, step = 0.0, max(last, 1.0), 1.0
        start, end = (low, high) if fixed else (first, last)
        self.row = lambda value: self.top + self.height * (1 - (value - start) / (end - start))
        for k in range(round((last - first) / step) + 1):
            value = first + k * step
            if start - 1e-9 * step <= value <= end + 1e-9 * step:
                self._rule(value, _number(value, step))

    def log_axis(self, low: float, high: float) -> None:
        """The axis of values by powers of ten, with 2 and 5 between few of them."""
        start, end = math.log10(low), math.log10(high)
        room = max(0.03 * (end - start), 0.15 - (end - start) / 2)
        start, end = start - room, end + room
        self.row = lambda value: (
            self.top + self.height * (1 - (math.log10(value) - start) / (end - start))
        )
        factors = (1, 2, 5) if end - start < 2.5 else (1,)
        for power in range(math.floor(start), math.ceil(end) + 1):
            for factor in factors:
                value = factor * 10.0**power
                if start <= math.log10(value) <= end:
                    self._rule(value, f"{value:g}")

    def _rule(self, value: float, text: str) -> None:
        row = self.row(value)
        self.line([(self.left, row), (self.left + self.width, row)], self.paper.rule, 1)
        self.text(self.left - 8, row, text, "rm")

    def places(self, low: float, high: float) -> None:
        """The axis below, at round steps."""
        self.column = lambda x: self.left + self.width * (x - low) / (high - low)
        first, last, step = axis_of([low, high])
        for k in range(round((last - first) / step) + 1):
            x = first + k * step
            if low - 1e-9 * step <= x <= high + 1e-9 * step:
                column = self.column(x)
                ends = [(column, self.bottom), (column, self.bottom + 4)]
                self.line(ends, self.paper.faint, 1)
                self.text(column, self.bottom + 8, _number(x, step), "ma")

    def labels(self, x_label: str, y_label: str) -> None:
        self.text(self.left + self.width / 2, SIZE[1] - 8, x_label, "ms")
        self.text(self.left - 8, self.top - 14, y_label, "lm" if len(y_label) > 2 else "rm")
        self._labelled = self.length(y_label) if len(y_label) > 2 else 0.0

    def legend(self, names: Sequence[str]) -> None:
        """Names from the right, above the frame; smaller if there are many."""
        spare = self.width - self._labelled
        size = next(
            (s for s in (12, 11, 10, 9) if sum(self.length(n, s) + 28 for n in names) < spare), 8
        )
        right = self.left + self.width
        for row, name in reversed(list(enumerate(names))):
            self.text(right, self.top - 14, name, "rm", size, self.paper.ink)
            right -= self.length(name, size) + 4
            spots = [(right - 14, self.top - 14), (right, self.top - 14)]
            self.line(spots, self.color(row), 3)
            right -= 24

    def polyline(self, x: ArrayLike, y: ArrayLike, row: int, *, log: bool, marks: bool) -> None:
        """The pieces of a line between its gaps."""
        x, y = np.asarray(x), np.asarray(y)
        whole = np.isfinite(x) & np.isfinite(y) & ((y > 0) | (not log))
        color = self.color(row)
        piece: list[tuple[float, float]] = []
        for place, value, there in [*zip(x, y, whole, strict=True), (0.0, 0.0, False)]:
            if there:
                piece.append((self.column(place), self.row(value)))
                continue
            if len(piece) > 1:
                self.line(piece, color, 2.2)
            if marks or len(piece) == 1:
                for spot in piece:
                    self._dot(spot, color, 3.4)
            piece = []

    def _dot(self, spot: tuple[float, float], color: Color, radius: float) -> None:
        x, y = spot
        ends = (x - radius, y - radius, x + radius, y + radius)
        self.draw.ellipse([value * _SCALE for value in ends], fill=color)

    def bar(self, left: float, right: float, low: float, high: float, row: int) -> None:
        ends = (left, self.row(high), max(right, left + 1), self.row(low))
        self.draw.rectangle([value * _SCALE for value in ends], fill=self.color(row))

    def dashes(self, column: float) -> None:
        for top in np.arange(self.top, self.bottom, 8):
            self.line([(column, top), (column, top + 4)], self.paper.ink, 1.2)


def _shown(x: ArrayLike, y: ArrayLike, log: bool) -> Float:
    spots: Float = np.stack([np.asarray(x, np.float64), np.asarray(y, np.float64)], axis=1)
    return spots[np.isfinite(spots).all(axis=1) & ((spots[:, 1] > 0) | (not log))]


def _number(value: float, step: float) -> str:
    """With as many decimals as the steps need; thousands as "2k"."""
    if step >= 1000:
        return f"{value / 1000:g}k"
    if step < 1e-3:
        return f"{value:.1e}" if value else "0"
    return f"{value:.{max(0, -math.floor(math.log10(step) + 1e-9))}f}"
