"""train, evaluate CONFIG and detect, chained, on a tiny data set; what they say to bad input."""

from __future__ import annotations

import csv
import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from voxelpool.config import Config, save_config
from voxelpool.datasets.kitti import read_result, read_sweep, write_sweep
from voxelpool.training import fit, new_run

TOOLS = Path(__file__).parents[2] / "tools"
RunTool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def config_path(tiny_config: Config, tmp_path: Path) -> Path:
    save_config(tiny_config, tmp_path / "tiny.yaml")
    return tmp_path / "tiny.yaml"


@pytest.fixture
def trained(tiny_config: Config, config_path: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A configuration and a checkpoint of it that finds something everywhere."""
    config = tiny_config.model_copy(
        update={"train": tiny_config.train.model_copy(update={"epochs": 1})}
    )
    run = new_run(config, tmp_path / "run")
    fit(config, run, progress=False)
    return config_path, run.last


def error(code: int, err: str) -> str:
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return line


ANY_SCORE = "postprocess.score_threshold=0"


FAMILY = {
    "voxelnet": "",
    "second": """
        model: second
        grid: {range: [0, -12.8, -3, 25.6, 12.8, 1], voxel_size: [0.1, 0.1, 0.1]}
        middle: {channels: [4, 4, 4, 4, 4]}
        rpn: {layers: [1, 1], strides: [1, 2], channels: [8, 8], upsample_channels: [8, 8]}
        head: {scores: all, direction: true}
        loss: {classification: focal, angle: sine}
        """,
    "pointpillars": """
        model: pointpillars
        grid: {range: [0, -12.8, -3, 25.6, 12.8, 1], voxel_size: [0.4, 0.4, 4]}
        rpn: {layers: [1, 1], strides: [2, 2], channels: [8, 8], upsample_channels: [8, 8]}
        head: {scores: all, direction: true}
        loss: {classification: focal, angle: sine}
        """,
}


@pytest.mark.parametrize("model", FAMILY)
def test_train_evaluate_and_detect(
    model: str,
    run_tool: RunTool,
    config_path: Path,
    tiny_config: Config,
    tiny_kitti: Path,
    tmp_path: Path,
) -> None:
    if model != "voxelnet":
        kept = tiny_config.model_dump(mode="json", include={"name", "data", "anchors", "train"})
        config_path.write_text(yaml.safe_dump(kept | yaml.safe_load(FAMILY[model])))
    run = tmp_path / "run"
    constant = "train.schedule.name=constant"
    code, out, _ = run_tool("train", config_path, constant, "train.epochs=2", "--run", run)
    assert code == 0 and str(run) in out
    assert ("sparse middle layers: native" in out) == (model == "second")
    last = run / "checkpoints" / "last.ckpt"
    code, out, _ = run_tool(
        "train", config_path, constant, "train.epochs=3", "--run", run, "--resume"
    )
    assert code == 0 and "resuming" in out

    results, ap = tmp_path / "results", tmp_path / "ap.json"
    code, out, _ = run_tool(
        "evaluate", config_path, ANY_SCORE, "--checkpoint", last, "--results", results, "--json", ap
    )
    assert code == 0 and "2 frames" in out
    assert sorted(path.name for path in results.iterdir()) == ["000004.txt", "000005.txt"]
    assert set(json.loads(ap.read_text())["Car"]) == {"3d", "bev", "2d", "aos"}
    code, _, _ = run_tool(
        "evaluate", "--labels", tiny_kitti / "training" / "label_2", "--results", results,
        "--classes", "Car", "--json", tmp_path / "again.json",
    )  # fmt: skip
    assert code == 0
    assert json.loads((tmp_path / "again.json").read_text()) == json.loads(ap.read_text())

    sweeps, out_folder = tiny_kitti / "training" / "velodyne", tmp_path / "found"
    code, out, _ = run_tool(
        "detect", config_path, ANY_SCORE, sweeps / "000004.bin", sweeps / "000005.bin",
        "--checkpoint", last, "-o", out_folder,
    )  # fmt: skip
    assert code == 0 and "000004" in out
    for name in ("000004.txt", "000005.txt"):
        assert (out_folder / name).read_text() == (results / name).read_text()
    assert len(read_result(out_folder / "000004.txt")) > 0


def test_detect_without_calibration_writes_lidar_boxes(
    run_tool: RunTool, trained: tuple[Path, Path], tiny_kitti: Path, tmp_path: Path
) -> None:
    config, checkpoint = trained
    lone = tmp_path / "lone.bin"
    lone.write_bytes((tiny_kitti / "training" / "velodyne" / "000000.bin").read_bytes())
    code, _, _ = run_tool(
        "detect", config, ANY_SCORE, lone, "--checkpoint", checkpoint, "-o", tmp_path / "out"
    )
    assert code == 0
    records = json.loads((tmp_path / "out" / "lone.json").read_text())
    assert records and set(records[0]) == {"class", "score", "x", "y", "z", "dx", "dy", "dz", "yaw"}
    assert all(-math.pi <= record["yaw"] < math.pi for record in records)
    scores = [record["score"] for record in records]
    assert scores == sorted(scores, reverse=True)
    with open(tmp_path / "out" / "lone.csv") as file:
        rows = list(csv.DictReader(file))
    assert [float(row["x"]) for row in rows] == [record["x"] for record in records]
    assert not (tmp_path / "out" / "lone.txt").exists()

    calib = tiny_kitti / "training" / "calib" / "000000.txt"
    code, _, _ = run_tool(
        "detect", config, ANY_SCORE, lone, "--checkpoint", checkpoint, "-o", tmp_path / "with",
        "--calib", calib,
    )  # fmt: skip
    assert code == 0 and len(read_result(tmp_path / "with" / "lone.txt")) > 0


def test_detect_by_weights_alone(
    run_tool: RunTool, trained: tuple[Path, Path], tiny_kitti: Path, tmp_path: Path
) -> None:
    """Weights that tools/export.py strips of the training, by file and by name."""
    config, checkpoint = trained
    weights, folder = tmp_path / "mine.pt", tiny_kitti / "training" / "velodyne"
    code, out, err = run_tool(
        "export", config, "--checkpoint", checkpoint, "--format", "weights", "-o", weights
    )
    assert code == 0, err
    assert "scores differ from the detector's by up to" in out and "MB)" in out
    assert weights.stat().st_size < checkpoint.stat().st_size

    for name, with_what in (("by_config", [config, "--checkpoint", weights]),
                            ("by_weights", ["--weights", weights])):  # fmt: skip
        code, out, err = run_tool(
            "detect", *with_what, folder, "--score-threshold", 0, "-o", tmp_path / name
        )
        assert code == 0, err
        assert "000000" in out and "000005" in out
    written = sorted(path.name for path in (tmp_path / "by_config").iterdir())
    assert written == [f"{row:06d}.txt" for row in range(6)]
    for name in written:
        text = (tmp_path / "by_weights" / name).read_text()
        assert text and text == (tmp_path / "by_config" / name).read_text()

    every = read_result(tmp_path / "by_weights" / "000000.txt").score
    run_tool(
        "detect", "--weights", weights, folder / "000000.bin", "postprocess.max_detections=3",
        "--score-threshold", 0, "-o", tmp_path / "few",
    )  # fmt: skip
    few = read_result(tmp_path / "few" / "000000.txt").score
    assert 0 < len(few) <= 3 and set(few) <= set(every)
    cut = (every.max() + every.min()) / 2
    run_tool(
        "detect", "--weights", weights, folder / "000000.bin", "postprocess.max_detections=10000",
        "--score-threshold", cut, "--nms-iou", 1, "-o", tmp_path / "sure",
    )  # fmt: skip
    sure = read_result(tmp_path / "sure" / "000000.txt").score
    assert (sure >= cut).all() and set(every[every >= cut]) <= set(sure)


def test_detect_and_evaluate_by_votes(
    run_tool: RunTool, trained: tuple[Path, Path], tiny_kitti: Path, tmp_path: Path
) -> None:
    """The option and the configuration's key mean the same; several looks change boxes."""
    config, checkpoint = trained
    sweep = tiny_kitti / "training" / "velodyne" / "000004.bin"
    texts = {}
    for name, how in (
        ("once", []),
        ("one", ["--votes", 1]),
        ("three", ["--votes", 3]),
        ("key", ["postprocess.votes=3"]),
    ):
        code, _, err = run_tool(
            "detect", config, sweep, *how, "--checkpoint", checkpoint, "--score-threshold", 0,
            "-o", tmp_path / name,
        )  # fmt: skip
        assert code == 0, err
        texts[name] = (tmp_path / name / "000004.txt").read_text()
    assert texts["once"] == texts["one"] != texts["three"] == texts["key"]
    code, _, err = run_tool(
        "evaluate", config, "postprocess.votes=3", "postprocess.score_threshold=0",
        "--checkpoint", checkpoint, "--results", tmp_path / "results",
    )  # fmt: skip
    assert code == 0, err
    assert (tmp_path / "results" / "000004.txt").read_text() == texts["three"]


def test_detect_says_what_goes_with_what(
    run_tool: RunTool, trained: tuple[Path, Path], tiny_kitti: Path
) -> None:
    config, checkpoint = trained
    sweep = tiny_kitti / "training" / "velodyne" / "000000.bin"

    def refused(*arguments: object) -> str:
        code, _, err = run_tool("detect", *arguments)
        return error(code, err)

    assert "without it give --weights" in refused(config, sweep)
    assert "give one of them" in refused("--weights", "x", "--checkpoint", checkpoint, sweep)
    assert "tiny.yaml: --weights brings" in refused("--weights", checkpoint, config, sweep)
    assert "no sweep given" in refused("--weights", checkpoint, "postprocess.nms_iou=0.5")
    assert "no sweep given" in refused(config, "--checkpoint", checkpoint)
    assert "CONFIG: none given" in refused("seed=1", "--checkpoint", checkpoint)
    assert "voxelnet_bus: no such file, and no such weights" in refused(
        "--weights", "voxelnet_bus", sweep
    )
    assert "unknown key, did you mean nms_iou" in refused(
        "--weights", checkpoint, sweep, "postprocess.nms_io=1"
    )
    assert "vfe.channels.0 is 8 there and 4 here" in refused(
        "--weights", checkpoint, sweep, "vfe.channels=[4]"
    )
    assert "'gpu' is unknown" in refused("--weights", checkpoint, sweep, "--device", "gpu")


@pytest.mark.parametrize(
    "points",
    [
        np.zeros((0, 4)),
        np.full((30, 4), 500.0),
        np.full((30, 4), np.nan),
    ],
    ids=["empty", "out of range", "NaN"],
)
def test_sweeps_without_a_usable_point_give_no_boxes(
    points: np.ndarray, run_tool: RunTool, trained: tuple[Path, Path], tmp_path: Path
) -> None:
    config, checkpoint = trained
    write_sweep(tmp_path / "odd.bin", points.astype(np.float32))
    out = tmp_path / "out"
    code, _, _ = run_tool(
        "detect", config, tmp_path / "odd.bin", "--checkpoint", checkpoint, "-o", out
    )
    assert code == 0
    assert json.loads((out / "odd.json").read_text()) == []


def test_broken_training_frames_end_the_training_or_are_skipped(
    run_tool: RunTool, config_path: Path, tiny_kitti: Path, tmp_path: Path
) -> None:
    path = tiny_kitti / "training" / "velodyne" / "000001.bin"
    points = read_sweep(path)
    points[:7] = np.nan
    write_sweep(path, points)
    code, _, err = run_tool("train", config_path, "train.epochs=1", "--run", tmp_path / "run")
    assert "000001.bin: 7 points are not finite" in error(code, err)
    code, _, err = run_tool(
        "train", config_path, "train.epochs=1", "data.on_broken_frame=skip",
        "--run", tmp_path / "skipped",
    )  # fmt: skip
    assert code == 0
    assert "000001.bin: 7 points" in err and "epoch 0: 1 broken frame skipped" in err


def test_train_says_where_the_best_is(run_tool: RunTool, config_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    code, out, _ = run_tool("train", config_path, "train.epochs=2", "--run", run)
    assert code == 0
    assert re.search(rf"best AP \(3D, moderate\): [\d.]+: {run}/checkpoints/best\.ckpt", out)
    assert f"last checkpoint: {run}/checkpoints/last.ckpt" in out


def test_resume_passes_over_a_damaged_checkpoint_and_refuses_code(
    run_tool: RunTool, config_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, steps = tmp_path / "run", ("train.schedule.name=constant",)
    code, _, _ = run_tool("train", config_path, *steps, "train.epochs=2", "--run", run)
    assert code == 0
    last = run / "checkpoints" / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-100])
    again = ("train", config_path, *steps, "train.epochs=3", "--run", run, "--resume")
    code, _, err = run_tool(*again)
    assert code == 0
    assert "last.ckpt: is damaged" in err and "resuming from previous.ckpt" in err
    monkeypatch.chdir(tmp_path)
    torch.save(torch.load(last, weights_only=True) | {"loops": _Evil()}, last)
    code, _, err = run_tool(*again)
    assert "last.ckpt: holds more than weights" in error(code, err)
    assert not Path("evil_was_here").exists()


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil_was_here"),))


@pytest.mark.slow
def test_torchrun_trains_and_is_killed_and_resumed(config_path: Path, tmp_path: Path) -> None:
    """The very commands: two processes, one of them killed from outside, then all resumed."""
    run = tmp_path / "run"
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "--", str(TOOLS / "train.py"), str(config_path), "train.epochs=200", "train.val_every=100",
        "train.schedule.name=constant", "--run", str(run),
    ]  # fmt: skip
    first = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    last = run / "checkpoints" / "last.ckpt"
    for _ in range(3000):
        if last.exists() or first.poll() is not None:
            break
        time.sleep(0.1)
    assert last.exists()
    children = subprocess.run(
        ["pgrep", "-P", str(first.pid)], capture_output=True, text=True
    ).stdout.split()
    os.kill(int(children[0]), signal.SIGKILL)
    assert first.wait(timeout=300) != 0
    assert torch.load(last, weights_only=True)["epoch"] < 199
    command[command.index("train.epochs=200")] = "train.epochs=201"
    done = subprocess.run([*command, "--resume"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("resuming tiny") == 1 and "2 processes" in done.stdout
    assert done.stdout.count("best AP") == 1
    assert torch.load(last, weights_only=True)["epoch"] == 200


def test_a_frame_without_objects_trains(
    run_tool: RunTool, config_path: Path, tiny_kitti: Path, tmp_path: Path
) -> None:
    for frame in ("000000", "000001"):
        (tiny_kitti / "training" / "label_2" / f"{frame}.txt").write_text("")
    code, _, _ = run_tool("train", config_path, "train.epochs=1", "--run", tmp_path / "run")
    assert code == 0


def spoil_missing_folder(root: Path) -> None:
    (root / "training" / "velodyne").rename(root / "training" / "velo")


def spoil_truncated_sweep(root: Path) -> None:
    path = root / "training" / "velodyne" / "000002.bin"
    path.write_bytes(path.read_bytes()[:-5])


def spoil_label_columns(root: Path) -> None:
    path = root / "training" / "label_2" / "000002.txt"
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{second.rsplit(' ', 1)[0]}\n")


def spoil_class_name(root: Path) -> None:
    path = root / "training" / "label_2" / "000002.txt"
    path.write_text(path.read_text().replace("Car", "Bus", 1))


def spoil_calibration(root: Path) -> None:
    path = root / "training" / "calib" / "000002.txt"
    lines = [line for line in path.read_text().splitlines() if not line.startswith("Tr_velo")]
    path.write_text("\n".join(lines))


def spoil_no_label(root: Path) -> None:
    (root / "training" / "label_2" / "000002.txt").unlink()


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_missing_folder, "training/velodyne: no such folder"),
        (spoil_truncated_sweep, "000002.bin: .* not a multiple of 16"),
        (spoil_label_columns, "000002.txt:2: .*14"),
        (spoil_class_name, "000002.txt:1: .*Bus"),
        (spoil_calibration, "000002.txt: .*Tr_velo_to_cam"),
        (spoil_no_label, "label_2.*000002.txt"),
    ],
)
def test_training_names_the_bad_file(
    spoil: Callable[[Path], None],
    message: str,
    run_tool: RunTool,
    config_path: Path,
    tiny_kitti: Path,
    tmp_path: Path,
) -> None:
    spoil(tiny_kitti)
    for workers in (0, 1):
        run = tmp_path / f"run{workers}"
        code, _, err = run_tool("train", config_path, f"data.num_workers={workers}", "--run", run)
        assert re.search(message, error(code, err)), err


def test_detect_refuses(
    run_tool: RunTool, trained: tuple[Path, Path], tiny_kitti: Path, tmp_path: Path
) -> None:
    config, checkpoint = trained
    sweep = tiny_kitti / "training" / "velodyne" / "000000.bin"

    def refused(*arguments: object) -> str:
        code, _, err = run_tool("detect", config, *arguments, "--checkpoint", checkpoint)
        return error(code, err)

    (tmp_path / "cut.bin").write_bytes(b"\0" * 33)
    assert "cut.bin: 33 bytes is not a multiple of 16" in refused(tmp_path / "cut.bin")
    assert "none.bin: No such file" in refused(tmp_path / "none.bin")
    (tmp_path / "empty").mkdir()
    assert "empty: holds no sweep" in refused(tmp_path / "empty")
    assert "unknown key, did you mean nms_iou" in refused(sweep, "postprocess.nms_io=1")
    assert "vfe.channels.0 is 8 there and 4 here" in refused(sweep, "vfe.channels=[4]")
    assert "are named 000000" in refused(sweep, sweep)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    assert "already exists" in refused(sweep, "-o", tmp_path / "mine")
    assert (tmp_path / "mine" / "notes.txt").read_text() == "keep"


def test_a_typo_in_the_config_is_named(
    run_tool: RunTool, config_path: Path, tmp_path: Path
) -> None:
    config_path.write_text(config_path.read_text().replace(" epochs:", " epoch:"))
    code, _, err = run_tool("train", config_path, "--run", tmp_path / "run")
    line = error(code, err)
    assert "tiny.yaml: train.epoch: unknown key, did you mean epochs?" in line
    assert not (tmp_path / "run").exists()


def test_train_never_reuses_a_run(run_tool: RunTool, config_path: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    (run / "notes.txt").write_text("mine")
    code, _, err = run_tool("train", config_path, "--run", run)
    assert "already exists" in error(code, err)
    assert [path.name for path in run.iterdir()] == ["notes.txt"]


def test_output_that_cannot_be_written(
    run_tool: RunTool, trained: tuple[Path, Path], tiny_kitti: Path
) -> None:
    """/proc takes no new folders, not even from root."""
    config, checkpoint = trained
    sweep = tiny_kitti / "training" / "velodyne" / "000000.bin"
    code, _, err = run_tool(
        "detect", config, sweep, "--checkpoint", checkpoint, "-o", "/proc/found"
    )
    assert "/proc/found" in error(code, err)
    code, _, err = run_tool("train", config, "--run", "/proc/run")
    assert "/proc/run" in error(code, err)
    code, _, err = run_tool(
        "evaluate", config, "--checkpoint", checkpoint, "--json", "/proc/ap.json"
    )
    assert "/proc/ap.json" in error(code, err)


@pytest.mark.parametrize("name", ["train", "detect", "evaluate"])
def test_help_shows_an_example(name: str, run_tool: RunTool) -> None:
    code, out, _ = run_tool(name, "--help")
    assert code == 0 and "Example: python tools/" in out
