"""The picture of variants side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxelpool.errors import DataError
from voxelpool.visualization.bars import COLORS, Bar, Curve, Panel, axis_of, draw_bars


def pixels_of(path: Path, color: tuple[int, int, int]) -> np.ndarray:
    return (np.asarray(Image.open(path).convert("RGB")) == color).all(axis=2)


def test_a_higher_value_is_a_higher_bar(tmp_path: Path) -> None:
    draw_bars([Bar("a", 60.0), Bar("b", 80.0), Bar("c", 70.0)], [], tmp_path / "x.png", title="t")
    rows = [np.flatnonzero(pixels_of(tmp_path / "x.png", c).any(axis=1)) for c in COLORS[:3]]
    assert len({r.max() for r in rows}) == 1, "all stand on one line"
    heights = [len(row) for row in rows]
    low, high, _ = axis_of([60.0, 80.0])
    scale = 260 / (high - low)
    for height, value in zip(heights, (60, 80, 70), strict=True):
        assert height == pytest.approx(scale * (value - low), abs=2)


def test_a_deviation_is_a_whisker_of_its_length(tmp_path: Path) -> None:
    inks = []
    for deviation in (0.0, 5.0):
        draw_bars([Bar("", 60.0, deviation), Bar("", 90.0)], [], tmp_path / "x.png")
        inks.append(pixels_of(tmp_path / "x.png", (24, 27, 34)).sum())
    assert inks[1] > inks[0] + 80


def test_panels_hold_a_curve_of_each_variant(tmp_path: Path) -> None:
    up, down = Curve([(0, 10, 1), (1, 20, 0)]), Curve([(0, 20, 0), (1, 10, 0)])
    bars = [Bar("a", 50), Bar("b", 50.5)]
    sizes, amounts = [], []
    for count in (0, 1, 4):
        panels = [Panel(f"panel {k}", [up, down]) for k in range(count)]
        draw_bars(bars, panels, tmp_path / "x.png")
        sizes.append(Image.open(tmp_path / "x.png").size)
        amounts.append(pixels_of(tmp_path / "x.png", COLORS[1]).sum())
    assert amounts[1] > amounts[0] + 200 and amounts[2] > amounts[1] + 600
    assert sizes[0][0] < sizes[1][0] < sizes[2][0] and sizes[1][1] < sizes[2][1]


@pytest.mark.parametrize(
    "values", [[0.0, 0.0], [91.2, 92.4], [3.0, 99.0], [-4.0, 7.0], [1e-5, 2e-5], [55.5]]
)
def test_axes_hold_their_values_at_round_steps(values: list[float]) -> None:
    low, high, step = axis_of(values)
    assert low <= min(values) and max(values) <= high and high > low
    assert 1 <= round((high - low) / step) <= 9
    mantissa = step / 10.0 ** np.floor(np.log10(step) + 1e-9)
    assert any(mantissa == pytest.approx(m) for m in (1, 2, 5))


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no bars"):
        draw_bars([], [], tmp_path / "x.png")
    with pytest.raises(DataError, match="has 0 curves of 1 variants"):
        draw_bars([Bar("a", 1)], [Panel("p", [])], tmp_path / "x.png")
    with pytest.raises(DataError, match="finite"):
        draw_bars([Bar("a", float("nan"))], [], tmp_path / "x.png")
    assert not list(tmp_path.iterdir())


def test_long_names_do_not_run_into_their_neighbours(tmp_path: Path) -> None:
    """Of a name with underscores nothing lies under the next bar; the values move below it."""
    bars = [Bar("flatten_window_average", 60.0), Bar("", 60.0), Bar("", 60.0), Bar("", 60.0)]
    draw_bars(bars, [], tmp_path / "x.png")
    ink = pixels_of(tmp_path / "x.png", (24, 27, 34)) | pixels_of(tmp_path / "x.png", COLORS[1])
    below = int(np.flatnonzero(pixels_of(tmp_path / "x.png", COLORS[0]).any(axis=1)).max()) + 2
    first, second = (
        np.flatnonzero(pixels_of(tmp_path / "x.png", color).any(axis=0)) for color in COLORS[:2]
    )
    name = np.flatnonzero(ink[below:].any(axis=0))
    assert name.min() > first.min() - 20 and name.max() < second.min() + 2
    assert len(np.flatnonzero(ink[below:].any(axis=1))) > 20, "more than one line"
