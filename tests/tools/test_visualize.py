"""tools/visualize.py on a tiny data set."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from voxelpool.config import Config, FlipConfig, save_config
from voxelpool.models import build_detector
from voxelpool.models.checkpoint import write_checkpoint
from voxelpool.visualization import FALSE, FOUND, LABELLED, MISSED
from voxelpool.visualization.lessons import KEPT, WON
from voxelpool.visualization.scene import colormap

RunTool = Callable[..., tuple[int, str, str]]


def count_near(path: Path, color: tuple[float, float, float]) -> int:
    with Image.open(path) as picture:
        values = np.asarray(picture.convert("RGB")).astype(int)[56:]
    return int((np.abs(values - np.array(color) * 255).max(axis=2) < 25).sum())


def test_labels_and_results_are_drawn(run_tool: RunTool, tiny_kitti: Path, tmp_path: Path) -> None:
    results = tmp_path / "results"
    results.mkdir()
    lines = (tiny_kitti / "training" / "label_2" / "000001.txt").read_text().splitlines()
    (results / "000001.txt").write_text(f"{lines[0]} 0.9\n{lines[1]} 0.1\n")
    frame = ("--root", tiny_kitti, "--frame", "000001")
    code, out, _ = run_tool("visualize", *frame, "-o", tmp_path / "labels.png")
    assert code == 0 and "labels.png" in out
    code, _, _ = run_tool("visualize", *frame, "--results", results, "-o", tmp_path / "both.png")
    assert code == 0
    green, orange = LABELLED, FOUND
    assert count_near(tmp_path / "labels.png", green) > 100
    assert count_near(tmp_path / "labels.png", orange) == 0
    assert count_near(tmp_path / "both.png", orange) > 50
    sweep = tiny_kitti / "training" / "velodyne" / "000001.bin"
    code, _, _ = run_tool("visualize", sweep, "-o", tmp_path / "again.png")
    assert code == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "labels.png").read_bytes()


def test_what_it_refuses(run_tool: RunTool, tiny_kitti: Path, tmp_path: Path) -> None:
    def refused(*arguments: object) -> str:
        code, _, err = run_tool("visualize", *arguments)
        assert code == 1
        return err

    assert "give INPUT.bin, or --root and --frame" in refused()
    assert "give INPUT.bin, or --root and --frame" in refused("--root", tiny_kitti)
    assert "one of them" in refused("--root", tiny_kitti, "--simulate", 1)
    assert "--simulate has neither" in refused("--simulate", 1, "--frame", "000001")
    assert "belong to --root" in refused("a.bin", "--frames", "0:2")
    assert "give one of them" in refused("a.bin", "--png", "--html")
    assert "goes with --png or --html" in refused("a.bin", "--teach", "scores", "--window")
    assert "frames 9:12: none of the 6" in refused("--root", tiny_kitti, "--frames", "9:12")
    assert "two whole numbers" in refused("--root", tiny_kitti, "--frames", "1-2")
    assert "no frame 000099" in refused("--root", tiny_kitti, "--frame", "000099")
    mine = tmp_path / "mine.png"
    mine.write_text("keep")
    frame = ("--root", tiny_kitti, "--frame", "000001")
    assert "already exists" in refused(*frame, "-o", mine)
    assert mine.read_text() == "keep"


def test_matches_and_misses_have_their_colours(
    run_tool: RunTool, tiny_kitti: Path, tmp_path: Path
) -> None:
    """One of two labelled boxes is found, another is found where none is labelled."""
    results = tmp_path / "results"
    results.mkdir()
    lines = (tiny_kitti / "training" / "label_2" / "000001.txt").read_text().splitlines()
    words = lines[1].split()
    words[11], words[13] = "3.00", str(float(words[13]) + 4)  # to the right, and farther
    (results / "000001.txt").write_text(f"{lines[0]} 0.9\n{' '.join(words)} 0.6\n")
    frame = ("--root", tiny_kitti, "--frame", "000001", "--results", results)
    code, _, err = run_tool("visualize", *frame, "-o", tmp_path / "a.png")
    assert code == 0, err
    for color in (FOUND, LABELLED, MISSED, FALSE):
        assert count_near(tmp_path / "a.png", color) > 100, color
    code, _, _ = run_tool("visualize", *frame, "--min-score", 0.7, "-o", tmp_path / "b.png")
    assert code == 0 and count_near(tmp_path / "b.png", FALSE) == 0


def test_film_strips_and_pages(
    run_tool: RunTool, tiny_kitti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ("--root", tiny_kitti, "--frames", "1:4")
    code, out, err = run_tool("visualize", *root, "-o", tmp_path / "strip.png")
    assert code == 0 and out.split() == [str(tmp_path / "strip.png")], err
    with Image.open(tmp_path / "strip.png") as picture:
        assert picture.width > 2 * 800 and picture.height > 2 * 800
    pytest.importorskip("k3d")
    code, out, err = run_tool("visualize", *root, "-o", tmp_path / "page.html")
    assert code == 0, err
    page = (tmp_path / "page.html").read_text()
    assert all(f'"title":"00000{row}"' in page for row in (1, 2, 3))
    assert '"title":"000004"' not in page
    assert "slow to open" not in err
    monkeypatch.setattr("voxelpool.visualization.html.HEAVY", 100_000)
    code, _, err = run_tool("visualize", *root, "--overwrite", "-o", tmp_path / "page.html")
    assert code == 0 and "slow to open" in err


def test_it_says_what_it_chose(
    run_tool: RunTool, tiny_kitti: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("voxelpool.visualization.window.has_display", lambda: False)
    code, out, _ = run_tool("visualize", "--root", tiny_kitti, "--frame", "000002")
    assert code == 0
    assert out.splitlines()[0].startswith("a picture, since there is no display")
    assert out.splitlines()[1] == "000002_bev.png"
    assert (tmp_path / "000002_bev.png").is_file()


@pytest.mark.parametrize("lesson", ["kept", "winner", "histogram", "features", "scores"])
def test_lessons(
    lesson: str, run_tool: RunTool, tiny_kitti: Path, tiny_config: Config, tmp_path: Path
) -> None:
    config, checkpoint = tmp_path / "tiny.yaml", tmp_path / "tiny.ckpt"
    save_config(tiny_config, config)
    more: tuple[object, ...] = ("--config", config)
    if lesson in ("features", "scores"):
        write_checkpoint(checkpoint, tiny_config, build_detector(tiny_config).state_dict())
        more += ("--checkpoint", checkpoint)
    frame = ("--root", tiny_kitti, "--frame", "000001", "--teach", lesson)
    out = tmp_path / "a.png"
    code, _, err = run_tool("visualize", *frame, *more, "-o", out)
    assert code == 0, err
    signs = {"kept": KEPT, "winner": WON, "histogram": KEPT}
    assert count_near(out, signs.get(lesson, LABELLED)) > 100
    if lesson not in ("kept", "winner"):  # those are scenes, as any other
        code, _, err = run_tool("visualize", *frame, *more, "-o", tmp_path / "a.html")
        assert code == 0, err
        text = (tmp_path / "a.html").read_text()
        shown = re.findall(r"data:image/png;base64,([^\"]+)", text)
        assert len(shown) == 1 and "000001" in text
        with Image.open(io.BytesIO(base64.b64decode(shown[0]))) as picture, Image.open(out) as file:
            assert np.array_equal(np.asarray(picture), np.asarray(file))
    if lesson == "winner":
        code, _, err = run_tool(
            "visualize", *frame, *more, "--channel", "w", "-o", out, "--overwrite"
        )
        assert code == 1 and "channel must be one of x, y, z, reflectance, got 'w'" in err
    if lesson == "scores":
        code, _, err = run_tool("visualize", *frame, "-o", out, "--overwrite")
        assert code == 1 and "give --weights, or --config and --checkpoint" in err


def test_json_tells_what_was_drawn(
    run_tool: RunTool, tiny_kitti: Path, tiny_config: Config, tmp_path: Path
) -> None:
    """One of two labelled boxes is found; voxelization keeps at most one point a voxel."""
    results = tmp_path / "results"
    results.mkdir()
    lines = (tiny_kitti / "training" / "label_2" / "000001.txt").read_text().splitlines()
    (results / "000001.txt").write_text(f"{lines[0]} 0.9\n")
    frame = ("--root", tiny_kitti, "--frame", "000001", "--results", results)
    code, out, err = run_tool("visualize", *frame, "-o", tmp_path / "a.png", "--json", "-")
    assert code == 0, err
    told = json.loads(out)
    assert told["files"] == [str(tmp_path / "a.png")]
    assert [scene["title"] for scene in told["scenes"]] == ["000001"]
    boxes = told["scenes"][0]["boxes"]
    assert boxes["missed"] == len(lines) - 1 and sum(boxes.values()) == len(lines) + 1
    points = told["scenes"][0]["points"]
    path = tmp_path / "kept.json"
    options = ("--teach", "kept", "-o", tmp_path / "kept.png", "--json", path)
    code, _, err = run_tool("visualize", *frame, *options)
    assert code == 0, err
    marks = json.loads(path.read_text())["scenes"][0]["marks"]
    assert marks["kept"] > 0 and sum(marks.values()) == points


def test_voxels_of_a_sweep_and_of_a_file(
    run_tool: RunTool, tiny_kitti: Path, tiny_config: Config, tmp_path: Path
) -> None:
    save_config(tiny_config, tmp_path / "tiny.yaml")
    sweep = tiny_kitti / "training" / "velodyne" / "000001.bin"
    config = ("--config", tmp_path / "tiny.yaml")
    code, _, err = run_tool("voxelize", sweep, *config, "-o", tmp_path / "a.npz", "--padded")
    assert code == 0, err
    code, _, err = run_tool("visualize", tmp_path / "a.npz", "-o", tmp_path / "file.png")
    assert code == 0, err
    options = ("--voxels", "cubes", *config, "-o", tmp_path / "sweep.png")
    code, _, err = run_tool("visualize", sweep, *options)
    assert code == 0, err
    one = tuple(colormap(np.zeros(1))[0] / 255)  # voxels of one point
    assert count_near(tmp_path / "file.png", one) > 500
    assert count_near(tmp_path / "sweep.png", one) > 500
    np.savez(tmp_path / "b.npz", coords=np.zeros((1, 4)))
    code, _, err = run_tool("visualize", tmp_path / "b.npz", "-o", tmp_path / "b.png")
    assert code == 1 and "not what tools/voxelize.py writes" in err


def test_a_simulated_street(run_tool: RunTool, tmp_path: Path) -> None:
    options = ("--simulate", 7, "--color", "class", "-o", tmp_path / "a.png")
    code, _, err = run_tool("visualize", *options)
    assert code == 0, err
    assert count_near(tmp_path / "a.png", LABELLED) > 100


def test_a_frame_is_drawn_as_it_is_trained_on(
    run_tool: RunTool, tiny_config: Config, tmp_path: Path
) -> None:
    """Flipped for certain: what is drawn after is what is drawn before, upside down."""
    flip = FlipConfig(name="flip", probability=1.0)
    config = tiny_config.model_copy(
        update={"data": tiny_config.data.model_copy(update={"augment": (flip,)})}
    )
    save_config(config, tmp_path / "tiny.yaml")
    arguments = ("--augmented", tmp_path / "tiny.yaml", "--frame", "000001")
    code, out, err = run_tool("visualize", *arguments, "-o", tmp_path / "frame.png")
    assert code == 0, err
    assert out.split() == [str(tmp_path / "frame.png"), str(tmp_path / "frame_augmented.png")]
    green = (0.2, 0.8, 0.3)
    before, after = (count_near(Path(path), green) for path in out.split())
    assert before > 100 and abs(before - after) < 0.2 * before
    assert Path(out.split()[0]).read_bytes() != Path(out.split()[1]).read_bytes()

    def refused(*arguments: object) -> str:
        code, _, err = run_tool("visualize", *arguments)
        assert code == 1
        return err

    (tmp_path / "frame.png").unlink()
    assert "frame_augmented.png" in refused(*arguments, "-o", tmp_path / "frame.png")
    assert "give --frame" in refused("--augmented", tmp_path / "tiny.yaml")
    assert "no frame 000099 in train" in refused(*arguments[:3], "000099")


def test_help_shows_an_example(run_tool: RunTool) -> None:
    code, out, _ = run_tool("visualize", "--help")
    assert code == 0 and "Example: python tools/visualize.py" in out
