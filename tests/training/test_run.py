"""Training from folder to folder."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import lightning
import pytest
import torch

from voxelpool.config import ClassifierConfig, Config, ScheduleConfig, load_config
from voxelpool.datasets.kitti import spread_rows, write_sweep
from voxelpool.errors import CheckpointError, ConfigError, DataError, TrainingError
from voxelpool.models import load_detector
from voxelpool.training import ObjectData, Run, SweepData, find_run, fit, new_run


class StopAfter(lightning.Callback):
    """Ends the process's part in the middle of a training, after the epoch's checkpoint."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_start(self, trainer: lightning.Trainer, module: object) -> None:
        if trainer.current_epoch == self.epoch:
            raise KeyboardInterrupt


def weights(run: Run) -> dict[str, torch.Tensor]:
    return torch.load(run.last, weights_only=True)["state_dict"]


def with_train(config: Config, **changes: object) -> Config:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def test_a_run_holds_config_log_and_checkpoints(tiny_config: Config, tmp_path: Path) -> None:
    run = new_run(tiny_config, tmp_path / "run")
    fit(tiny_config, run, progress=False)
    assert load_config(run.config_path) == tiny_config
    assert run.last.is_file() and run.best.is_file()
    assert list(run.folder.glob("events.out.tfevents.*"))
    with open(run.folder / "metrics.csv") as file:
        rows = list(csv.DictReader(file))
    losses = [float(row["train/loss"]) for row in rows if row["train/loss"]]
    assert len(losses) == 8, "4 epochs of 2 batches"
    assert all(math.isfinite(loss) for loss in losses)
    parts = ("train/score_positive", "train/score_negative", "train/residual")
    for row in rows:
        if row["train/loss"]:
            assert float(row["train/loss"]) == pytest.approx(sum(float(row[p]) for p in parts))
    validated = [row for row in rows if row.get("val/Car/3d/moderate")]
    assert len(validated) == 2, "every second of 4 epochs"


def test_training_learns(tiny_config: Config, tmp_path: Path) -> None:
    """On a handful of frames the loss falls to less than a third."""
    config = with_train(tiny_config, epochs=30, val_every=30, optimizer="adamw")
    run = new_run(config, tmp_path / "run")
    fit(config, run, progress=False)
    with open(run.folder / "metrics.csv") as file:
        losses = [float(r["train/loss"]) for r in csv.DictReader(file) if r["train/loss"]]
    assert sum(losses[-4:]) < sum(losses[:4]) / 3


def test_mixed_precision_learns_nearly_the_same(tiny_config: Config, tmp_path: Path) -> None:
    losses = {}
    for precision in ("32", "bf16"):
        config = with_train(tiny_config, precision=precision, epochs=1, val_every=1)
        run = new_run(config, tmp_path / precision)
        fit(config, run, progress=False)
        with open(run.folder / "metrics.csv") as file:
            rows = [float(r["train/loss"]) for r in csv.DictReader(file) if r["train/loss"]]
        losses[precision] = rows
    assert losses["bf16"] != losses["32"]
    assert losses["bf16"] == pytest.approx(losses["32"], rel=0.1)


def test_a_training_begins_with_given_weights(tiny_config: Config, tmp_path: Path) -> None:
    """With a learning rate of next to nothing they are what it ends with, too."""
    trained = new_run(tiny_config, tmp_path / "trained")
    fit(tiny_config, trained, progress=False)
    still = {"lr": 1e-12, "weight_decay": 0.0, "epochs": 1, "val_every": 1}
    config = with_train(tiny_config, weights=str(trained.last), **still)
    module = fit(config, new_run(config, tmp_path / "onward"), progress=False)
    expected = load_detector(trained.last).named_parameters()
    found = dict(module.model.named_parameters())
    assert all(torch.allclose(found[name], value, atol=1e-6) for name, value in expected)
    fresh = fit(
        with_train(tiny_config, **still), new_run(config, tmp_path / "fresh"), progress=False
    )
    value = fresh.model.state_dict()["rpn.blocks.0.0.weight"]
    assert not torch.allclose(found["rpn.blocks.0.0.weight"], value, atol=1e-2)


def test_weights_to_begin_with_must_fit(tiny_config: Config, tmp_path: Path) -> None:
    config = with_train(tiny_config, weights="voxelnet_car_sim")
    with pytest.raises(
        CheckpointError,
        match=r"voxelnet_car_sim\.pt: was trained with another configuration.*: grid",
    ):
        fit(config, new_run(config, tmp_path / "other"), progress=False)
    config = with_train(tiny_config, weights="nothing_like_it")
    with pytest.raises(CheckpointError, match="no such weights"):
        fit(config, new_run(config, tmp_path / "missing"), progress=False)
    assert not list(tmp_path.glob("[om]*"))  # so that the same command can be given again


def test_only_a_run_without_any_training_is_removed(tiny_config: Config, tmp_path: Path) -> None:
    run = new_run(tiny_config, tmp_path / "broken")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tiny_config, run, progress=False, callbacks=[StopAfter(1)])
    assert run.config_path.is_file()
    run = new_run(tiny_config, tmp_path / "with_notes")
    (run.folder / "notes.txt").write_text("the user's")
    with pytest.raises(CheckpointError, match="no such weights"):
        fit(with_train(tiny_config, weights="nothing_like_it"), run, progress=False)
    assert {path.name for path in run.folder.iterdir()} == {"config.yaml", "notes.txt"}


def test_resume_ends_where_an_uninterrupted_run_does(tiny_config: Config, tmp_path: Path) -> None:
    whole = new_run(tiny_config, tmp_path / "whole")
    fit(tiny_config, whole, progress=False)
    broken = new_run(tiny_config, tmp_path / "broken")
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(tiny_config, broken, progress=False, callbacks=[StopAfter(2)])
    interrupted = weights(broken)
    assert any(not torch.equal(value, interrupted[name]) for name, value in weights(whole).items())
    fit(tiny_config, find_run(tiny_config, broken.folder), resume=True, progress=False)
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(broken)[name]), name


def test_the_same_seed_gives_the_same_weights_with_workers(
    tiny_config: Config, tmp_path: Path
) -> None:
    with_worker = tiny_config.model_copy(
        update={"data": tiny_config.data.model_copy(update={"num_workers": 1})}
    )
    one, other = new_run(tiny_config, tmp_path / "one"), new_run(with_worker, tmp_path / "other")
    fit(tiny_config, one, progress=False)
    fit(with_worker, other, progress=False)
    for name, value in weights(one).items():
        assert torch.equal(value, weights(other)[name]), name


def test_a_second_run_never_overwrites_the_first(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folders = [new_run(tiny_config).folder for _ in range(3)]
    assert [folder.name for folder in folders] == ["tiny", "tiny_2", "tiny_3"]
    with pytest.raises(FileExistsError):
        new_run(tiny_config, folders[0])


def test_resume_finds_the_newest_run(
    tiny_config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CheckpointError, match="no run with a checkpoint"):
        find_run(tiny_config)
    first, second = new_run(tiny_config), new_run(tiny_config)
    for run in (second, first):
        run.last.parent.mkdir()
        run.last.touch()
    assert find_run(tiny_config).folder == first.folder


def test_resume_with_another_config_names_the_key(tiny_config: Config, tmp_path: Path) -> None:
    run = new_run(tiny_config, tmp_path / "run")
    run.last.parent.mkdir()
    run.last.touch()
    find_run(with_train(tiny_config, val_every=1), run.folder)
    for key, value, has in (("lr", 0.5, 0.01), ("epochs", 9, 4)):
        with pytest.raises(ConfigError, match=rf"train\.{key} is {has} there and {value} here"):
            find_run(with_train(tiny_config, **{key: value}), run.folder)


def test_a_run_whose_schedule_has_no_end_may_go_on_longer(
    tiny_config: Config, tmp_path: Path
) -> None:
    stepped = with_train(tiny_config, schedule=ScheduleConfig(name="step", milestones=(3,)))
    run = new_run(stepped, tmp_path / "run")
    run.last.parent.mkdir()
    run.last.touch()
    assert find_run(with_train(stepped, epochs=9), run.folder) == run


def test_checkpoint_of_another_config_names_the_key(tiny_config: Config, tmp_path: Path) -> None:
    config = with_train(tiny_config, epochs=1)
    run = new_run(config, tmp_path / "run")
    fit(config, run, progress=False)
    detector = load_detector(run.last, config)
    assert not detector.training
    other = config.model_copy(update={"vfe": config.vfe.model_copy(update={"channels": (16,)})})
    with pytest.raises(CheckpointError, match=r"last\.ckpt.*vfe\.channels\.0 is 8 there and 16"):
        load_detector(run.last, other)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged or no checkpoint"),
        (b"not a checkpoint at all", "no checkpoint"),
        (None, "No such file"),
    ],
)
def test_bad_checkpoint_files(content: bytes | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "some.ckpt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"some.ckpt: .*{message}"):
        load_detector(path)


def test_checkpoint_of_something_else(tmp_path: Path) -> None:
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.ckpt")
    with pytest.raises(CheckpointError, match="no checkpoint of this package"):
        load_detector(tmp_path / "other.ckpt")


class _Evil:
    def __reduce__(self):
        return (Path.touch, (Path("evil_was_here"),))


def test_a_checkpoint_that_would_run_code_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": _Evil()}, "evil.ckpt")
    with pytest.raises(CheckpointError, match="holds more than weights"):
        load_detector("evil.ckpt")
    assert not Path("evil_was_here").exists()


def test_a_loss_that_is_not_finite_names_the_frames(tiny_config: Config, tmp_path: Path) -> None:
    folder = Path(tiny_config.data.root) / "training" / "velodyne"
    huge = torch.full((50, 4), 3e38).numpy()
    huge[:, :3] = [10.0, 0.0, -1.0]
    for path in folder.glob("*.bin"):
        write_sweep(path, huge)
    run = new_run(tiny_config, tmp_path / "run")
    with pytest.raises(
        TrainingError, match=r"not finite.*epoch 0, step \d: frames 00000\d, 00000\d"
    ):
        fit(tiny_config, run, progress=False)


def test_limits_spread_over_the_splits(
    tiny_config: Config, tiny_classifier: ClassifierConfig
) -> None:
    limits = {"train_limit": 3, "val_limit": 1}
    data = SweepData(
        tiny_config.model_copy(update={"data": tiny_config.data.model_copy(update=limits)})
    )
    every = SweepData(tiny_config).train_frames.frame_ids
    assert data.train_frames.frame_ids == [every[0], every[1], every[2]]
    assert len(data.val_frames) == 1
    limits = {"train_limit": 20, "val_limit": 100}
    changed = tiny_classifier.objects.model_copy(update=limits)
    objects = ObjectData(tiny_classifier.model_copy(update={"objects": changed}))
    assert objects.train_objects is not None
    assert objects.train_objects.ids == [f"train/{row:04d}" for row in range(0, 60, 3)]
    assert len(objects.val_objects) == 20
    assert spread_rows(10, 4) == [0, 2, 5, 7] and spread_rows(3, None) == [0, 1, 2]


def test_missing_data_is_said_before_any_training(tiny_config: Config, tmp_path: Path) -> None:
    config = tiny_config.model_copy(
        update={"data": tiny_config.data.model_copy(update={"root": str(tmp_path / "none")})}
    )
    with pytest.raises(DataError, match="none/training/velodyne: no such folder"):
        fit(config, new_run(config, tmp_path / "run"), progress=False)
