"""A confusion matrix as a picture."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from PIL import Image, ImageDraw, ImageFont

from voxelpool.errors import DataError
from voxelpool.files import atomic_write

_PAPER, _INK, _FAINT, _RULE = (255, 255, 255), (24, 27, 34), (130, 137, 150), (214, 218, 226)
_RIGHT, _WRONG = (28, 104, 178), (200, 60, 30)  # a full share on and off the diagonal
_CELL, _PAD = 64, 24


def draw_confusion(
    confusion: ArrayLike,
    classes: Sequence[str],
    path: str | os.PathLike[str],
    *,
    title: str = "",
) -> None:
    """Draws a confusion matrix as `confusion_picture` and writes it as PNG.

    Args:
        confusion: (K, K) counts.
        classes: K names.
        path: the picture; its folder must exist.
        title: above the matrix.

    Raises:
        DataError: shapes that do not fit, or counts below 0.
        OSError: it cannot be written.
    """
    picture = confusion_picture(confusion, classes, title=title)
    with atomic_write(path, "wb") as file:
        picture.save(file, format="PNG")


def confusion_picture(
    confusion: ArrayLike, classes: Sequence[str], *, title: str = ""
) -> Image.Image:
    """Draws a confusion matrix.

    A row is what objects are, a column what they were taken for. Cells hold counts and the share
    of their row in percent, and are as dark as that share: blue where right, red where wrong.

    Args:
        confusion: (K, K) counts.
        classes: K names.
        title: above the matrix.

    Raises:
        DataError: shapes that do not fit, or counts below 0.
    """
    counts = np.asarray(confusion)
    size = len(classes)
    if counts.shape != (size, size) or not size:
        raise DataError(f"a confusion of {size} classes is ({size}, {size}), got {counts.shape}")
    if (counts < 0).any():
        raise DataError("a confusion holds counts, got one below 0")
    totals = counts.sum(axis=1)
    shares = np.divide(
        counts, totals[:, None], out=np.zeros(counts.shape), where=totals[:, None] > 0
    )
    return _draw(counts, shares, [str(name) for name in classes], title)


def _draw(counts: np.ndarray, shares: np.ndarray, classes: list[str], title: str) -> Image.Image:
    size = len(classes)
    font, small = ImageFont.load_default(16), ImageFont.load_default(12)
    large = ImageFont.load_default(20)
    names = [_name(name, font) for name in classes]
    left = _PAD + 22 + max(name.width for name in names) + 10
    top = _PAD + (34 if title else 0) + 22 + max(name.width for name in names) + 10
    recall_width = 90
    width = max(left + size * _CELL + recall_width, _PAD + int(large.getlength(title)))
    picture = Image.new("RGB", (width + _PAD, top + size * _CELL + _PAD), _PAPER)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((_PAD, _PAD), title, fill=_INK, font=large)
    middle = left + size * _CELL / 2
    draw.text((middle, _PAD + (34 if title else 0)), "taken for", _FAINT, small, anchor="ma")
    side = _name("is", small, _FAINT)
    picture.paste(side.rotate(90, expand=True), (_PAD, top + size * _CELL // 2))
    for k, name in enumerate(names):
        row = top + k * _CELL + (_CELL - name.height) // 2
        picture.paste(name, (left - 10 - name.width, row))
        turned = name.rotate(90, expand=True)
        column = left + k * _CELL + (_CELL - turned.width) // 2
        picture.paste(turned, (column, top - 10 - turned.height))
    for i in range(size):
        for j in range(size):
            spot = (left + j * _CELL, top + i * _CELL)
            _draw_cell(draw, spot, int(counts[i, j]), float(shares[i, j]), i == j, font, small)
        total = int(counts[i].sum())
        text = f"{100 * shares[i, i]:.1f}% of {total}" if total else "none"
        at = (left + size * _CELL + 10, top + i * _CELL + _CELL / 2)
        draw.text(at, text, fill=_FAINT, font=small, anchor="lm")
    return picture


def _draw_cell(
    draw: ImageDraw.ImageDraw,
    spot: tuple[int, int],
    count: int,
    share: float,
    right: bool,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    small: ImageFont.FreeTypeFont | ImageFont.ImageFont,
) -> None:
    full = _RIGHT if right else _WRONG
    depth = share**0.6  # so that a few percent can be seen
    red, green, blue = (
        round((1 - depth) * paper + depth * ink) for paper, ink in zip(_PAPER, full, strict=True)
    )
    x, y = spot
    draw.rectangle((x, y, x + _CELL - 1, y + _CELL - 1), fill=(red, green, blue), outline=_RULE)
    if not count:
        return
    ink = _PAPER if depth > 0.55 else _INK
    centre = x + _CELL / 2
    draw.text((centre, y + _CELL / 2 - 8), str(count), fill=ink, font=font, anchor="mm")
    draw.text((centre, y + _CELL / 2 + 12), f"{100 * share:.1f}%", ink, small, anchor="mm")


def _name(
    text: str,
    font: ImageFont.FreeTypeFont | ImageFont.ImageFont,
    color: tuple[int, int, int] = _INK,
) -> Image.Image:
    """The text on paper, just large enough."""
    box = font.getbbox(text)
    picture = Image.new("RGB", (max(int(box[2]) + 1, 1), max(int(box[3]) + 2, 1)), _PAPER)
    ImageDraw.Draw(picture).text((0, 0), text, fill=color, font=font)
    return picture
