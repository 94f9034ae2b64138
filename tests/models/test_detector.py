"""The assembled detectors."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from voxelpool.config import Config, load_config
from voxelpool.models import VoxelDetector, build_detector, load_detector
from voxelpool.models.checkpoint import WEIGHTS_PREFIX, config_entry

CONFIGS = Path(__file__).parents[2] / "configs"


def some_points(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    low, high = torch.tensor([0, -12.8, -2, 0]), torch.tensor([25.6, 12.8, 0.5, 1])
    return low + (high - low) * torch.rand(count, 4, generator=generator)


@pytest.fixture
def detector(tiny_config: Config) -> VoxelDetector:
    torch.manual_seed(0)
    return build_detector(tiny_config)


@pytest.mark.parametrize(
    ("name", "anchors"), [("car", 70_400), ("pedestrian", 96_000), ("cyclist", 96_000)]
)
def test_paper_size(name: str, anchors: int) -> None:
    """Facts 1.5: 6.67 M convolution and linear weights; 70,400 and 96,000 anchors."""
    detector = build_detector(load_config(CONFIGS / f"voxelnet_{name}.yaml"))
    assert detector.anchors.view(-1, 7).shape == (anchors, 7)
    layers = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.Conv3d, torch.nn.ConvTranspose2d)
    weights = sum(m.weight.numel() for m in detector.modules() if isinstance(m, layers))
    assert weights == pytest.approx(6.67e6, rel=2e-3)


def test_every_parameter_gets_a_gradient(detector: VoxelDetector) -> None:
    points = some_points(3000)
    box = torch.tensor([[10.0, 0.0, -0.9, 3.9, 1.6, 1.5, 0.1]])
    loss = detector.loss(detector(points), [box], [torch.zeros(1, dtype=torch.int64)])
    assert loss["num_positive"] > 0
    loss["loss"].backward()
    for name, parameter in detector.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_a_sweep_gives_the_same_alone_and_in_a_batch(detector: VoxelDetector) -> None:
    detector.eval()
    sweeps = [some_points(2000, seed) for seed in range(3)]
    sweeps[1] = sweeps[1][:0]
    sizes = torch.tensor([len(sweep) for sweep in sweeps])
    batch = torch.repeat_interleave(torch.arange(3), sizes)
    together = detector(torch.cat(sweeps), batch, 3)
    for row, sweep in enumerate(sweeps):
        alone = detector(sweep)
        for one, other in zip(alone[:2], together[:2], strict=True):
            torch.testing.assert_close(one[0], other[row], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "points",
    [some_points(0), some_points(500) + 1000, torch.full((20, 4), torch.nan), some_points(1)],
    ids=["no points", "all out of range", "all NaN", "one point"],
)
def test_odd_sweeps_pass_through_training_and_detection(
    detector: VoxelDetector, points: torch.Tensor
) -> None:
    loss = detector.loss(detector(points), [torch.zeros(0, 7)], [torch.zeros(0, dtype=torch.int64)])
    loss["loss"].backward()
    assert torch.isfinite(loss["loss"])
    for name, parameter in detector.named_parameters():
        assert parameter.grad is None or torch.isfinite(parameter.grad).all(), name
    found = detector.eval().detect(points)
    assert len(found) == 1 and found[0].boxes.shape[1] == 7


def test_nan_points_change_nothing(detector: VoxelDetector) -> None:
    detector.eval()
    points = some_points(1000)
    spoilt = torch.cat([points, torch.full((10, 4), torch.nan)])
    for one, other in zip(detector(points)[:2], detector(spoilt)[:2], strict=True):
        assert torch.equal(one, other)


def test_the_seed_decides_which_points_a_full_voxel_keeps(detector: VoxelDetector) -> None:
    detector.eval()
    crowded = some_points(20_000)
    first, second, other = (detector(crowded, seed=seed)[0] for seed in (0, 0, 1))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


def test_points_of_another_width_are_refused(detector: VoxelDetector) -> None:
    with pytest.raises(ValueError, match=r"\(N, 4\), got \(10, 5\)"):
        detector(torch.zeros(10, 5))


def test_anchors_over_empty_ground_take_no_part(tiny_config: Config) -> None:
    """Points lie on one side only: loss and boxes come from there alone."""
    head = tiny_config.head.model_copy(update={"min_voxels": 2})
    low = tiny_config.postprocess.model_copy(update={"score_threshold": 0.0, "nms_iou": 1.0})
    config = tiny_config.model_copy(update={"head": head, "postprocess": low})
    torch.manual_seed(0)
    detector = build_detector(config).eval()
    torch.manual_seed(0)
    plain = build_detector(tiny_config.model_copy(update={"postprocess": low})).eval()
    points = some_points(3000)
    points = points[points[:, 1] > 0]
    predictions, of_all = detector(points), plain(points)
    assert torch.equal(predictions.scores, of_all.scores)
    counted = detector.counted_anchors(detector.voxelize(points))
    assert counted is not None and plain.counted_anchors(plain.voxelize(points)) is None
    sides = detector.anchors.reshape(-1, 7)[:, 1]
    assert not counted[0, sides < -2.5].any() and counted[0, sides > 2.5].float().mean() > 0.9

    boxes = torch.tensor([[10.0, -6.0, -0.9, 3.9, 1.6, 1.5, 0.1]])
    classes = [torch.zeros(1, dtype=torch.int64)]
    assert plain.loss(of_all, [boxes], classes)["num_positive"] > 0
    loss = detector.loss(predictions, [boxes], classes, counted)
    assert loss["num_positive"] == 0
    gradient = torch.autograd.grad(loss["loss"], predictions.scores)[0]
    assert torch.equal(gradient[0] != 0, counted[0])

    found, all_found = detector.detect(points)[0], plain.detect(points)[0]
    assert len(all_found) > 0
    assert (all_found.boxes[:, 1] < -4).any() and not (found.boxes[:, 1] < -4).any()


def test_a_checkpoint_takes_part_with_and_without_empty_anchors(
    tiny_config: Config, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    weights = build_detector(tiny_config).state_dict()
    state = {f"{WEIGHTS_PREFIX}{name}": value for name, value in weights.items()}
    torch.save({"state_dict": state, **config_entry(tiny_config)}, tmp_path / "some.ckpt")
    head = tiny_config.head.model_copy(update={"min_voxels": 2})
    config = tiny_config.model_copy(update={"head": head})
    assert load_detector(tmp_path / "some.ckpt", config).config.head.min_voxels == 2
