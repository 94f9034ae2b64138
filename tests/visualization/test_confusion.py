"""The picture of a confusion matrix."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxelpool.errors import DataError
from voxelpool.visualization import draw_confusion

NAMES = ("Car", "Pedestrian", "night_stand")


def colours(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB")).astype(int)


def test_right_is_blue_wrong_is_red_and_nothing_is_white(tmp_path: Path) -> None:
    right, wrong = tmp_path / "right.png", tmp_path / "wrong.png"
    draw_confusion(np.diag([5, 6, 7]), NAMES, right, title="all right")
    draw_confusion([[0, 5, 0], [0, 0, 6], [7, 0, 0]], NAMES, wrong)
    for path, has, other in ((right, 2, 0), (wrong, 0, 2)):
        pixels = colours(path)
        strong = np.abs(pixels - pixels.mean(axis=2, keepdims=True)).max(axis=2) > 40
        assert (pixels[strong][:, has] > pixels[strong][:, other]).mean() > 0.99
        assert 3 * 40 * 40 < strong.sum() < 3 * 64 * 64, "three cells"


def test_a_darker_cell_is_a_larger_share(tmp_path: Path) -> None:
    means = []
    for count in (1, 4, 9):
        draw_confusion([[count, 10 - count], [0, 0]], ("a", "b"), tmp_path / "x.png")
        pixels = colours(tmp_path / "x.png")
        blue = (pixels[..., 2] - pixels[..., 0])[pixels[..., 2] > pixels[..., 0] + 12]
        means.append(blue.mean())
    assert means == sorted(means)


def test_size_follows_classes_and_long_names_fit(tmp_path: Path) -> None:
    sizes = []
    for names in (("a",), ("a", "a"), ("a", "a very long name of a class indeed")):
        draw_confusion(np.eye(len(names), dtype=int), names, tmp_path / "x.png")
        sizes.append(Image.open(tmp_path / "x.png").size)
    assert sizes[1][0] - sizes[0][0] == sizes[1][1] - sizes[0][1] == 64
    assert sizes[2] > sizes[1]


def test_no_objects_at_all(tmp_path: Path) -> None:
    draw_confusion(np.zeros((2, 2), int), ("a", "b"), tmp_path / "x.png")
    assert Image.open(tmp_path / "x.png").format == "PNG"


@pytest.mark.parametrize(
    ("counts", "message"),
    [(np.zeros((2, 3)), r"\(3, 3\), got \(2, 3\)"), (-np.eye(3), "one below 0")],
)
def test_bad_input(counts: np.ndarray, message: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=message):
        draw_confusion(counts, NAMES, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
    with pytest.raises(OSError, match="cannot write"):
        draw_confusion(np.eye(3), NAMES, tmp_path / "no" / "x.png")
