"""What a detector takes over from one that was trained for other classes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from voxelpool.config import AnchorConfig, Config
from voxelpool.errors import CheckpointError
from voxelpool.models import VoxelDetector, build_detector
from voxelpool.models.checkpoint import average_checkpoints, begin_with, write_checkpoint
from voxelpool.models.weights import random_points

SIZES = {"Car": (3.9, 1.6, 1.56), "Cyclist": (1.76, 0.6, 1.73), "Pedestrian": (0.8, 0.6, 1.73)}


def detector(config: Config, scores: str, *names: str, seed: int = 0) -> VoxelDetector:
    """Untrained, of these classes, no two of whose weights are alike."""
    anchors = tuple(
        AnchorConfig(
            class_name=name,
            size=SIZES[name],
            z_center=-1.0,
            matched_threshold=0.5,
            unmatched_threshold=0.3,
        )
        for name in names
    )
    changes = {
        "anchors": anchors,
        "head": config.head.model_copy(update={"scores": scores, "direction": True}),
        "loss": config.loss.model_copy(
            update={"angle": "sine", "classification": "focal", "direction_weight": 0.2}
        ),
    }
    torch.manual_seed(seed)
    network = build_detector(config.model_copy(update=changes))
    with torch.no_grad():
        for value in network.parameters():
            value.copy_(0.1 * torch.randn_like(value))
    return network.eval()


def written(network: VoxelDetector, path: Path) -> Path:
    write_checkpoint(path, network.config, network.state_dict())
    return path


@pytest.mark.parametrize("scores", ["own", "all"])
def test_what_both_know_is_predicted_as_before(
    scores: str, tiny_config: Config, tmp_path: Path
) -> None:
    """Cars and cyclists, from a network of cyclists, pedestrians and cars, in another order."""
    old = detector(tiny_config, scores, "Cyclist", "Pedestrian", "Car", seed=1)
    new = detector(tiny_config, scores, "Car", "Cyclist")
    assert begin_with(new, written(old, tmp_path / "old.pt")) == ()
    points = random_points(old, 2000)
    expected, found = old(points), new(points)
    places = new.anchors.shape[0] * new.anchors.shape[1]

    def of_anchors(values: torch.Tensor, rows: list[int]) -> torch.Tensor:
        return values.reshape(places, -1, *values.shape[2:])[:, rows]

    there = [4, 5, 0, 1]  # two rotations each
    for name in ("residuals", "directions"):
        torch.testing.assert_close(
            of_anchors(getattr(found, name), [0, 1, 2, 3]),
            of_anchors(getattr(expected, name), there),
        )
    old_scores = of_anchors(expected.scores, there)
    if scores == "all":
        old_scores = old_scores[..., [2, 0]]
    torch.testing.assert_close(of_anchors(found.scores, [0, 1, 2, 3]), old_scores)


@pytest.mark.parametrize("scores", ["own", "all"])
def test_what_is_new_begins_anew(scores: str, tiny_config: Config, tmp_path: Path) -> None:
    old = detector(tiny_config, scores, "Car", seed=1)
    new = detector(tiny_config, scores, "Pedestrian", "Car")
    before = {name: value.clone() for name, value in new.state_dict().items()}
    assert begin_with(new, written(old, tmp_path / "old.pt")) == ("Pedestrian",)
    after, known = new.state_dict(), old.state_dict()
    for name in ("rpn.residual_head.weight", "rpn.direction_head.bias"):
        half = len(known[name])
        assert torch.equal(after[name][:half], before[name][:half])
        assert torch.equal(after[name][half:], known[name])
    name = "rpn.score_head.weight"
    if scores == "own":
        assert torch.equal(after[name], torch.cat([before[name][:2], known[name]]))
    else:  # rows: an anchor's score of pedestrians, then of cars
        cars = [5, 7]
        assert torch.equal(after[name][cars], known[name])
        rest = [0, 1, 2, 3, 4, 6]
        assert torch.equal(after[name][rest], before[name][rest])
    assert torch.equal(after["rpn.blocks.0.0.weight"], known["rpn.blocks.0.0.weight"])


def test_anchors_of_another_size_begin_anew(tiny_config: Config, tmp_path: Path) -> None:
    old = detector(tiny_config, "own", "Car", seed=1)
    larger = tiny_config.anchors[0].model_copy(update={"size": (4.4, 1.8, 1.6)})
    new = build_detector(old.config.model_copy(update={"anchors": (larger,)}))
    before = new.rpn.score_head.weight.clone()
    assert begin_with(new, written(old, tmp_path / "old.pt")) == ("Car",)
    assert torch.equal(new.rpn.score_head.weight, before)


def test_a_network_may_reach_farther(tiny_config: Config, tmp_path: Path) -> None:
    """Along x and y, where convolutions are the same everywhere; not along z."""
    old = detector(tiny_config, "own", "Car", seed=1)
    x0, y0, z0, x1, y1, z1 = old.config.grid.range
    stride = 8 * old.config.grid.voxel_size[0]
    farther = (x0, y0 - stride, z0, x1 + stride, y1 + stride, z1)
    grid = old.config.grid.model_copy(update={"range": farther})
    new = build_detector(old.config.model_copy(update={"grid": grid})).eval()
    assert begin_with(new, written(old, tmp_path / "old.pt")) == ()
    known = old.state_dict()
    assert all(torch.equal(value, known[name]) for name, value in new.state_dict().items())
    assert all(a > b for a, b in zip(new.anchors.shape[:2], old.anchors.shape[:2], strict=True))
    rise = old.config.grid.voxel_size[2]
    raised = (x0, y0, z0 + rise, x1, y1, z1 + rise)
    higher = old.config.grid.model_copy(update={"range": raised})
    with pytest.raises(CheckpointError, match=r"grid\.range\.2 is"):
        begin_with(
            build_detector(old.config.model_copy(update={"grid": higher})), tmp_path / "old.pt"
        )


def test_any_other_difference_is_refused(tiny_config: Config, tmp_path: Path) -> None:
    path = written(detector(tiny_config, "own", "Car", seed=1), tmp_path / "old.pt")
    new = detector(tiny_config, "all", "Car")
    before = {name: value.clone() for name, value in new.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"old\.pt: .*head\.scores is own there and all here"):
        begin_with(new, path)
    assert all(torch.equal(value, before[name]) for name, value in new.state_dict().items())


def test_the_mean_of_one_checkpoint_is_that_checkpoint(tiny_config: Config, tmp_path: Path) -> None:
    old = detector(tiny_config, "own", "Car", seed=1)
    mean = average_checkpoints([written(old, tmp_path / "old.pt")], old.config)
    assert not mean.training
    points = random_points(old, 2000)
    for name in ("scores", "residuals", "directions"):
        assert torch.equal(getattr(mean(points), name), getattr(old(points), name))


@pytest.mark.parametrize("scores", ["own", "all"])
def test_checkpoints_are_averaged(scores: str, tiny_config: Config, tmp_path: Path) -> None:
    """Of cars alone, and of cars with others: every weight of cars is the mean."""
    one = detector(tiny_config, scores, "Car", seed=1)
    other = detector(tiny_config, scores, "Pedestrian", "Car", seed=2)
    cars = build_detector(one.config)
    begin_with(cars, written(other, tmp_path / "other.pt"))
    paths = [written(one, tmp_path / "one.pt"), tmp_path / "other.pt"]
    mean = average_checkpoints(paths, one.config).state_dict()
    parts = one.state_dict(), cars.state_dict()
    assert set(mean) == set(parts[0])
    for name, value in mean.items():
        torch.testing.assert_close(value.float(), (parts[0][name] + parts[1][name]) / 2)


def test_what_cannot_be_averaged_is_named(tiny_config: Config, tmp_path: Path) -> None:
    one = detector(tiny_config, "own", "Car", seed=1)
    walkers = written(detector(tiny_config, "own", "Pedestrian", seed=1), tmp_path / "walkers.pt")
    paths = [written(one, tmp_path / "one.pt"), walkers]
    with pytest.raises(CheckpointError, match=r"walkers\.pt: .*anchors\.0\.class_name is Pedes"):
        average_checkpoints(paths, one.config)
    x0, y0, z0, x1, y1, z1 = one.config.grid.range
    grid = one.config.grid.model_copy(update={"range": (x0, 2 * y0, z0, x1, 2 * y1, z1)})
    wider = one.config.model_copy(update={"grid": grid})
    with pytest.raises(CheckpointError, match=r"one\.pt: .*grid\.range\.1 is"):
        average_checkpoints(paths, wider)
