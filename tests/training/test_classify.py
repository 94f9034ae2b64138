"""Classifiers: moves of grids and points, batches, training and votes."""

from __future__ import annotations

import csv
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from voxelpool.config import (
    ClassifierConfig,
    Config,
    ObjectAugmentConfig,
    ScheduleConfig,
    TeachersConfig,
    parse_config,
)
from voxelpool.datasets.objects import ObjectSet
from voxelpool.errors import CheckpointError, ConfigError, DataError, TrainingError
from voxelpool.models import build_detector, classifier_of, load_classifier, load_detector
from voxelpool.models.checkpoint import write_checkpoint
from voxelpool.ops import occupancy_grid
from voxelpool.structures import VoxelGrid
from voxelpool.training import ObjectData, class_probabilities, find_run, fit, new_run
from voxelpool.training.classify import ClassifierModule, Moves, ObjectBatches, network_inputs


def changed(config: ClassifierConfig, block: str, **values: object) -> ClassifierConfig:
    inner = getattr(config, block).model_copy(update=values)
    return config.model_copy(update={block: inner})


def moves(stretch=(1, 1, 1), angle=0.0, shift=(0, 0, 0), count=1) -> Moves:
    plain = Moves.turned(count, angle)
    return Moves(
        torch.tensor([stretch] * count, dtype=torch.float64),
        plain.turn,
        torch.tensor([shift] * count),
    )


def rolled(grid: torch.Tensor, shift: tuple[int, int, int]) -> torch.Tensor:
    """Shifted along x, y, z with zeros coming in, cell by cell."""
    out = torch.zeros_like(grid)
    depth, height, width = grid.shape
    for z in range(depth):
        for y in range(height):
            for x in range(width):
                a, b, c = x + shift[0], y + shift[1], z + shift[2]
                if 0 <= a < width and 0 <= b < height and 0 <= c < depth:
                    out[c, b, a] = grid[z, y, x]
    return out


@pytest.mark.parametrize("size", [6, 7])
def test_quarter_turns_mirrors_and_shifts_of_grids_are_exact(size: int) -> None:
    grid = torch.from_numpy(np.random.default_rng(0).integers(0, 2, (size,) * 3, np.uint8))
    for quarter in range(-2, 5):
        found = moves(angle=quarter * math.pi / 2).on_grids(grid[None])[0]
        # From x to y is from the last axis to the one before.
        assert torch.equal(found, torch.rot90(grid, quarter, (2, 1)))
        blend = moves(angle=quarter * math.pi / 2).on_grids(grid[None], linear=True)[0]
        torch.testing.assert_close(blend, found.float())
    assert torch.equal(moves(stretch=(-1, 1, 1)).on_grids(grid[None])[0], grid.flip(2))
    assert torch.equal(moves(stretch=(1, -1, 1)).on_grids(grid[None])[0], grid.flip(1))
    for shift in ((1, 0, 0), (0, -2, 0), (0, 0, 2), (-1, 2, -2), (size, 0, 0), (0, 0, -size)):
        found = moves(shift=shift).on_grids(grid[None])[0]
        assert torch.equal(found, rolled(grid, shift)), shift
    all_three = moves((-1, 1, 1), math.pi / 2, (1, -1, 2)).on_grids(grid[None])[0]
    assert torch.equal(all_three, rolled(torch.rot90(grid.flip(2), 1, (2, 1)), (1, -1, 2)))


def test_grids_turn_as_points_do() -> None:
    """Middles of cells, moved as points and put in cells again, are the moved grid."""
    rng = np.random.default_rng(1)
    size = 9
    cell = 0.2
    config = ObjectAugmentConfig(rotations=4, mirror=0.5, jitter=2)
    drawn = Moves.drawn(config, [np.random.default_rng(k) for k in range(12)])
    grids = torch.from_numpy((rng.random((12, size, size, size)) < 0.1).astype(np.uint8))
    row, z, y, x = grids.nonzero().unbind(1)
    middles = (torch.stack([x, y, z], dim=1) + 0.5 - size / 2).float() * cell
    moved = drawn.on_points(middles, row, cell)
    half = size * cell / 2
    grid = VoxelGrid((-half, -half, -half, half, half, half), (cell, cell, cell))
    found = occupancy_grid(moved, grid, "hit", batch=row, batch_size=12)
    assert torch.equal(found.to(torch.uint8), drawn.on_grids(grids))
    assert len(drawn.turn.unique(dim=0)) == 4 and len(drawn.stretch.unique(dim=0)) == 4


def test_stretched_boxes_are_as_long_as_they_should_be() -> None:
    """A box of 8 x 6 x 4 cells; what its edges become, to a cell's width."""
    grid = torch.zeros(1, 20, 20, 20, dtype=torch.uint8)
    grid[0, 8:12, 7:13, 6:14] = 1
    for stretch in ((1.5, 1, 1), (1, 0.5, 1), (1, 1, 2), (-1.25, 1.5, 0.75)):
        found = moves(stretch).on_grids(grid)[0].nonzero()
        edges = (found.amax(0) - found.amin(0) + 1).flip(0)
        wanted = torch.tensor([8, 6, 4]) * torch.tensor(stretch).abs()
        assert (edges - wanted).abs().max() <= 1, stretch
        assert len(found) == edges.prod(), "stays a box"
        middle = (found.amax(0) + found.amin(0)).double() / 2
        assert (middle - 9.5).abs().max() <= 0.5
        points = torch.tensor([[4.0, 3.0, 2.0]])
        moved = moves(stretch).on_points(points, torch.tensor([0]), 1.0)
        torch.testing.assert_close(moved[0], points[0] * torch.tensor(stretch))


def test_stretches_and_gaps_are_drawn_within_their_bounds(tiny_classifier) -> None:
    config = ObjectAugmentConfig(rotations=1, mirror=0.0, jitter=0, scale=0.2)
    drawn = Moves.drawn(config, [np.random.default_rng(k) for k in range(200)]).stretch
    assert drawn.min() >= 0.8 and drawn.max() <= 1.2 and drawn.std() > 0.1
    assert not torch.equal(drawn[:, 0], drawn[:, 1]), "each axis has a factor of its own"
    augment = ObjectAugmentConfig(rotations=1, mirror=0.0, jitter=0, drop=0.5)
    objects = tiny_classifier.objects.model_copy(update={"augment": augment})
    config = tiny_classifier.model_copy(update={"objects": objects})
    train = ObjectData(config).train_objects
    batches = ObjectBatches(train, config)
    rows = range(len(train))
    before = batches.__getitems__(list(rows)).objects
    after = batches.__getitems__([(3, row) for row in rows]).objects
    assert (after <= before).all(), "only gaps"
    shares = 1 - after.flatten(1).sum(1) / before.flatten(1).sum(1)
    assert 0 < shares.mean() < 0.5 and shares.std() > 0.05
    again = batches.__getitems__([(3, row) for row in rows]).objects
    assert torch.equal(after, again)
    assert torch.equal(torch.from_numpy(train.grids), before), "the set itself is whole"


def test_turns_are_counted_from_where_the_object_stood() -> None:
    for turns in (2, 4, 12):
        for k in range(turns):
            index = Moves.turned(3, 2 * math.pi * k / turns).turn_index(turns)
            assert index.tolist() == [k] * 3


def test_the_loss_of_turns_by_hand(tiny_classifier) -> None:
    """Of the own class's scores alone, and of objects that are not mirrored."""
    objects = tiny_classifier.objects
    augment = objects.augment.model_copy(update={"rotations": 4})
    config = tiny_classifier.model_copy(
        update={
            "objects": objects.model_copy(update={"augment": augment}),
            "classifier": tiny_classifier.classifier.model_copy(update={"turns": 4}),
            "loss": tiny_classifier.loss.model_copy(update={"turn_weight": 0.3}),
        }
    )
    torch.manual_seed(0)
    module = ClassifierModule(config)
    batch = ObjectBatches(ObjectData(config).train_objects, config).__getitems__([(0, 1), (0, 2)])
    plain = Moves.turned(2, math.pi / 2)
    plain.stretch[1, 0] = -1
    batch = replace(batch, moves=plain)
    inputs = network_inputs(batch, config, batch.moves)
    module.eval()  # no dropout
    logits, turns = module.model.forward_turns(inputs)
    assert logits.shape == (2, 10) and turns.shape == (2, 10, 4)
    assert torch.equal(logits, module.model(inputs))
    expected = torch.nn.functional.cross_entropy(logits, batch.labels)
    expected = expected - 0.3 * turns[0, batch.labels[0]].log_softmax(0)[1]
    module.log = lambda *arguments, **options: None
    torch.testing.assert_close(module.training_step(batch, 0), expected)


def test_a_twelfth_of_a_turn_keeps_a_round_thing() -> None:
    z, y, x = np.indices((16, 16, 16)) - 7.5
    disc = torch.from_numpy(((x**2 + y**2 < 36) & (np.abs(z) < 4)).astype(np.uint8))
    bar = torch.from_numpy(((np.abs(x) < 6) & (np.abs(y) < 1) & (np.abs(z) < 4)).astype(np.uint8))
    for k in range(12):
        turned = Moves.turned(2, k * math.pi / 6).on_grids(torch.stack([disc, bar]))
        assert (turned[0] != disc).float().mean() < 0.05
        cells = turned[1].nonzero().double() - 7.5
        along = cells[:, 2] * math.cos(k * math.pi / 6) + cells[:, 1] * math.sin(k * math.pi / 6)
        assert along.abs().max() < 6.8 and along.std() > 2.5, "lies along the angle"
        assert abs(len(cells) - int(bar.sum())) < 0.3 * int(bar.sum())


def test_linear_turns_blend_as_grid_sample_does() -> None:
    rng = np.random.default_rng(2)
    grid = torch.from_numpy(rng.integers(0, 2, (5, 8, 8), np.uint8))
    for k in range(12):
        angle = k * math.pi / 6
        found = moves((-1, 1, 1), angle).on_grids(grid[None], linear=True)[0]
        cos, sin = math.cos(angle), math.sin(angle)
        back = torch.tensor([[[-cos, -sin, 0.0], [-sin, cos, 0.0]]])
        places = nn.functional.affine_grid(back, [1, 5, 8, 8], align_corners=False)
        wanted = nn.functional.grid_sample(grid[None].float(), places, align_corners=False)[0]
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_batches_depend_on_seed_epoch_and_object_alone(tiny_classifier: ClassifierConfig) -> None:
    data = ObjectData(tiny_classifier)
    batches = ObjectBatches(data.train_objects, tiny_classifier)
    one, other = batches.__getitems__([(3, 5), (3, 7)]), batches.__getitems__([(3, 7)])
    assert torch.equal(one.moves.turn[1], other.moves.turn[0])
    assert torch.equal(one.moves.shift[1], other.moves.shift[0])
    assert torch.equal(one.objects[1], other.objects[0]) and one.ids[1] == other.ids[0]
    shifts = torch.stack([batches[(epoch, 7)].moves.shift[0] for epoch in range(12)])
    assert len(shifts.unique(dim=0)) > 4, "another move each epoch"
    assert batches[7].moves is None


def point_set(sizes: list[int], seed: int = 0) -> ObjectSet:
    rng = np.random.default_rng(seed)
    count = len(sizes)
    return ObjectSet(
        ("Car", "pole"), [f"o{k}" for k in range(count)], np.arange(count) % 2, None,
        rng.uniform(-3, 3, (sum(sizes), 3)).astype(np.float32),
        np.concatenate([[0], np.cumsum(sizes)]),
        rng.uniform(5, 20, (count, 3)).astype(np.float32),
    )  # fmt: skip


def crops_config(model: str = "voxnet", **classifier: object) -> ClassifierConfig:
    config = parse_config(
        f"""
        name: crops
        model: {model}
        objects: {{source: crops, root: none, classes: [Car, pole], extent: 6.4}}
        classifier: {{grid_size: 16, points: 32}}
        """
    )
    return changed(config, "classifier", **classifier)


@pytest.mark.parametrize("occupancy", ["hit", "density", "log_odds"])
def test_crops_become_grids_one_by_one_as_together(occupancy: str) -> None:
    config = crops_config(occupancy=occupancy)
    objects = point_set([40, 12, 25])
    batch = ObjectBatches(objects, config).__getitems__([0, 1, 2])
    moved = moves((1, -1, 1), math.pi / 3, (1, 0, -1), count=3)
    for move in (None, moved):
        together = network_inputs(batch, config, move)
        assert together.shape == (3, 1, 16, 16, 16)
        for row in range(3):
            alone = ObjectBatches(objects, config)[row]
            one = moves((1, -1, 1), math.pi / 3, (1, 0, -1)) if move else None
            assert torch.equal(network_inputs(alone, config, one)[0], together[row])
    values = network_inputs(batch, config).unique()
    if occupancy == "hit":
        assert values.tolist() == [0, 1]
    else:
        assert len(values) > 2
    cells = ((objects[0].points + 3.2) / 0.4).astype(int)
    hits = {tuple(row) for row in cells[:, ::-1].tolist()}
    middle = {"hit": 0.5, "density": 0.5, "log_odds": 0.0}[occupancy]
    assert (network_inputs(batch, config)[0, 0] > middle).sum() <= len(hits)


def test_points_for_networks_on_points() -> None:
    config = crops_config("pointnet2")
    objects = point_set([100, 5])
    batches = ObjectBatches(objects, config)
    batch = batches.__getitems__([0, 1])
    inputs = network_inputs(batch, config)
    assert inputs.shape == (2, 32, 3) and inputs.abs().max() <= 1
    known = {tuple(row) for row in np.round(objects[1].points / 3.2, 5).tolist()}
    assert {tuple(row) for row in np.round(inputs[1].numpy(), 5).tolist()} == known
    assert len(inputs[0].unique(dim=0)) == 32
    assert torch.equal(batches.__getitems__([0, 1]).objects, batch.objects), "the same each time"
    again = batches.__getitems__([(4, 0), (4, 1)]).objects
    assert not torch.equal(again[0], batches.__getitems__([(5, 0), (5, 1)]).objects[0])


class Leftmost(nn.Module):
    """Says 1 of a grid whose cells lie at low x, else 0: surely, and for one turn in a few."""

    def forward(self, grids: torch.Tensor) -> torch.Tensor:
        x = torch.arange(grids.shape[-1], dtype=torch.float32)
        mean = (grids * x).sum((1, 2, 3, 4)) / grids.sum((1, 2, 3, 4))
        left = (mean < (grids.shape[-1] - 1) / 2 - 1).float()
        return torch.stack([1 - left, left], dim=1) * 50


def test_votes_average_over_turns(tiny_classifier: ClassifierConfig) -> None:
    grids = np.zeros((1, 10, 10, 10), np.uint8)
    grids[0, :, 4:6, 1] = 1
    objects = ObjectSet(
        tuple(tiny_classifier.classes), ["a"], np.array([1]), grids, None,
        np.zeros(2, np.int64), np.zeros((1, 3), np.float32),
    )  # fmt: skip
    for votes, share in ((1, 1.0), (2, 0.5), (4, 0.25)):
        ((probabilities, labels),) = class_probabilities(
            Leftmost(), objects, tiny_classifier, votes=votes
        )
        assert probabilities[0].tolist() == pytest.approx([1 - share, share])
        assert labels.tolist() == [1]


def test_a_class_without_training_objects(tiny_classifier: ClassifierConfig) -> None:
    path = Path(tiny_classifier.objects.root) / "modelnet10.npz"
    with np.load(path) as arrays:
        stored = dict(arrays)
    stored["y_train"] = np.where(stored["y_train"] == 9, 8, stored["y_train"])
    np.savez(path, **stored)
    with pytest.raises(DataError, match="split 'train' holds no toilet"):
        ObjectData(tiny_classifier)
    ObjectData(tiny_classifier, training=False)


def rows(folder: Path) -> list[dict[str, str]]:
    with open(folder / "metrics.csv") as file:
        return list(csv.DictReader(file))


def test_training_learns_and_is_evaluated(
    tiny_classifier: ClassifierConfig, tmp_path: Path
) -> None:
    still = ObjectAugmentConfig(rotations=1, mirror=0, jitter=0)
    config = changed(tiny_classifier, "train", epochs=12)
    config = changed(changed(config, "objects", augment=still), "classifier", width=8)
    run = new_run(config, tmp_path / "run")
    fit(config, run, progress=False)
    assert run.best.is_file() and run.last.is_file()
    logged = rows(run.folder)
    accuracy = [float(row["val/accuracy"]) for row in logged if row.get("val/accuracy")]
    assert len(accuracy) == 12 and max(accuracy) >= 0.3, "three times chance"
    losses = [float(row["train/loss"]) for row in logged if row.get("train/loss")]
    assert np.mean(losses[-8:]) < 0.6 * np.mean(losses[:8]), "first and last epoch"
    classifier = load_classifier(run.best, config)
    assert not classifier.training
    objects = ObjectData(config, training=False).val_objects
    found = list(class_probabilities(classifier, objects, config, votes=1))
    right = torch.cat([p.argmax(1) == labels for p, labels in found]).float().mean()
    assert float(right) == pytest.approx(max(accuracy)), "best.ckpt has the best accuracy"


def test_the_same_seed_gives_the_same_weights_and_resume_goes_on(
    tiny_classifier: ClassifierConfig, tmp_path: Path
) -> None:
    config = changed(tiny_classifier, "train", schedule=ScheduleConfig(name="constant"))
    short = changed(config, "train", epochs=1)
    states = []
    for name in ("one", "other"):
        run = new_run(config, tmp_path / name)
        fit(config, run, progress=False)
        states.append(torch.load(run.last, weights_only=True)["state_dict"])
    begun = new_run(short, tmp_path / "begun")
    fit(short, begun, progress=False)
    fit(config, find_run(config, begun.folder), resume=True, progress=False)
    states.append(torch.load(begun.last, weights_only=True)["state_dict"])
    for state in states[1:]:
        assert all(torch.equal(value, states[0][name]) for name, value in state.items())
    with pytest.raises(ConfigError, match=r"train\.lr is 0\.01 there and 0\.5 here"):
        find_run(changed(config, "train", lr=0.5), begun.folder)


def test_balanced_weights_and_smoothing(tiny_classifier: ClassifierConfig) -> None:
    data = ObjectData(changed(tiny_classifier, "loss", class_weights="balanced"))
    counts = torch.tensor(list(data.train_objects.counts().values())).float()
    weights = data.class_weights()
    torch.testing.assert_close(weights * counts, torch.full((10,), counts.sum() / 10))
    assert ObjectData(tiny_classifier).class_weights() is None
    module = ClassifierModule(changed(tiny_classifier, "loss", label_smoothing=0.1), weights)
    logits, labels = torch.randn(6, 10), torch.tensor([0, 1, 2, 0, 1, 9])
    log = logits.log_softmax(1)
    target = torch.full((6, 10), 0.01)
    target[torch.arange(6), labels] += 0.9
    by_hand = -(target * log * weights).sum() / weights[labels].sum()
    assert float(module._loss(logits, labels)) == pytest.approx(float(by_hand), rel=1e-5)


def test_teachers(tiny_classifier: ClassifierConfig, tmp_path: Path) -> None:
    """The loss by hand, from the answers of two trained networks."""
    config = changed(tiny_classifier, "train", epochs=1)
    paths = []
    for seed in (1, 2):
        run = new_run(config.model_copy(update={"seed": seed}), tmp_path / str(seed))
        fit(config.model_copy(update={"seed": seed}), run, progress=False)
        paths.append(str(run.last))
    taught = TeachersConfig(checkpoints=tuple(paths), weight=0.7, temperature=3.0)
    learner = changed(config, "loss", teachers=taught)
    data = ObjectData(learner)
    batch = next(iter(data.train_dataloader()))
    module = ClassifierModule(learner).train()
    assert module.teachers is not None
    module._log_parts = lambda *_, **__: None  # type: ignore[method-assign]
    torch.manual_seed(0)
    loss = module.training_step(batch, 0)
    torch.manual_seed(0)  # for dropout
    inputs = network_inputs(batch, learner, batch.moves)
    logits = module.model(inputs).detach()
    said = torch.stack([(load_classifier(path).eval()(inputs) / 3).softmax(1) for path in paths])
    target = said.mean(0).double()
    own = (logits.double() / 3).softmax(1)
    apart = 9 * (target * (target / own).log()).sum(1).mean()
    right = -logits.double().softmax(1)[torch.arange(len(batch.labels)), batch.labels].log().mean()
    by_hand = (0.3 * right + 0.7 * apart).detach()
    assert float(loss.detach()) == pytest.approx(float(by_hand), rel=1e-4)

    loss.backward()
    assert all(one.grad is not None for one in module.model.parameters())
    names = [name for name, _ in module.named_parameters()]
    assert len(names) == len(list(module.model.parameters())), "no teacher is trained or kept"
    assert not any(network.training for network in module.train().teachers.networks)
    run = new_run(learner, tmp_path / "learner")
    fit(learner, run, progress=False)
    assert load_classifier(run.last) is not None


def test_teachers_that_know_something_else(
    tiny_classifier: ClassifierConfig, tiny_config: Config, tmp_path: Path
) -> None:
    config = changed(tiny_classifier, "train", epochs=1)
    run = new_run(config, tmp_path / "run")
    fit(config, run, progress=False)
    taught = changed(config, "loss", teachers=TeachersConfig(checkpoints=(str(run.last),)))
    smaller = changed(taught, "classifier", grid_size=config.classifier.grid_size + 2)
    with pytest.raises(ConfigError, match=r"last\.ckpt: classifier\.grid_size is \d+ there and"):
        ClassifierModule(smaller)
    missing = changed(config, "loss", teachers=TeachersConfig(checkpoints=("none.ckpt",)))
    with pytest.raises(CheckpointError, match=r"none\.ckpt"):
        ClassifierModule(missing)
    detector = tmp_path / "detector.ckpt"
    write_checkpoint(detector, tiny_config, build_detector(tiny_config).state_dict())
    wrong = changed(config, "loss", teachers=TeachersConfig(checkpoints=(str(detector),)))
    with pytest.raises(CheckpointError, match="no classifier"):
        ClassifierModule(wrong)


def test_a_loss_that_is_not_finite_names_the_objects(
    tiny_classifier: ClassifierConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nan(self: ClassifierModule, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return logits.sum() * float("nan")

    monkeypatch.setattr(ClassifierModule, "_loss", nan)
    run = new_run(tiny_classifier, tmp_path / "run")
    with pytest.raises(TrainingError, match=r"not finite.*epoch 0, step 0: objects train/00"):
        fit(tiny_classifier, run, progress=False)


def test_checkpoints_of_another_network(
    tiny_classifier: ClassifierConfig, tiny_config: Config, tmp_path: Path
) -> None:
    config = changed(tiny_classifier, "train", epochs=1)
    run = new_run(config, tmp_path / "run")
    fit(config, run, progress=False)
    wide = changed(config, "classifier", width=8)
    with pytest.raises(CheckpointError, match=r"classifier\.width is 4 there and 8 here"):
        load_classifier(run.last, wide)
    other = config.model_copy(update={"model": "nin"})
    with pytest.raises(CheckpointError, match="model is small_cnn there and nin here"):
        load_classifier(run.last, other)
    with pytest.raises(CheckpointError, match=r"last\.ckpt: is of the classifier small_cnn"):
        load_detector(run.last)
    with pytest.raises(CheckpointError, match="model is small_cnn there and voxelnet here"):
        load_detector(run.last, tiny_config)
    with pytest.raises(ConfigError, match="model is small_cnn there and voxelnet here"):
        find_run(tiny_config, run.folder)
    moved = changed(config, "objects", root="elsewhere", votes=1)
    assert load_classifier(run.last, moved) is not None


@pytest.mark.parametrize(
    ("model", "options"),
    [
        ("voxnet", {"occupancy": "density", "head": "both"}),
        ("resnet18", {"width": 4, "stem": "small", "dim": 2}),
        ("nin", {"width": 4, "window_pool": "average"}),
        ("spp_net", {"width": 4, "dropout": 0.1}),
        ("small_cnn", {"width": 4, "head": "flatten"}),
        ("pointnet2", {"width": 4, "normalise": False, "head": "average"}),
    ],
)
def test_every_model_is_built_from_its_config_and_takes_its_inputs(
    model: str, options: dict[str, object]
) -> None:
    config = crops_config(model, grid_size=32, **options)
    classifier = classifier_of(config)
    batch = ObjectBatches(point_set([40, 12, 25]), config).__getitems__([0, 1, 2])
    logits = classifier(network_inputs(batch, config))
    assert logits.shape == (3, 2)
    logits.sum().backward()
    assert all(p.grad is not None for p in classifier.parameters() if p.requires_grad)
