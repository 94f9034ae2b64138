"""voxelpool.Detector: points in, boxes out."""

from __future__ import annotations

import pickle
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

import voxelpool
from voxelpool import Detector
from voxelpool.config import Config
from voxelpool.datasets.kitti import write_sweep
from voxelpool.datasets.sweeps import read_lone_sweep
from voxelpool.detection import Detections
from voxelpool.errors import CheckpointError, ConfigError, DataError
from voxelpool.models import VoxelDetector, build_detector
from voxelpool.models import weights as weights_module
from voxelpool.models.weights import random_points, write_weights


@pytest.fixture
def network(tiny_config: Config) -> VoxelDetector:
    torch.manual_seed(0)
    return build_detector(tiny_config).eval()


@pytest.fixture
def detector(network: VoxelDetector) -> Detector:
    """Finds something everywhere."""
    return Detector(network, device="cpu", score_threshold=0.0)


@pytest.fixture
def sweep(network: VoxelDetector) -> np.ndarray:
    return random_points(network, 3000).numpy()


def assert_same(one: Detections, other: Detections) -> None:
    assert one.classes == other.classes
    for name in ("boxes", "scores", "class_ids"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name


def test_finds_what_the_network_finds(
    detector: Detector, network: VoxelDetector, sweep: np.ndarray, device: torch.device
) -> None:
    network.postprocess.score_threshold = 0.0
    (expected,) = network.detect(torch.from_numpy(sweep))
    assert len(expected) > 5
    assert_same(detector.detect(sweep), expected)
    for dtype in (np.float64, np.dtype(">f4"), np.longdouble):
        assert_same(detector.detect(sweep.astype(dtype)), expected)
    read_only = np.frombuffer(sweep.tobytes(), np.float32).reshape(-1, 4)
    assert_same(detector.detect(read_only), expected)
    assert_same(detector.detect(sweep[::-1][::-1]), expected)
    assert_same(detector.detect(np.column_stack([sweep, sweep])), expected)
    tensor = torch.from_numpy(sweep).to(device).double().requires_grad_()
    found = detector.detect(tensor)
    assert found.boxes.device == tensor.device
    assert_same(found.to("cpu"), expected)
    assert len(detector.detect(tensor.half())) > 5


def test_on_every_device(network: VoxelDetector, sweep: np.ndarray, device: torch.device) -> None:
    detector = Detector(network, device=device, score_threshold=0.0)
    assert detector.device == device
    expected = Detector(network, device="cpu", score_threshold=0.0).detect(sweep)
    found = detector.detect(sweep)
    assert found.boxes.device.type == "cpu"
    torch.testing.assert_close(found.scores, expected.scores, rtol=1e-3, atol=1e-4)


def test_detections_know_their_classes(detector: Detector, sweep: np.ndarray) -> None:
    found = detector.detect(sweep)
    assert found.classes == detector.classes == ("Car",)
    assert found.names == ["Car"] * len(found)
    assert found[:0].names == [] == detector.detect(sweep[:0]).names
    boxes, scores, class_ids = found.numpy()
    assert boxes.shape == (len(found), 7) and (class_ids == 0).all()
    cut = float(scores[2])
    np.testing.assert_array_equal(found[found.scores > cut].numpy()[1], scores[scores > cut])
    nameless = Detections(found.boxes, found.scores, found.class_ids)
    with pytest.raises(ValueError, match="do not know"):
        _ = nameless.names


def test_a_batch_gives_what_each_sweep_gives_alone(detector: Detector, sweep: np.ndarray) -> None:
    sweeps = [sweep[:1500], torch.from_numpy(sweep[1500:]), sweep[:0], sweep]
    together = detector.detect(sweeps)
    assert isinstance(together, list)
    for one, points in zip(together, sweeps, strict=True):
        alone = detector.detect(points)
        torch.testing.assert_close(one.scores, alone.scores, rtol=1e-4, atol=1e-5)
    assert detector.detect([]) == []
    assert_same(detector.detect((sweep,))[0], detector.detect(sweep))


@pytest.mark.parametrize(
    "points",
    [np.zeros((0, 4)), np.full((30, 4), np.nan), np.full((30, 4), 1e39), np.full((30, 4), 500.0)],
    ids=["empty", "NaN", "beyond float32", "out of range"],
)
def test_nothing_is_in_a_sweep_without_a_usable_point(
    points: np.ndarray, detector: Detector
) -> None:
    assert len(detector.detect(points)) == 0
    assert [len(found) for found in detector.detect([points, points])] == [0, 0]


def test_points_that_are_not_finite_change_nothing(detector: Detector, sweep: np.ndarray) -> None:
    """In a feature too, which voxelization does not look at."""
    spoilt = np.insert(sweep, [0, 500, 3000], np.nan, axis=0)
    spoilt[501, :3] = sweep[0, :3]  # only its reflectance is NaN
    spoilt[-1] = np.inf
    assert_same(detector.detect(spoilt), detector.detect(sweep))


@pytest.mark.parametrize(
    ("points", "error", "message"),
    [
        (np.zeros((5, 3)), ValueError, "have 3 columns, and tiny needs 4: x, y, z and 1 more"),
        (np.zeros(4), ValueError, r"shape \(N, 4\), got \(4,\)"),
        (np.zeros((2, 5, 4)), ValueError, r"got \(2, 5, 4\)"),
        (np.zeros((5, 4), np.int16), TypeError, "floats, got int16"),
        (torch.zeros(5, 4, dtype=torch.int64), TypeError, r"floats, got torch\.int64"),
        ("sweep.bin", TypeError, "array or a tensor, got str"),
        ([[1.0, 2.0, 3.0, 4.0]], TypeError, "sweep 0: points must be .* got list"),
        ([np.zeros((5, 4)), np.zeros((5, 2))], ValueError, "sweep 1: points have 2 columns"),
    ],
)
def test_bad_points(points: object, error: type[Exception], message: str, detector: Detector):
    with pytest.raises(error, match=message):
        detector.detect(points)


def test_the_seed_decides_which_points_a_full_voxel_keeps(
    detector: Detector, network: VoxelDetector
) -> None:
    crowded = random_points(network, 60_000)
    assert_same(detector.detect(crowded, seed=3), detector.detect(crowded, seed=3))
    one, other = detector.detect(crowded, seed=3), detector.detect(crowded, seed=4)
    assert not torch.equal(one.scores, other.scores)


def test_thresholds_are_of_the_detector_alone(network: VoxelDetector, sweep: np.ndarray) -> None:
    before = network.config.model_dump_json()
    every = Detector(network, score_threshold=0.0, nms_iou=1.0, max_detections=50)
    assert (every.score_threshold, every.nms_iou, every.max_detections) == (0.0, 1.0, 50)
    found = every.detect(sweep)
    assert len(found) == 50
    cut = float(found.scores[10])
    few = Detector(network, score_threshold=cut, nms_iou=1.0).detect(sweep)
    assert_same(few, found[found.scores >= cut])
    assert len(Detector(network, score_threshold=0.0, nms_iou=0.0).detect(sweep)) < 50

    assert network.config.model_dump_json() == before
    settings = network.config.postprocess
    assert network.postprocess.score_threshold == settings.score_threshold
    kept = Detector(network)
    assert kept.score_threshold == settings.score_threshold
    assert kept.nms_iou == settings.nms_iou
    with pytest.raises(ValueError, match="score_threshold must be in"):
        Detector(network, score_threshold=1.5)


def test_votes_are_of_the_detector_alone(network: VoxelDetector, sweep: np.ndarray) -> None:
    """It merges what the network finds in so many looks."""
    network.postprocess.score_threshold = 0.02
    detector = Detector(network, votes=3)
    assert detector.votes == 3 and Detector(network).votes == 1 and len(network.looks) == 1
    (expected,) = network.detect(torch.from_numpy(sweep), votes=3)
    assert len(expected) > 5
    assert_same(detector.detect(sweep), expected)
    assert_same(detector.detect([sweep])[0], expected)
    assert len(detector.detect(sweep[:0])) == 0
    with pytest.raises(ValueError, match="votes must be at least 1, got 0"):
        Detector(network, votes=0)


def test_the_network_stays_as_it_is(network: VoxelDetector, sweep: np.ndarray) -> None:
    network.train()
    network.loss(network(torch.from_numpy(sweep)), [torch.zeros(0, 7)], [torch.zeros(0).long()])[
        "loss"
    ].backward()
    detector = Detector(network, score_threshold=0.0)
    before = detector.detect(sweep)
    assert network.training and network.rpn.score_head.weight.requires_grad
    assert network.rpn.score_head.weight.grad is not None
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1)
    assert_same(detector.detect(sweep), before)


def test_bad_settings(network: VoxelDetector) -> None:
    with pytest.raises(ConfigError, match="'gpu' is unknown"):
        Detector(network, device="gpu")
    with pytest.raises(ConfigError, match="cuda:77 is not there"):
        Detector(network, device="cuda:77")
    with pytest.raises(ValueError, match="precision must be 32 or bf16, got '16'"):
        Detector(network, precision="16")  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["32", "bf16"])
def test_threads_get_what_one_would(precision: str, network: VoxelDetector) -> None:
    detector = Detector(network, device="cpu", score_threshold=0.0, precision=precision)
    sweeps = [random_points(network, 500 * count, count) for count in range(8)]
    serial = [detector.detect(sweep) for sweep in sweeps]
    start = threading.Barrier(8)

    def work(first: int) -> list[Detections]:
        start.wait()
        return [detector.detect(sweeps[(first + row) % 8]) for row in range(16)]

    with ThreadPoolExecutor(8) as pool:
        for first, found in enumerate(pool.map(work, range(8))):
            for row, one in enumerate(found):
                assert_same(one, serial[(first + row) % 8])


@pytest.mark.slow
def test_compiled_finds_the_same_without_compiling_again(
    network: VoxelDetector, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Detector(network, device="cpu", score_threshold=0.0)
    compiled = Detector(network, device="cpu", score_threshold=0.0, compile="aot_eager")
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", True)
    sweeps = [random_points(network, count, count) for count in (0, 1, 2, 3, 100, 5000)]
    expected = [plain.detect(sweep) for sweep in sweeps]
    for sweep, one in zip(sweeps, expected, strict=True):
        found = compiled.detect(sweep)
        torch.testing.assert_close(found.scores, one.scores, rtol=1e-3, atol=1e-4)
    serial = [compiled.detect(sweep) for sweep in sweeps]
    with ThreadPoolExecutor(8) as pool:
        for one, other in zip(pool.map(compiled.detect, sweeps * 4), serial * 4, strict=True):
            assert_same(one, other)
    monkeypatch.setattr(torch._dynamo.config, "error_on_recompile", False)
    for one, other in zip(compiled.detect(sweeps), expected, strict=True):
        torch.testing.assert_close(one.scores, other.scores, rtol=1e-3, atol=1e-4)


@pytest.mark.slow
def test_compiled_by_inductor(network: VoxelDetector, sweep: np.ndarray) -> None:
    compiled = Detector(network, device="cpu", score_threshold=0.0, compile=True)
    expected = Detector(network, device="cpu", score_threshold=0.0).detect(sweep)
    torch.testing.assert_close(compiled.detect(sweep).scores, expected.scores, rtol=1e-3, atol=1e-4)


# --- streams -------------------------------------------------------------------------------------


def test_a_folder_is_a_stream(detector: Detector, tiny_kitti: Path) -> None:
    folder = tiny_kitti / "training" / "velodyne"
    seen: list[tuple[int, int | None]] = []
    found = dict(detector.stream(folder, progress=lambda *step: seen.append(step)))
    assert list(found) == [f"{row:06d}" for row in range(6)]
    assert seen == [(row, 6) for row in range(1, 7)]
    for crop in (True, False):
        for name, one in detector.stream(str(folder), crop=crop):
            points = read_lone_sweep(folder / f"{name}.bin", crop=crop).points
            assert_same(one, detector.detect(points))
            if crop:
                assert_same(one, found[name])
    ((name, one),) = detector.stream(folder / "000003.bin")
    assert name == "000003"
    assert_same(one, found[name])


def test_a_stream_of_arrays_files_and_pairs(
    detector: Detector, sweep: np.ndarray, tmp_path: Path
) -> None:
    write_sweep(tmp_path / "file.bin", sweep)

    def source() -> Iterator[object]:
        yield sweep
        yield tmp_path / "file.bin"
        yield "named", torch.from_numpy(sweep)
        yield sweep[:0]

    seen: list[tuple[int, int | None]] = []
    found = list(detector.stream(source(), progress=lambda *step: seen.append(step)))
    assert [name for name, _ in found] == ["000000", "file", "named", "000003"]
    assert seen == [(row, None) for row in range(1, 5)]
    for _, one in found[:3]:
        assert_same(one, found[0][1])
    assert len(found[3][1]) == 0


def test_a_stream_reads_ahead_in_a_thread_and_no_further_than_it_must(
    detector: Detector, sweep: np.ndarray
) -> None:
    given: list[int] = []
    third = threading.Event()
    threads: set[int] = set()

    def source() -> Iterator[np.ndarray]:
        for row in range(100):
            threads.add(threading.get_ident())
            given.append(row)
            if row == 2:
                third.set()
            yield sweep

    stream = detector.stream(source())
    next(stream)
    assert third.wait(10), "the third sweep is read while the first is looked at"
    stream.close()
    assert threading.get_ident() not in threads and len(threads) == 1
    assert len(given) <= 4


def test_a_stream_says_what_is_wrong_with_its_source(
    detector: Detector, sweep: np.ndarray, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="holds no sweep"):
        detector.stream(tmp_path)
    with pytest.raises(TypeError, match="pass one to detect"):
        detector.stream(sweep)
    (tmp_path / "cut.bin").write_bytes(b"\0" * 33)
    names = []
    with pytest.raises(DataError, match=r"cut.bin: 33 bytes"):
        for name, _ in detector.stream([sweep, tmp_path / "cut.bin", sweep]):
            names.append(name)
    assert names == ["000000"]
    with pytest.raises(TypeError, match="got int"):
        list(detector.stream([5]))


# --- weights -------------------------------------------------------------------------------------


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of shipped weights, empty."""
    folder = tmp_path / "weights"
    folder.mkdir()
    monkeypatch.setattr(weights_module, "shipped_folder", lambda name: folder)
    return folder


def test_weights_by_name_and_by_file(
    shelf: Path, network: VoxelDetector, sweep: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_weights(shelf / "tiny_sim.pt", network)
    by_name = Detector.load("tiny_sim", score_threshold=0.0, max_detections=7)
    assert by_name.config == network.config
    found = by_name.detect(sweep)
    assert len(found) == 7
    by_file = Detector.load(shelf / "tiny_sim.pt", score_threshold=0.0, max_detections=7)
    assert_same(by_file.detect(sweep), found)
    monkeypatch.chdir(shelf)
    assert Detector.load("tiny_sim.pt").score_threshold == 0.1
    assert "tiny: voxelnet of Car" in repr(by_name)


def test_an_unknown_name_lists_those_that_there_are(shelf: Path, network: VoxelDetector) -> None:
    with pytest.raises(CheckpointError, match=r"voxelnet_bus: no such file.*shipped are: none"):
        Detector.load("voxelnet_bus")
    write_weights(shelf / "b.pt", network)
    write_weights(shelf / "a.pt", network)
    with pytest.raises(CheckpointError, match=r"voxelnet_bus: no such file.*shipped are: a, b"):
        Detector.load("voxelnet_bus")
    with pytest.raises(CheckpointError, match=r"bus\.pt: No such file"):
        Detector.load("bus.pt")


def test_shipped_weights_load_and_are_small() -> None:
    for name, path in weights_module.shipped_weights().items():
        assert path.stat().st_size <= 10e6, name
        assert len(Detector.load(name).detect(np.zeros((0, 4)))) == 0


def test_stored_weights_are_half_as_large_and_nearly_the_same(
    tmp_path: Path, network: VoxelDetector
) -> None:
    with torch.no_grad():  # what float16 cannot hold: too large, and too small in all of a tensor
        network.rpn.blocks[0][0].weight.mul_(1e7)
        network.rpn.blocks[1][0].weight.mul_(1e-8)
        for name, buffer in network.named_buffers():
            if name.endswith("running_var"):
                buffer.fill_(1e-9)
            elif name.endswith("running_mean"):
                buffer.fill_(3e6)
    write_weights(tmp_path / "w.pt", network)
    stored = torch.load(tmp_path / "w.pt", weights_only=True)
    assert set(stored) == {"voxelpool_config", "state_dict"}
    kinds = {name: value.dtype for name, value in stored["state_dict"].items()}
    assert kinds["model.rpn.blocks.0.0.weight"] == torch.float32
    assert kinds["model.rpn.blocks.1.0.weight"] == torch.float32
    assert kinds["model.rpn.blocks.2.0.weight"] == torch.float16
    loaded = Detector.load(tmp_path / "w.pt")._network.state_dict()
    for name, value in network.state_dict().items():
        assert loaded[name].dtype == value.dtype
        if value.dim() < 2 or "blocks.0.0" in name or "blocks.1.0" in name:
            assert torch.equal(loaded[name], value), name
        else:
            error = (loaded[name] - value).norm() / value.norm()
            assert error < 1e-3, name


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path(self.path),))  # type: ignore[attr-defined]


@pytest.mark.parametrize("container", ["torch", "pickle"])
def test_weights_that_hold_more_than_data_are_refused(
    container: str, tmp_path: Path, network: VoxelDetector
) -> None:
    evil = Evil()
    evil.path = tmp_path / "ran"  # type: ignore[attr-defined]
    write_weights(tmp_path / "w.pt", network)
    contents = {**torch.load(tmp_path / "w.pt", weights_only=True), "extra": evil}
    if container == "torch":
        torch.save(contents, tmp_path / "w.pt")
    else:
        (tmp_path / "w.pt").write_bytes(pickle.dumps(contents))
    with pytest.raises(CheckpointError, match=r"w\.pt: holds more than weights"):
        Detector.load(tmp_path / "w.pt")
    assert not (tmp_path / "ran").exists()


def test_importing_the_package_does_not_import_torch() -> None:
    code = "import sys, voxelpool as v; assert 'Detector' in dir(v) and 'torch' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert voxelpool.Detector is Detector
