"""What training reads: augmented as configured, with objects of its own frames alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from voxelpool.config import Config, dump_config, parse_config
from voxelpool.datasets.kitti import KittiDataset
from voxelpool.datasets.object_database import build_object_database, database_path
from voxelpool.errors import ConfigError, DataError
from voxelpool.training import SweepData, fit, new_run

EVERY_STEP = """
- {name: drop_beams, range: [0.0, 0.2]}
- {name: sample_objects, counts: {Car: 6}}
- {name: object_noise}
- {name: object_scale}
- {name: thin_objects}
- {name: fade_tops}
- {name: dent_objects}
- {name: flip}
- {name: rotate}
- {name: scale}
- {name: translate}
- {name: tilt}
- {name: drop_points}
- {name: jitter}
- {name: reflectance_noise}
- {name: shuffle}
"""


def with_augment(config: Config, steps: str, **data: object) -> Config:
    """The configuration with other augmentations."""
    values = yaml.safe_load(dump_config(config))
    values["data"] |= {"augment": yaml.safe_load(steps), **data}
    return parse_config(yaml.safe_dump(values))


@pytest.fixture
def with_database(tiny_config: Config) -> Path:
    """Writes the database of the training split and returns its path."""
    data = tiny_config.data
    path = database_path(data.root, data.train_split)
    build_object_database(KittiDataset(data.root, data.train_split)).save(path)
    return path


@pytest.mark.usefixtures("with_database")
def test_every_step_trains_and_the_same_with_workers(tiny_config: Config, tmp_path: Path) -> None:
    weights = []
    for workers in (0, 2):
        config = with_augment(tiny_config, EVERY_STEP, num_workers=workers)
        run = new_run(config, tmp_path / str(workers))
        weights.append(fit(config, run, progress=False).state_dict())
    for name, value in weights[0].items():
        assert torch.equal(value, weights[1][name]), name


@pytest.mark.usefixtures("with_database")
def test_epochs_differ_and_frames_keep_their_own_objects(tiny_config: Config) -> None:
    config = with_augment(tiny_config, "- {name: sample_objects, counts: {Car: 6}}")
    frames = SweepData(config).augmented_frames
    plain = SweepData(tiny_config).train_frames[0]
    one, again, other = frames[0, 0], frames[0, 0], frames[1, 0]
    assert np.array_equal(one.points, again.points) and np.array_equal(one.boxes, again.boxes)
    assert not np.array_equal(one.boxes, other.boxes)
    for frame in (one, other):
        assert np.array_equal(frame.boxes[: len(plain.boxes)], plain.boxes)
        assert len(frame.names) == len(frame.boxes) > len(plain.boxes)


@pytest.mark.usefixtures("with_database")
def test_a_step_may_end_before_training_does(tiny_config: Config) -> None:
    step = "- {name: sample_objects, counts: {Car: 20}, not_in_last_epochs: 2}"
    config = with_augment(tiny_config, step)
    config = config.model_copy(update={"train": config.train.model_copy(update={"epochs": 5})})
    data = SweepData(config)
    plain = data.train_frames[0]
    for epoch, pasted in enumerate((True, True, True, False, False)):
        frame = data.augmented_frames[epoch, 0]
        assert (len(frame.boxes) > len(plain.boxes)) == pasted
        assert pasted or np.array_equal(frame.points, plain.points)


def test_an_epoch_beyond_the_training_is_augmented_as_its_last(tiny_config: Config) -> None:
    """tools/visualize.py --augmented may ask for it."""
    config = with_augment(tiny_config, "- {name: rotate, range: [0.5, 0.5]}")
    data = SweepData(config)
    frame = data.augmented_frames[config.train.epochs + 3, 0]
    assert not np.allclose(frame.points, data.train_frames[0].points)


@pytest.mark.usefixtures("with_database")
def test_frames_that_are_not_trained_on_lend_no_objects(tiny_config: Config) -> None:
    step = "- {name: sample_objects, counts: {Car: 20}, max_difficulty: 3, min_points: 1}"
    config = with_augment(tiny_config, step, train_limit=1)
    data = SweepData(config)
    frame = data.augmented_frames[0, 0]
    assert len(data.train_frames) == 1
    assert np.array_equal(frame.boxes, data.train_frames[0].boxes)


def test_another_database_is_taken_whole(
    tiny_config: Config, with_database: Path, tmp_path: Path
) -> None:
    with_database.rename(tmp_path / "mine.npz")
    step = (
        f"- {{name: sample_objects, counts: {{Car: 20}}, max_difficulty: 3, min_points: 1, "
        f"database: {tmp_path / 'mine.npz'}}}"
    )
    data = SweepData(with_augment(tiny_config, step, train_limit=1))
    assert len(data.augmented_frames[0, 0].boxes) > len(data.train_frames[0].boxes)


def test_a_database_that_is_not_there_is_said_before_training(tiny_config: Config) -> None:
    config = with_augment(tiny_config, "- {name: sample_objects, counts: {Car: 6}}")
    with pytest.raises(DataError, match=r"gt_database_train.npz: no such file.*--gt-database"):
        SweepData(config)


def test_classes_without_anchors_are_not_sampled(tiny_config: Config) -> None:
    with pytest.raises(ConfigError, match="sample_objects names Cyclist, which has no anchors"):
        with_augment(tiny_config, "- {name: sample_objects, counts: {Car: 6, Cyclist: 2}}")
