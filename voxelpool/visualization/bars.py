"""Variants side by side as a picture: bars with deviations, and curves over what was changed."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from voxelpool.errors import DataError
from voxelpool.files import atomic_write

Color = tuple[int, int, int]
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PAPER, INK, FAINT, RULE = (255, 255, 255), (24, 27, 34), (110, 117, 130), (222, 226, 233)
#: Of the variants in turn; told apart with any kind of colour blindness (Okabe and Ito).
COLORS: tuple[Color, ...] = (
    (0, 114, 178),
    (230, 159, 0),
    (0, 158, 115),
    (204, 121, 167),
    (213, 94, 0),
    (86, 180, 233),
    (120, 120, 120),
    (100, 60, 160),
    (140, 90, 40),
    (60, 60, 60),
    (170, 200, 40),
    (240, 130, 130),
)
_PAD, _GAP, _WIDTH, _HEIGHT = 28, 62, 250, 260
_BAR = 64


@dataclass(frozen=True)
class Bar:
    """One variant.

    Attributes:
        name: below it.
        value: its height.
        deviation: of the whisker up and down; 0 draws none.
    """

    name: str
    value: float
    deviation: float = 0.0


@dataclass(frozen=True)
class Curve:
    """What became of one variant; (x, value, deviation) each, by x."""

    points: Sequence[tuple[float, float, float]]


@dataclass(frozen=True)
class Panel:
    """A plot of its own: a title, and a curve for each bar in the same order."""

    title: str
    curves: Sequence[Curve]


def draw_bars(
    bars: Sequence[Bar],
    panels: Sequence[Panel],
    path: str | os.PathLike[str],
    *,
    title: str = "",
    unit: str = "",
) -> None:
    """Writes bars, and the panels beside and below them, as PNG.

    The axis of the bars begins where their differences can be seen, which its numbers tell; that
    of the panels holds all of their values, and is the same for all.

    Args:
        bars: one a variant, at least one.
        panels: curves of the same variants.
        path: the picture; its folder must exist.
        title: above all.
        unit: of the values.

    Raises:
        DataError: nothing to draw, values that are not finite, or a panel of other variants.
        OSError: it cannot be written.
    """
    if not bars:
        raise DataError("there are no bars to draw")
    numbers = [number for bar in bars for number in (bar.value, bar.deviation)]
    for panel in panels:
        if len(panel.curves) != len(bars):
            raise DataError(
                f"panel {panel.title!r} has {len(panel.curves)} curves of {len(bars)} variants"
            )
        numbers += [number for curve in panel.curves for point in curve.points for number in point]
    if not all(math.isfinite(number) for number in numbers):
        raise DataError("what is drawn must be finite")
    picture = _draw(bars, panels, title, unit)
    with atomic_write(path, "wb") as file:
        picture.save(file, format="PNG")


def axis_of(values: Sequence[float]) -> tuple[float, float, float]:
    """Low end, high end and step of an axis that holds values: steps of 1, 2 or 5 times 10^n."""
    low, high = min(values), max(values)
    room = max(high - low, 1e-3 * max(abs(high), 1.0))
    step = 10.0 ** math.floor(math.log10(room))
    for factor in (0.2, 0.5, 1.0, 2.0):
        if room / (factor * step) <= 6:
            step *= factor
            break
    first, last = math.floor(low / step), math.ceil(high / step)
    return first * step, (last if last > first else first + 1) * step, step


class _Plot:
    """A frame with an axis of values, at a place of the picture."""

    def __init__(
        self, draw: ImageDraw.ImageDraw, left: int, top: int, width: int, values: Sequence[float]
    ) -> None:
        self.draw, self.left, self.top, self.width = draw, left, top, width
        self.low, self.high, step = axis_of(values)
        font = ImageFont.load_default(12)
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        for k in range(round((self.high - self.low) / step) + 1):
            value = self.low + k * step
            row = self.row(value)
            draw.line((left, row, left + width, row), fill=RULE)
            draw.text((left - 6, row), f"{value:.{digits}f}", FAINT, font, anchor="rm")

    def row(self, value: float) -> float:
        """Of a value."""
        share = (value - self.low) / (self.high - self.low)
        return self.top + _HEIGHT * (1 - share)

    def heading(self, text: str) -> None:
        """Above the frame."""
        self.draw.text((self.left, self.top - 12), text, INK, ImageFont.load_default(14), "ls")

    def whisker(self, column: float, value: float, deviation: float, color: Color) -> None:
        """A deviation up and down, cut at the frame."""
        if not deviation:
            return
        ends = [min(max(value + sign * deviation, self.low), self.high) for sign in (-1, 1)]
        rows = [self.row(end) for end in ends]
        self.draw.line((column, rows[0], column, rows[1]), fill=color, width=2)
        for row in rows:
            self.draw.line((column - 5, row, column + 5, row), fill=color, width=2)


def _draw(bars: Sequence[Bar], panels: Sequence[Panel], title: str, unit: str) -> Image.Image:
    bar_width = max(_WIDTH, _BAR * len(bars))
    beside = 3  # panels in a row
    rows = max(1, math.ceil(len(panels) / beside))
    columns = min(len(panels), beside)
    width = _PAD + _GAP + bar_width + columns * (_GAP + _WIDTH) + 2 * _PAD
    large = ImageFont.load_default(20)
    width = max(width, 2 * _PAD + int(large.getlength(title)))
    head = _PAD + (34 if title else 0) + 30
    height = head + rows * (_HEIGHT + 84)
    picture = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(picture)
    draw.text((_PAD, _PAD), title, fill=INK, font=large)
    spans = [end for bar in bars for end in (bar.value - bar.deviation, bar.value + bar.deviation)]
    _draw_bars(_Plot(draw, _PAD + _GAP - 14, head, bar_width, spans), bars, unit)
    everything = [
        value for panel in panels for curve in panel.curves for _, value, _ in curve.points
    ]
    for number, panel in enumerate(panels):
        left = _PAD + _GAP + bar_width + _GAP + (number % beside) * (_GAP + _WIDTH)
        top = head + number // beside * (_HEIGHT + 84)
        _draw_panel(_Plot(draw, left, top, _WIDTH, everything), panel)
    return picture


def _draw_bars(plot: _Plot, bars: Sequence[Bar], unit: str) -> None:
    plot.heading(unit)
    draw, font = plot.draw, ImageFont.load_default(13)
    step = plot.width / len(bars)
    bottom = plot.top + _HEIGHT
    names = [_broken(bar.name, font, step - 6) for bar in bars]
    below = bottom + 8 + 16 * max(name.count("\n") + 1 for name in names)
    for k, (bar, name) in enumerate(zip(bars, names, strict=True)):
        middle, half = plot.left + (k + 0.5) * step, min(0.36 * step, 40)
        row = plot.row(bar.value)
        draw.rectangle((middle - half, row, middle + half, bottom), fill=_color(k))
        plot.whisker(middle, bar.value, bar.deviation, INK)
        draw.text((middle, bottom + 6), name, INK, font, anchor="ma", align="center", spacing=3)
        draw.text((middle, below), f"{bar.value:.2f}", FAINT, font, anchor="ma")
        if bar.deviation:
            draw.text((middle, below + 16), f"± {bar.deviation:.2f}", FAINT, font, anchor="ma")


def _broken(name: str, font: Any, width: float) -> str:
    """A name in lines of so many pixels, where its underscores allow that."""
    lines = [""]
    for part in name.replace("_", "_\n").split("\n"):
        if lines[-1] and font.getlength(lines[-1] + part) > width:
            lines.append("")
        lines[-1] += part
    return "\n".join(lines)


def _draw_panel(plot: _Plot, panel: Panel) -> None:
    plot.heading(panel.title)
    draw, font = plot.draw, ImageFont.load_default(12)
    places = sorted({x for curve in panel.curves for x, _, _ in curve.points})
    if not places:
        return
    room = (places[-1] - places[0]) or 1.0

    def column(x: float) -> float:
        return plot.left + 12 + (plot.width - 24) * (x - places[0]) / room

    for x in places:
        draw.text((column(x), plot.top + _HEIGHT + 6), f"{x:g}", FAINT, font, anchor="ma")
    for k, curve in enumerate(panel.curves):
        spots = [(column(x), plot.row(value)) for x, value, _ in curve.points]
        draw.line(spots, fill=_color(k), width=3)
        for (x, value, deviation), (left, top) in zip(curve.points, spots, strict=True):
            draw.ellipse((left - 4, top - 4, left + 4, top + 4), fill=_color(k))
            plot.whisker(column(x), value, deviation, _color(k))


def _color(row: int) -> Color:
    return COLORS[row % len(COLORS)]
