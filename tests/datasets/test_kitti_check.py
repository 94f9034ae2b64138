from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from voxelpool.datasets.calibration import Calibration
from voxelpool.datasets.kitti import write_sweep
from voxelpool.datasets.kitti_check import check_kitti
from voxelpool.errors import DataError

CAR = "Car 0.00 0 0.00 580.00 150.00 640.00 200.00 1.50 1.60 3.90 0.00 1.70 20.00 -1.57\n"
PNG = (
    b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
    + (1242).to_bytes(4, "big")
    + (375).to_bytes(4, "big")
    + b"\x08\x02\x00\x00\x00crc_"
    + b"\x00\x00\x00\x00IEND\xaeB`\x82"
)


def points(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.column_stack([rng.uniform(-40, 40, (25_000, 3)), rng.random(25_000)])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Four faultless frames, three in train and one in val."""
    folder = tmp_path / "kitti" / "training"
    for name in ("velodyne", "calib", "label_2", "image_2"):
        (folder / name).mkdir(parents=True)
    calibration = Calibration(
        np.array([[700.0, 0, 600, 0], [0, 700, 180, 0], [0, 0, 1, 0]]),
        np.eye(3),
        np.array([[0.0, -1, 0, 0], [0, 0, -1, 0], [1, 0, 0, 0]]),
    )
    for index in range(4):
        name = f"{index:06d}"
        write_sweep(folder / "velodyne" / f"{name}.bin", points(index))
        calibration.save(folder / "calib" / f"{name}.txt")
        (folder / "label_2" / f"{name}.txt").write_text(CAR)
        (folder / "image_2" / f"{name}.png").write_bytes(PNG)
    lists = tmp_path / "kitti" / "ImageSets"
    lists.mkdir()
    (lists / "train.txt").write_text("000000\n000001\n000002\n")
    (lists / "val.txt").write_text("000003\n")
    return tmp_path / "kitti"


def test_a_faultless_data_set_has_no_problem(root: Path) -> None:
    report = check_kitti(root)
    assert report.problems == [] and report.usable
    assert report.splits == {"train": 0, "val": 0}
    training = report.folders["training"]
    assert (training.frames, training.images) == (4, 4)
    assert training.points == [25_000] * 4 and all(training.cropped)
    assert training.objects == {"Car": 4}
    assert report.verdict() == "usable: 4 frames, complete splits: train, val; 0 warnings"


def spoil_label(root: Path) -> None:
    (root / "training/label_2/000001.txt").write_text(CAR + CAR.replace(" -1.57", ""))


def spoil_class(root: Path) -> None:
    (root / "training/label_2/000001.txt").write_text(CAR.replace("Car", "Cart"))


def spoil_sweep(root: Path) -> None:
    (root / "training/velodyne/000002.bin").write_bytes(bytes(1001))


def spoil_calibration(root: Path) -> None:
    path = root / "training/calib/000003.txt"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(line for line in lines if not line.startswith("R0_rect")))


def spoil_image(root: Path) -> None:
    (root / "training/image_2/000000.png").write_bytes(PNG[:-4])


def lose(name: str) -> Callable[[Path], None]:
    def spoil(root: Path) -> None:
        (root / "training" / name).unlink()

    return spoil


def lose_folder(root: Path) -> None:
    shutil.rmtree(root / "training" / "calib")


def lose_all_lists_and_frames(root: Path) -> None:
    for path in (root / "ImageSets").iterdir():
        path.write_text("000099\n")


@pytest.mark.parametrize(
    ("spoil", "path", "message"),
    [
        (spoil_label, "training/label_2/000001.txt", "line 2: a label has 15 columns, found 14"),
        (spoil_class, "training/label_2/000001.txt", "line 1: unknown class name 'Cart'"),
        (spoil_sweep, "training/velodyne/000002.bin", "1001 bytes is not a multiple of 16"),
        (spoil_calibration, "training/calib/000003.txt", "no calibration key R0_rect"),
        (spoil_image, "training/image_2/000000.png", "truncated"),
        (lose("velodyne/000001.bin"), "training/velodyne/000001.bin", "missing, while other"),
        (lose("calib/000001.txt"), "training/calib/000001.txt", "missing, while other"),
        (lose("label_2/000001.txt"), "training/label_2/000001.txt", "missing, while other"),
        (lose_folder, "training/calib", "no such folder"),
        (lose_all_lists_and_frames, "ImageSets", "no split is complete"),
    ],
)
def test_errors_make_it_unusable(
    root: Path, spoil: Callable[[Path], None], path: str, message: str
) -> None:
    spoil(root)
    report = check_kitti(root)
    assert not report.usable and report.verdict().startswith("NOT usable: 1 errors")
    (problem,) = report.errors
    assert problem.path == root / path and message in problem.message


def test_every_problem_is_listed(root: Path) -> None:
    for spoil in (spoil_label, spoil_sweep, spoil_calibration, spoil_image):
        spoil(root)
    assert len(check_kitti(root).errors) == 4


def warn_image(root: Path) -> None:
    (root / "training/image_2/000000.png").unlink()


def warn_images(root: Path) -> None:
    shutil.rmtree(root / "training/image_2")


def warn_nan(root: Path) -> None:
    bad = points(0)
    bad[:7, 2] = np.nan
    write_sweep(root / "training/velodyne/000000.bin", bad)


def warn_few(root: Path) -> None:
    write_sweep(root / "training/velodyne/000000.bin", points(0)[:100])


def warn_reflectance(root: Path) -> None:
    write_sweep(root / "training/velodyne/000000.bin", points(0) * [1, 1, 1, 255])


def warn_far(root: Path) -> None:
    write_sweep(root / "training/velodyne/000000.bin", points(0) * [100, 1, 1, 1])


def warn_box(root: Path) -> None:
    (root / "training/label_2/000000.txt").write_text(CAR.replace("1.60 3.90", "0.00 3.90"))


def warn_split(root: Path) -> None:
    (root / "ImageSets" / "val.txt").write_text("000003\n000077\n")


@pytest.mark.parametrize(
    ("spoil", "path", "message"),
    [
        (warn_image, "training/image_2/000000.png", "(1242, 375) pixels are assumed"),
        (warn_images, "training/image_2", "no such folder; (1242, 375) pixels are assumed"),
        (warn_nan, "training/velodyne/000000.bin", "7 points are not finite"),
        (warn_few, "training/velodyne/000000.bin", "100 points; KITTI's sweeps have"),
        (warn_reflectance, "training/velodyne/000000.bin", "reflectance goes from"),
        (warn_far, "training/velodyne/000000.bin", "points are further than 250 m"),
        (warn_box, "training/label_2/000000.txt", "object 0 (Car): a dimension is not positive"),
        (warn_split, "ImageSets/val.txt", "1 of its 2 frames are missing, the first is 000077"),
    ],
)
def test_warnings_leave_it_usable(
    root: Path, spoil: Callable[[Path], None], path: str, message: str
) -> None:
    spoil(root)
    report = check_kitti(root)
    assert report.usable and "train" in report.complete_splits
    (problem,) = report.problems
    assert problem.severity == "warning" and problem.path == root / path
    assert message in problem.message


def test_an_asked_for_split_must_be_whole_and_is_all_that_is_checked(root: Path) -> None:
    spoil_calibration(root)  # a frame of val
    assert check_kitti(root, ["train"]).usable
    assert check_kitti(root, ["train"]).folders["training"].frames == 3
    assert not check_kitti(root, ["val"]).usable
    warn_split(root)
    messages = [str(problem) for problem in check_kitti(root, ["val"]).errors]
    assert any("val.txt: 1 of its 2 frames are missing" in message for message in messages)


def test_without_lists_kittis_own_are_looked_for(root: Path) -> None:
    shutil.rmtree(root / "ImageSets")
    report = check_kitti(root)
    assert [problem.message for problem in report.errors] == [
        "no split is complete; there are no lists here, so KITTI's own were looked for"
    ]
    assert report.splits["trainval"] == 7481 - 4


def test_missing_root_and_missing_list(tmp_path: Path, root: Path) -> None:
    with pytest.raises(DataError, match="none: no such folder"):
        check_kitti(tmp_path / "none")
    with pytest.raises(DataError, match=r"nope\.txt: no such split list"):
        check_kitti(root, ["nope"])


def test_cache_is_written_once_and_goes_on(root: Path) -> None:
    warn_nan(root)  # frame 0 is not cached

    def counts() -> tuple[int, int]:
        training = check_kitti(root, cache=True).folders["training"]
        return training.newly_cached, training.already_cached

    assert counts() == (3, 0)
    assert counts() == (0, 3)
    folder = root / "training" / "velodyne_cropped"
    (folder / "000002.bin").unlink()
    assert counts() == (1, 2)
    assert sorted(path.name for path in folder.iterdir()) == [
        *("000001.bin", "000002.bin", "000003.bin", "index.jsonl")
    ]
