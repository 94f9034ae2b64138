"""tools/visualize.py on a tiny data set."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from voxelpool.config import Config, FlipConfig, save_config

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
    green, orange = (0.2, 0.8, 0.3), (1.0, 0.45, 0.1)
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
    assert "no frame 000099" in refused("--root", tiny_kitti, "--frame", "000099")
    mine = tmp_path / "mine.png"
    mine.write_text("keep")
    frame = ("--root", tiny_kitti, "--frame", "000001")
    assert "already exists" in refused(*frame, "-o", mine)
    assert mine.read_text() == "keep"


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
