"""The page, in a real browser: it loads from disk alone, shows what it must, and obeys."""

from __future__ import annotations

import io
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from voxelpool.errors import DataError, VoxelpoolError
from voxelpool.structures import VoxelGrid
from voxelpool.visualization import (
    BoxGroup,
    CameraImage,
    PointGroup,
    Scene,
    VoxelGroup,
    render_html,
)

GREEN, ORANGE, RED = (0.0, 1.0, 0.0), (1.0, 0.5, 0.0), (1.0, 0.0, 0.0)
EVIL = "</script><b id='evil'>&\"'"
GRID = VoxelGrid((0, -20, -3, 40, 20, 1), (0.5, 0.5, 0.5))


def frame(seed: int) -> Scene:
    rng = np.random.default_rng(seed)
    points = rng.uniform([1, -18, -2, 0], [39, 18, -1, 1], (4000, 4))
    voxels = VoxelGroup(rng.integers(0, [4, 80, 80], (60, 3)), rng.integers(1, 20, 60), GRID)
    boxes = np.array([[12.0, -3.0, 0.0, 4.0, 1.8, 1.6, 0.3], [22.0, 4.0, 0.0, 4.0, 1.8, 1.6, 1.0]])
    found = BoxGroup(boxes + 0.3, "found", ORANGE, scores=[0.9, 0.5], names=["Car", EVIL])
    projection = np.array([[20.0, -40, 0, 0], [10, 0, -40, 0], [1, 0, 0, 0]])
    return Scene(
        points,
        [BoxGroup(boxes, "labelled", GREEN, names=["Car", "Van"], difficulty=[0, 2]), found],
        title=f"{EVIL} {seed}",
        voxels=voxels,
        marks=[PointGroup(rng.uniform([5, -9, 0], [20, 9, 2], (300, 3)), "marked", RED)],
        camera=CameraImage(np.full((40, 80, 3), 90, np.uint8), projection),
    )


class Page:
    """A page in the browser, and what a user does to it."""

    def __init__(self, browser: Any, path: Path) -> None:
        self.browser = browser
        browser.open(path)
        browser.wait("document.body.dataset.ready === 'yes'")

    def see(self) -> np.ndarray:
        """The pixels between the panels, two pictures after the last change."""
        settled = "new Promise(r => setTimeout(() => requestAnimationFrame(() => r(1)), 400))"
        self.browser.run(settled)
        with Image.open(io.BytesIO(self.browser.screenshot())) as picture:
            seen = np.asarray(picture.convert("RGB")).astype(int)
        return seen[60:, 330:]

    def count(self, color: tuple[float, float, float]) -> int:
        return int((np.abs(self.see() - np.array(color) * 255).max(axis=2) < 30).sum())

    def click(self, layer: str) -> None:
        self.browser.run(f"document.querySelector('[data-layer=\"{layer}\"]').click()")

    def text(self, selector: str) -> str:
        return self.browser.run(f"document.querySelector('{selector}').textContent")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / "page.html"
    render_html([frame(0), frame(1)], path)
    return path


@pytest.fixture
def page(browser: Any, file: Path) -> Page:
    return Page(browser, file)


def test_it_shows_everything_and_complains_of_nothing(page: Page) -> None:
    seen = page.see()
    background = (np.abs(seen - [16, 18, 24]).max(axis=2) < 8).mean()
    assert 0.2 < background < 0.98, "neither blank nor full"
    assert page.count(GREEN) > 100 and page.count(ORANGE) > 100 and page.count(RED) > 100
    assert page.text("#vp-legend h1") == f"{EVIL} 0"
    assert page.browser.run("document.getElementById('evil')") is None
    legend = page.text("#vp-layers")
    for words in ("points: 4,000", "voxels: 60", "labelled: 2", "found: 2", "marked: 300"):
        assert words in legend
    words = page.text("#vp-words")
    assert "Car easy" in words and "Van hard" in words and "Car 0.90" in words and "20 m" in words
    assert page.browser.run("document.querySelector('#vp-image img').naturalWidth") == 900
    assert page.browser.complaints() == []


def test_every_layer_is_turned_off_and_on(page: Page) -> None:
    page.click("image")
    assert not page.browser.run("document.querySelector('#vp-image').checkVisibility()")
    for layer, color in (
        ("boxes labelled", GREEN),
        ("boxes found", ORANGE),
        ("mark marked", RED),
    ):
        before = page.count(color)
        page.click(layer)
        assert page.count(color) < 0.05 * before, layer
        page.click(layer)
        assert page.count(color) > 0.8 * before, layer
    for layer in ("points", "voxels", "ground"):
        before = page.see()
        page.click(layer)
        changed = (np.abs(page.see() - before).max(axis=2) > 40).mean()
        assert changed > 0.0005, layer
        page.click(layer)
        assert (np.abs(page.see() - before).max(axis=2) > 40).mean() < 0.2 * changed, layer
    page.click("image")
    assert page.browser.run("document.querySelector('#vp-image').checkVisibility()")
    page.click("texts")
    assert "Car" not in page.text("#vp-words")
    assert page.browser.complaints() == []


def test_colours_change(page: Page) -> None:
    for layer in ("voxels", "mark marked", "boxes labelled", "boxes found", "image", "texts"):
        page.click(layer)
    names = "[...document.querySelectorAll('#vp-color option')].map(o => o.textContent)"
    names = page.browser.run(names)
    assert names == ["height", "reflectance", "range", "distance", "class"]
    pictures = []
    for name in names:
        page.browser.run(
            f"(() => {{ const s = document.querySelector('#vp-color'); s.value = '{name}';"
            "s.dispatchEvent(new Event('change')); })()"
        )
        pictures.append(page.see())
    for row, picture in enumerate(pictures):
        for other in pictures[:row]:
            assert (np.abs(picture - other).max(axis=2) > 40).mean() > 0.001
    assert "Van" in page.text("#vp-scale")
    # By class: what no box holds is of one grey.
    grey = (np.abs(pictures[-1] - [0x4A, 0x52, 0x64]).max(axis=2) < 12).sum()
    assert grey > 5 * (np.abs(pictures[0] - [0x4A, 0x52, 0x64]).max(axis=2) < 12).sum()
    page.browser.press("c")
    assert page.browser.run("document.querySelector('#vp-color').value") == "height"


def test_frames_and_keys(page: Page) -> None:
    first = page.see()
    page.browser.run(
        "(() => { const s = document.querySelector('#vp-slider'); s.value = 1;"
        "s.dispatchEvent(new Event('input')); })()"
    )
    assert page.text("#vp-legend h1").endswith("1")
    assert (np.abs(page.see() - first).max(axis=2) > 40).mean() > 0.005
    page.browser.press("n")
    assert page.text("#vp-legend h1").endswith("0")
    assert (np.abs(page.see() - first).max(axis=2) > 40).mean() < 0.002
    page.browser.press("b")
    assert page.count(GREEN) < 20
    page.browser.press("h")
    assert (
        page.browser.run("getComputedStyle(document.querySelector('#vp-help')).display") == "block"
    )
    assert page.browser.complaints() == []


def test_it_turns(page: Page) -> None:
    before = page.see()
    page.browser.run("document.querySelector('[data-view=bev]').click()")
    above = page.see()
    assert (np.abs(above - before).max(axis=2) > 40).mean() > 0.01
    for kind, x in (("mousePressed", 600), ("mouseMoved", 700), ("mouseReleased", 700)):
        page.browser.mouse(kind, x, 300, button="left", buttons=1, clickCount=1)
    assert (np.abs(page.see() - above).max(axis=2) > 40).mean() > 0.005
    assert page.browser.complaints() == []


# Time passes with the mouse alone: each of the three pictures after a move takes
# `window.pictureMs`, any other none, or as long too where time is let go.
CLOCK = """
window.pictureMs = 16;
window.letGo = false;
let clock = 0, last = null, slow = 0;
window.addEventListener('pointermove', () => slow = 3, true);
const before = window.requestAnimationFrame.bind(window);
window.requestAnimationFrame = then => before(real => {
  if (real !== last) {
    last = real;
    if (slow > 0 || window.letGo) { clock += window.pictureMs; slow -= 1; }
  }
  then(clock);
});
"""


def test_where_drawing_is_slow_less_is_drawn_while_it_turns(page: Page, file: Path) -> None:
    browser = page.browser
    added = browser.call("Page.addScriptToEvaluateOnNewDocument", source=CLOCK)
    try:
        page = Page(browser, file)
    finally:
        browser.call("Page.removeScriptToEvaluateOnNewDocument", **added)

    def shares(took: float, until: float) -> list[float]:
        """Turns, each picture taking ``took`` ms, until such a share is drawn; all that were."""
        browser.run(f"window.pictureMs = {took}")
        seen: list[float] = []
        for move in range(400):
            browser.mouse("mouseMoved", 700 + 7 * move % 200, 300, button="left", buttons=1)
            browser.run("new Promise(r => requestAnimationFrame(() => requestAnimationFrame(r)))")
            seen.append(float(browser.run("document.body.dataset.drawn")))
            if seen[-1] == until and move > 4:
                return seen
        raise AssertionError(f"never {until}: {seen}")

    for layer in ("mark marked", "boxes labelled", "boxes found", "image", "texts", "ground"):
        page.click(layer)
    browser.mouse("mousePressed", 700, 300, button="left", buttons=1, clickCount=1)
    assert set(shares(16, until=1)) == {1}
    slow = shares(60, until=1 / 32)
    assert slow == sorted(slow, reverse=True)
    assert set(shares(80, until=1 / 32)) == {1 / 32}, "no less than that, however slow"
    thinned = page.see()
    browser.run("window.letGo = true")
    browser.wait("document.body.dataset.drawn === '1'")
    whole = page.see()
    drawn = [(np.abs(seen - [16, 18, 24]).max(axis=2) > 40).sum() for seen in (thinned, whole)]
    assert 0 < 8 * drawn[0] < drawn[1]
    browser.run("window.letGo = false")
    quick = shares(16, until=1)[1:]
    assert quick[0] < 1, "the next turning begins with what was fast enough"
    assert quick == sorted(quick)
    assert browser.complaints() == []


def test_the_beginning_of_what_is_drawn_is_spread_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    k3d = pytest.importorskip("k3d")
    sent: dict[str, np.ndarray] = {}
    for name in ("points", "mesh"):
        made = getattr(k3d, name)

        def keep(first: np.ndarray, *rest: Any, made: Any = made, name: str = name, **more: Any):
            if len(first) > 1:
                sent[name] = first
            return made(first, *rest, **more)

        monkeypatch.setattr(k3d, name, keep)
    count = 1000
    points = np.zeros((count, 4))
    points[:, 0] = np.arange(count)
    coords = np.zeros((count, 3), int)
    coords[:, 2] = np.arange(count)
    grid = VoxelGrid((0, 0, 0, count, 1, 1), (1, 1, 1))
    render_html(Scene(points, voxels=VoxelGroup(coords, np.ones(count, int), grid)), tmp_path / "a")
    for rows in (sent["points"][:, 0], sent["mesh"][::8, 0]):
        np.testing.assert_array_equal(np.sort(rows), np.arange(count))
        for halvings in range(1, 6):
            first = rows[: -(-count // 2**halvings)]
            np.testing.assert_array_equal(np.sort(first), np.arange(0, count, 2**halvings))


def test_a_sweep_of_real_size_stays_small(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    points = rng.uniform([-70, -70, -3, 0], [70, 70, 1, 1], (120_000, 4)).astype(np.float32)
    grid = VoxelGrid((-70.4, -70.4, -3, 70.4, 70.4, 1), (0.2, 0.2, 0.4))
    coords = rng.integers(0, grid.shape, (20_000, 3))
    scene = Scene(points, voxels=VoxelGroup(coords, rng.integers(1, 36, 20_000), grid))
    render_html(scene, tmp_path / "a.html")
    assert (tmp_path / "a.html").stat().st_size < 15e6


def test_scenes_without_anything(browser: Any, tmp_path: Path) -> None:
    none = BoxGroup(np.zeros((0, 7)), "none", GREEN)
    render_html(Scene(np.zeros((0, 3)), [none]), tmp_path / "a.html")
    page = Page(browser, tmp_path / "a.html")
    assert "none: 0" in page.text("#vp-layers")
    assert page.browser.complaints() == []


def test_what_it_refuses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="at least one scene"):
        render_html([], tmp_path / "a.html")
    with pytest.raises(DataError, match="unknown 'below'; known: bev"):
        render_html(frame(0), tmp_path / "a.html", view="below")  # type: ignore[arg-type]
    with pytest.raises(OSError, match="cannot write"):
        render_html(Scene(np.zeros((1, 3))), tmp_path / "none" / "a.html")
    monkeypatch.setitem(sys.modules, "k3d", None)
    with pytest.raises(VoxelpoolError, match=r"pip install 'voxelpool\[html\]'"):
        render_html(frame(0), tmp_path / "a.html")
    assert list(tmp_path.iterdir()) == []
