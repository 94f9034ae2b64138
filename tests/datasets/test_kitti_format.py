from __future__ import annotations

import math
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelpool.datasets.kitti_format import (
    CLASSES,
    DONT_CARE,
    KittiObjects,
    image_size,
    read_label,
    read_result,
    read_split,
    read_sweep,
    write_label,
    write_result,
    write_sweep,
)
from voxelpool.errors import DataError

LABEL = """\
Car 0.88 3 -0.69 0.00 192.37 402.31 374.00 1.60 1.57 3.23 -2.70 1.74 3.68 -1.29
Pedestrian 0.00 0 -0.20 712.40 143.00 810.73 307.92 1.89 0.48 1.20 1.84 1.47 8.41 0.01
DontCare -1 -1 -10 503.89 169.71 590.61 190.13 -1 -1 -1 -1000 -1000 -1000 -10
"""
RESULT = """\
Car -1 -1 -1.59 599.52 155.17 629.07 189.18 2.77 2.62 12.38 0.47 1.48 69.49 -1.53 0.6305
Van -1 -1 -10 1.00 2.00 3.00 4.00 -1 -1 -1 -1000 -1000 -1000 -10 12.0000
"""
FIELDS = (
    *("truncated", "occluded", "alpha", "bbox"),
    *("dimensions", "location", "rotation_y", "score"),
)


def put(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def assert_same(a: KittiObjects, b: KittiObjects) -> None:
    assert a.type == b.type
    for name in FIELDS:
        x, y = getattr(a, name), getattr(b, name)
        assert (x is None) == (y is None), name
        assert x is None or np.array_equal(x, y), name


def test_label_columns_land_where_they_belong(tmp_path: Path) -> None:
    objects = read_label(put(tmp_path / "a.txt", LABEL))
    assert objects.type == ["Car", "Pedestrian", "DontCare"] and len(objects) == 3
    assert objects.truncated.tolist() == [0.88, 0, -1]
    assert objects.occluded.tolist() == [3, 0, -1] and objects.occluded.dtype == np.int64
    assert objects.alpha.tolist() == [-0.69, -0.2, -10]
    assert objects.bbox[0].tolist() == [0, 192.37, 402.31, 374]
    assert objects.dimensions[0].tolist() == [1.6, 1.57, 3.23]
    assert objects.location[1].tolist() == [1.84, 1.47, 8.41]
    assert objects.rotation_y.tolist() == [-1.29, 0.01, -10]
    assert objects.score is None


def test_files_are_written_back_byte_for_byte(tmp_path: Path) -> None:
    write_label(tmp_path / "b.txt", read_label(put(tmp_path / "a.txt", LABEL)))
    assert (tmp_path / "b.txt").read_text() == LABEL
    write_result(tmp_path / "d.txt", read_result(put(tmp_path / "c.txt", RESULT)))
    assert (tmp_path / "d.txt").read_text() == RESULT


def test_real_labels_and_results_are_written_back(
    kitti_sample: Path, kitti_eval_cases: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out.txt"
    labels = sorted(kitti_sample.glob("training/label_2/*.txt"))
    assert len(labels) >= 34
    for path in labels:
        write_label(out, read_label(path))
        assert out.read_bytes() == path.read_bytes(), path
    for path in sorted(kitti_eval_cases.glob("*/results/*.txt")):
        write_result(out, read_result(path))
        assert_same(read_result(out), read_result(path))


number = st.floats(-1e4, 1e4)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([*CLASSES, DONT_CARE]),
            st.integers(-1, 3),
            st.lists(number, min_size=14, max_size=14),
        ),
        max_size=4,
    )
)
def test_any_numbers_survive_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, int, list[float]]]
) -> None:
    table = np.array([row[2] for row in rows]).reshape(-1, 14)
    objects = KittiObjects(
        [row[0] for row in rows],
        table[:, 0],
        np.array([row[1] for row in rows]),
        table[:, 1],
        table[:, 2:6],
        table[:, 6:9],
        table[:, 9:12],
        table[:, 12],
        table[:, 13],
    )
    path = tmp_path_factory.mktemp("r") / "a.txt"
    write_result(path, objects)
    assert_same(read_result(path), objects)
    write_label(path, objects)
    objects.score = None
    assert_same(read_label(path), objects)


def test_decimals_round_and_close_scores_stay_apart(tmp_path: Path) -> None:
    objects = read_result(put(tmp_path / "a.txt", RESULT))[[0, 0]]
    objects.location[:] = 1 / 3
    assert objects.score is not None
    objects.score[:] = [0.12345678, 0.12345679]
    write_label(tmp_path / "b.txt", objects, decimals=2)
    assert (tmp_path / "b.txt").read_text().split()[11:14] == ["0.33"] * 3
    write_result(tmp_path / "c.txt", objects, decimals=3)
    words = (tmp_path / "c.txt").read_text().splitlines()[0].split()
    assert words[11] == "0.333" and words[-1] == "0.12345678"
    write_result(tmp_path / "c.txt", objects, score_decimals=4)
    assert (tmp_path / "c.txt").read_text().splitlines()[1].split()[-1] == "0.1235"


@pytest.mark.parametrize("text", ["", "\n", "  \n\n"])
def test_frames_without_objects(tmp_path: Path, text: str) -> None:
    path = put(tmp_path / "a.txt", text)
    assert len(read_label(path)) == 0 and read_label(path).bbox.shape == (0, 4)
    score = read_result(path).score
    assert score is not None and score.shape == (0,)
    write_result(path, KittiObjects.empty(with_score=True))
    assert path.read_text() == ""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (" 0.01\n", "\n", r"a\.txt:2: a label has 15 columns, found 14"),
        (" 0.01\n", " 0.01 0.5\n", r"a\.txt:2: a label has 15 columns, found 16"),
        ("Pedestrian", "pedestrain", r"a\.txt:2: unknown class name 'pedestrain'; did you mean 'P"),
        ("Pedestrian", "Zebra-Qx", r"a\.txt:2: unknown class name 'Zebra-Qx'; known: Car"),
        ("712.40", "71z", r"a\.txt:2: left is not a number: '71z'"),
        ("8.41", "nan", r"a\.txt:2: z is nan"),
        ("8.41", "inf", r"a\.txt:2: z is inf"),
        ("0.88 3", "0.88 3.5", r"a\.txt:1: occluded must be a whole number, found 3\.5"),
    ],
)
def test_bad_labels_name_file_line_and_column(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read_label(put(tmp_path / "a.txt", LABEL.replace(old, new)))


def test_other_bad_files(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt:1: a result has 16 columns, found 15"):
        read_result(put(tmp_path / "a.txt", LABEL))
    (tmp_path / "b.txt").write_bytes(b"\x89PNG\xff\xfe")
    with pytest.raises(DataError, match=r"b\.txt: not a text file"):
        read_label(tmp_path / "b.txt")
    with pytest.raises(FileNotFoundError):
        read_label(tmp_path / "none.txt")


def test_bad_objects_are_not_written_and_leave_the_old_file(tmp_path: Path) -> None:
    path = put(tmp_path / "a.txt", LABEL)
    objects = read_label(path)
    objects.location[1, 2] = np.nan
    with pytest.raises(DataError, match=r"a\.txt: object 1 \(Pedestrian\): z is nan"):
        write_label(path, objects)
    objects = read_label(path)
    objects.type[0] = "car"
    with pytest.raises(DataError, match="object 0: unknown class name 'car'; did you mean 'Car'"):
        write_label(path, objects)
    with pytest.raises(DataError, match="needs a score"):
        write_result(path, read_label(path))
    assert path.read_text() == LABEL and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_choosing_rows_and_checking_shapes(tmp_path: Path) -> None:
    objects = read_label(put(tmp_path / "a.txt", LABEL))
    mask = np.array([name != DONT_CARE for name in objects.type])
    assert objects[mask].type == objects[:2].type == ["Car", "Pedestrian"]
    assert objects[[2, 0]].type == ["DontCare", "Car"]
    assert objects[[2, 0]].bbox[1].tolist() == objects.bbox[0].tolist()
    assert len(objects[[]]) == 0 and len(objects[np.zeros(3, bool)]) == 0
    with pytest.raises(DataError, match=r"bbox must be \(1, 4\), got \(1, 3\)"):
        KittiObjects(["Car"], [0], [0], [0], np.zeros((1, 3)), [[1, 1, 1]], [[0, 0, 9]], [0])


def test_sweeps_round_trip_with_any_number_of_columns(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for dims in (3, 4, 5):
        points = rng.normal(size=(7, dims)).astype(np.float32)
        points[2, 0] = np.nan
        write_sweep(tmp_path / "a.bin", points)
        found = read_sweep(tmp_path / "a.bin", dims)
        assert found.dtype == np.float32 and found.flags.writeable
        assert np.array_equal(found, points, equal_nan=True)
    assert (tmp_path / "a.bin").read_bytes() == points.astype("<f4").tobytes()
    write_sweep(tmp_path / "e.bin", np.zeros((0, 4)))
    assert read_sweep(tmp_path / "e.bin").shape == (0, 4)


def test_bad_sweeps(tmp_path: Path) -> None:
    (tmp_path / "a.bin").write_bytes(bytes(16 * 10 + 3))
    with pytest.raises(DataError, match=r"a\.bin: 163 bytes is not a multiple of 16"):
        read_sweep(tmp_path / "a.bin")
    (tmp_path / "a.bin").write_bytes(bytes(16 * 4))
    with pytest.raises(DataError, match=r"64 bytes is not a multiple of 20 \(5 float32"):
        read_sweep(tmp_path / "a.bin", dims=5)
    np.save(tmp_path / "a.npy", np.zeros((8, 3)))
    with pytest.raises(DataError, match=r"a\.npy: is a NumPy file, not raw float32"):
        read_sweep(tmp_path / "a.npy")
    with pytest.raises(DataError, match="at least 3 values, got dims=2"):
        read_sweep(tmp_path / "a.bin", dims=2)
    with pytest.raises(DataError, match=r"points must be \(N, dims\), got \(4,\)"):
        write_sweep(tmp_path / "b.bin", np.zeros(4))


def test_where_nothing_can_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write.*nowhere/a\.bin"):
        write_sweep(tmp_path / "nowhere" / "a.bin", np.zeros((1, 4)))


def png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        crc = zlib.crc32(kind + data).to_bytes(4, "big")
        return len(data).to_bytes(4, "big") + kind + data + crc

    head = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([8, 2, 0, 0, 0])
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IEND", b"")


def test_image_size_reads_the_header(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(png(1224, 370))
    assert image_size(tmp_path / "a.png") == (1224, 370)
    for data in (b"", png(4, 4)[:20], b"GIF89a" + bytes(40)):
        (tmp_path / "b.png").write_bytes(data)
        with pytest.raises(DataError, match=r"b\.png: not a PNG image"):
            image_size(tmp_path / "b.png")


def test_split_lists(tmp_path: Path) -> None:
    assert read_split(put(tmp_path / "a.txt", "000003\n000001\n\n000007")) == [
        *("000003", "000001", "000007")
    ]
    with pytest.raises(DataError, match=r"b\.txt:3: frame 1 is already in line 1"):
        read_split(put(tmp_path / "b.txt", "1\n2\n1\n"))
    with pytest.raises(DataError, match=r"c\.txt:1: expected one frame id, found '1 2'"):
        read_split(put(tmp_path / "c.txt", "1 2\n"))


def test_shipped_splits_are_kittis() -> None:
    folder = Path(__file__).parents[2] / "data" / "kitti" / "ImageSets"
    lists = {name: read_split(folder / f"{name}.txt") for name in ("train", "val", "trainval")}
    assert [len(ids) for ids in lists.values()] == [3712, 3769, 7481]
    assert not set(lists["train"]) & set(lists["val"])
    assert sorted(lists["train"] + lists["val"]) == sorted(lists["trainval"])
    assert sorted(lists["trainval"]) == [f"{index:06d}" for index in range(7481)]
    assert read_split(folder / "test.txt") == [f"{index:06d}" for index in range(7518)]
    assert all(ids == sorted(ids) for ids in lists.values())


def test_shipped_splits_equal_the_official_lists(kitti_sample: Path) -> None:
    ours = Path(__file__).parents[2] / "data" / "kitti" / "ImageSets"
    for path in ours.glob("*.txt"):
        assert read_split(path) == read_split(kitti_sample / "ImageSets" / path.name)


def test_scores_are_finite_numbers(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a\.txt:1: score is nan"):
        read_result(put(tmp_path / "a.txt", RESULT.replace("0.6305", "nan")))
    assert math.isclose(read_result(put(tmp_path / "a.txt", RESULT)).score[1], 12.0)  # type: ignore[index]
