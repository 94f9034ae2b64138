"""Charts, by the pixels that their numbers must give."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from voxelpool.errors import DataError
from voxelpool.visualization.bars import COLORS
from voxelpool.visualization.curves import (
    DARK,
    DENSITY,
    SIZE,
    Line,
    draw_groups,
    draw_histogram,
    draw_lines,
    smoothed,
)

FRAME_TOP = 60 * DENSITY  # below title and legend


def spots_of(picture: Image.Image, color: tuple[int, int, int]) -> np.ndarray:
    """(n, 2) row and column of the pixels of a colour, legend left out."""
    rows, columns = np.nonzero((np.asarray(picture) == color).all(axis=2))
    spots = np.stack([rows, columns], axis=1)
    return spots[spots[:, 0] > FRAME_TOP]


def test_a_line_rises_with_its_values() -> None:
    picture = draw_lines([Line("a", [0, 1, 2], [0, 5, 10])], title="t", y_range=(0, 10))
    assert picture.size == (SIZE[0] * DENSITY, SIZE[1] * DENSITY)
    spots = spots_of(picture, COLORS[0])
    left, right = spots[spots[:, 1].argmin()], spots[spots[:, 1].argmax()]
    assert left[0] > right[0] + 300
    middle = spots[np.abs(spots[:, 1] - (left[1] + right[1]) / 2) < 3, 0].mean()
    assert middle == pytest.approx((left[0] + right[0]) / 2, abs=4)


def test_logarithmic_values_are_as_far_apart_as_their_powers() -> None:
    picture = draw_lines(
        [Line(f"{k}", [0, 1], [10.0**k] * 2) for k in range(3)], title="t", log=True
    )
    rows = [spots_of(picture, COLORS[k])[:, 0].mean() for k in range(3)]
    assert rows[0] - rows[1] == pytest.approx(rows[1] - rows[2], abs=2)
    assert rows[0] - rows[2] > 300


def test_gaps_and_values_that_have_no_logarithm_are_left_out() -> None:
    whole = draw_lines([Line("a", range(5), [1, 1, 1, 1, 1])], title="t", y_range=(0, 2))
    gap = draw_lines([Line("a", range(5), [1, 1, np.nan, 1, 1])], title="t", y_range=(0, 2))
    width = np.ptp(spots_of(whole, COLORS[0])[:, 1])
    columns = np.unique(spots_of(gap, COLORS[0])[:, 1])
    assert np.ptp(columns) == pytest.approx(width, abs=2)
    assert np.diff(columns).max() == pytest.approx(width / 2, rel=0.05)
    positive = draw_lines([Line("a", range(3), [0, 1, 10])], title="t", log=True)
    assert len(spots_of(positive, COLORS[0]))


def test_groups_are_as_high_as_their_values() -> None:
    picture = draw_groups(
        {"x": [25, 100], "y": [50, float("nan")]}, ["p", "q"], title="t", y_range=(0, 100)
    )
    first, second = spots_of(picture, COLORS[0]), spots_of(picture, COLORS[1])
    bottom = first[:, 0].max()
    full = bottom - first[:, 0].min()
    quarter = first[first[:, 1] < first[:, 1].mean() - 100]
    assert (bottom - quarter[:, 0].min()) / full == pytest.approx(0.25, abs=0.01)
    assert (bottom - second[:, 0].min()) / full == pytest.approx(0.5, abs=0.01)


def test_histogram_stacks_its_counts() -> None:
    picture = draw_histogram([0, 0.5, 1.0], {"low": [3, 0], "high": [1, 4]}, title="t", mark=0.25)
    low, high = spots_of(picture, COLORS[0]), spots_of(picture, COLORS[1])
    assert low[:, 1].max() < high[:, 1].max() - 300, "only the first bin holds some"
    over = high[high[:, 1] < low[:, 1].max()]
    assert over[:, 0].max() < low[:, 0].min(), "on top"
    assert (np.ptp(low[:, 0]) + 1) / (np.ptp(high[:, 0]) + 1) == pytest.approx(0.75, abs=0.02)
    # Both stand equally high: 3 + 1 and 0 + 4.
    assert over[:, 0].min() == pytest.approx(high[:, 0].min(), abs=2)


def test_dark_paper() -> None:
    line = Line("a", [0, 1], [0, 1])
    light, dark = (np.asarray(draw_lines([line], title="t", dark=d)) for d in (False, True))
    assert (light[0, 0] == 255).all() and tuple(dark[0, 0]) == DARK.ground
    assert light.mean() > 200 and dark.mean() < 60


def test_nothing_to_show_is_said() -> None:
    pictures = [
        draw_lines([], title="t"),
        draw_lines([Line("a", [0], [np.nan])], title="t"),
        draw_groups({"x": []}, [], title="t"),
        draw_histogram([0, 1], {"x": [0]}, title="t"),
    ]
    assert len({picture.tobytes() for picture in pictures}) == 1
    middle = np.asarray(pictures[0])[FRAME_TOP:]
    assert (middle < 128).any()


def test_one_point_is_seen() -> None:
    assert len(spots_of(draw_lines([Line("a", [3], [7])], title="t"), COLORS[0])) > 20


def test_bad_input() -> None:
    with pytest.raises(DataError, match="'a': x and y must be"):
        Line("a", [0, 1], [0])
    with pytest.raises(DataError, match="'x' has 1 bars for 2 names"):
        draw_groups({"x": [1]}, ["a", "b"], title="t")
    with pytest.raises(DataError, match="'x': 2 bins"):
        draw_histogram([0, 1, 2], {"x": [1]}, title="t")


@pytest.mark.parametrize("reach", [0, 1, 3, 50])
def test_smoothing_is_the_mean_of_what_is_near(reach: int) -> None:
    values = np.random.default_rng(0).random(20)
    expected = [values[max(0, k - reach) : k + reach + 1].mean() for k in range(20)]
    assert smoothed(values, reach).tolist() == pytest.approx(expected)
