"""Comparisons of tiny networks, cell by cell."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import pytest
import torch

from voxelpool.config import (
    ClassifierConfig,
    Config,
    ExperimentConfig,
    load_config,
    load_experiment,
    save_config,
    save_experiment,
)
from voxelpool.datasets.perturb import ON_GRIDS, ON_POINTS, ON_SWEEPS
from voxelpool.errors import ConfigError, DataError
from voxelpool.machine import peak_memory
from voxelpool.models import build_detector, load_classifier
from voxelpool.training import Run, cells_of, comparison, measure, run_cells, write_summary
from voxelpool.training.classify import class_probabilities
from voxelpool.training.comparison import (
    CELL_FILE,
    Cell,
    Roots,
    finished,
    keep_experiments,
    run_cell,
    spread,
    summarize,
    table_of,
)
from voxelpool.training.measure import ClassifierMeter, training_step


@pytest.fixture(autouse=True)
def no_fresh_process(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "peak_memory", lambda *_: math.nan)


@pytest.fixture
def heads(tiny_classifier: ClassifierConfig, tmp_path: Path) -> ExperimentConfig:
    (tmp_path / "configs").mkdir()
    save_config(tiny_classifier, tmp_path / "configs" / "tiny.yaml")
    return experiment_of(tmp_path / "configs" / "tiny.yaml", "heads")


def experiment_of(config: Path, name: str, **changes: Any) -> ExperimentConfig:
    values = {
        "name": name,
        "config": str(config),
        "variants": {"average": ["classifier.head=average"], "max": ["classifier.head=max"]},
        "baseline": "average",
        "seeds": [0, 1],
    }
    return ExperimentConfig.model_validate(values | changes)


class Watch:
    """Counts the epochs that are trained, and can stop at one as Ctrl-C would."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.epochs: list[int] = []
        self.stop_at: int | None = None
        watch = self

        class Spy(lightning.Callback):
            def __init__(self, tell: object) -> None:
                pass

            def on_train_epoch_start(self, trainer: lightning.Trainer, module: object) -> None:
                if trainer.current_epoch == watch.stop_at:
                    raise KeyboardInterrupt
                watch.epochs.append(trainer.current_epoch)

        monkeypatch.setattr(comparison, "_Epochs", Spy)


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


def weights(cell: Cell) -> dict[str, torch.Tensor]:
    return torch.load(Run(cell.folder).last, weights_only=True)["state_dict"]


def test_a_classifier_is_compared_end_to_end(heads: ExperimentConfig, tmp_path: Path) -> None:
    out = tmp_path / "out"
    cells = cells_of(heads, out)
    assert [cell.name for cell in cells] == [
        "heads/average-seed0", "heads/max-seed0", "heads/average-seed1", "heads/max-seed1",
    ]  # fmt: skip
    states = []
    assert run_cells(cells, report=lambda cell, *state: states.append((cell.name, *state))) == {}
    assert [state[0] for state in states if state[1] == "done"] == [cell.name for cell in cells]
    assert ("heads/max-seed0", "epoch", 1, 2) in states
    figures = json.loads((cells[1].folder / CELL_FILE).read_text())
    assert set(figures["robustness"]) == {change.name for change in ON_GRIDS}
    assert figures["forward_ms"] > 0 and figures["forward_batch"] == 20
    assert figures["training_step_mb"] is None, "it could not be told"
    config = cells[1].config
    assert isinstance(config, ClassifierConfig)
    network = load_classifier(Run(cells[1].folder).last, config)
    assert figures["parameters"] == sum(p.numel() for p in network.parameters())
    objects = ClassifierMeter(config, Run(cells[1].folder).last).val_objects
    parts = class_probabilities(network, objects, config)
    right = np.mean([right for p, labels in parts for right in (p.argmax(1) == labels).tolist()])
    assert figures["test"]["accuracy"] == pytest.approx(100 * right)
    keep_experiments([heads], out)
    summary = write_summary(out)
    row = summary["experiments"]["heads"]["variants"]["max"]
    each = [json.loads((cell.folder / CELL_FILE).read_text()) for cell in (cells[1], cells[3])]
    accuracies = [one["test"]["accuracy"] for one in each]
    assert row["seeds"] == [0, 1]
    assert row["test"]["accuracy"]["mean"] == pytest.approx(np.mean(accuracies))
    assert row["test"]["accuracy"]["std"] == pytest.approx(np.std(accuracies, ddof=1))
    assert json.loads((out / "summary.json").read_text()) == summary
    assert (out / "heads.png").is_file()
    assert "| average | max |" in (out / "summary.md").read_text()
    assert not list(out.rglob("*.tmp"))


def test_a_finished_cell_is_not_run_again(
    heads: ExperimentConfig, tmp_path: Path, watch: Watch
) -> None:
    cell, *_ = cells_of(heads, tmp_path / "out")
    run_cell(cell)
    before = (cell.folder / CELL_FILE).read_bytes()
    assert watch.epochs == [0, 1]
    assert run_cells([cell]) == {} and watch.epochs == [0, 1]
    assert (cell.folder / CELL_FILE).read_bytes() == before
    (cell.folder / CELL_FILE).unlink()
    run_cell(cell)
    assert watch.epochs == [0, 1], "trained already, only measured"
    assert finished(cell) is not None


def test_a_killed_cell_goes_on_and_ends_as_if_it_had_not_been(
    heads: ExperimentConfig, tmp_path: Path, watch: Watch
) -> None:
    (whole, *_), (broken, other, *_) = (cells_of(heads, tmp_path / name) for name in ("a", "b"))
    run_cell(whole)
    for stop, seen in ((0, []), (1, [0])):
        watch.stop_at, watch.epochs = stop, []
        with pytest.raises(KeyboardInterrupt):
            run_cells([broken, other])
        assert watch.epochs == seen, "nothing else was begun"
        assert finished(broken) is None and not other.folder.exists()
    watch.stop_at, watch.epochs = None, []
    run_cell(broken)
    assert watch.epochs == [1]
    for name, value in weights(whole).items():
        assert torch.equal(value, weights(broken)[name]), name
    one, two = finished(whole), finished(broken)
    assert one is not None and two is not None
    assert one["test"] == two["test"] and one["robustness"] == two["robustness"]


def test_a_changed_configuration_is_refused_before_anything_is_trained(
    heads: ExperimentConfig, tmp_path: Path, watch: Watch
) -> None:
    out = tmp_path / "out"
    *_, last = cells_of(heads, out)
    run_cell(last)
    watch.epochs = []
    longer = heads.model_copy(update={"overrides": ("train.epochs=3",)})
    with pytest.raises(ConfigError, match=r"max-seed1: .*train\.epochs is 2 there and 3 here"):
        run_cells(cells_of(longer, out))
    assert watch.epochs == []
    elsewhere = cells_of(heads, out, roots=Roots(modelnet=tmp_path / "moved", workers=0))
    assert finished(elsewhere[-1]) is not None, "where the data lies does not count"


def test_a_cell_that_fails_does_not_stop_the_others(
    heads: ExperimentConfig, tmp_path: Path, watch: Watch
) -> None:
    variants = {"gone": ("objects.root=nowhere",), "max": ("classifier.head=max",)}
    broken = heads.model_copy(update={"variants": variants, "baseline": "max", "seeds": (0,)})
    cells = cells_of(broken, tmp_path / "out")
    ends = []
    failures = run_cells(cells, report=lambda cell, doing, *_: ends.append((cell.variant, doing)))
    assert list(failures) == ["heads/gone-seed0"] and "nowhere" in failures["heads/gone-seed0"]
    assert ("gone", "failed") in ends and ("max", "done") in ends
    assert finished(cells[1]) is not None


def test_what_two_experiments_share_is_trained_once(
    heads: ExperimentConfig, tmp_path: Path, watch: Watch
) -> None:
    out = tmp_path / "out"
    same = {"plain": (), "narrow": ("classifier.width=2",)}
    other = heads.model_copy(update={"name": "width", "variants": same, "baseline": "plain"})
    third = other.model_copy(update={"name": "again"})
    plain = heads.model_copy(update={"variants": {"average": ()}, "seeds": (0,)})
    first = [*cells_of(plain, out), *cells_of(other, out, seeds=[0])]
    assert run_cells(first) == {}
    assert len(watch.epochs) == 4, "average is plain"
    assert run_cells(cells_of(third, out, seeds=[0])) == {}
    assert len(watch.epochs) == 4
    copy = finished(cells_of(third, out, seeds=[0])[0])
    original = finished(first[0])
    assert copy is not None and original is not None
    assert copy["same_as"] == "heads/average-seed0"
    assert (copy["experiment"], copy["variant"]) == ("again", "plain")
    assert copy["test"] == original["test"] and "same_as" not in original


def test_a_detector_is_compared_end_to_end(tiny_config: Config, tmp_path: Path) -> None:
    save_config(tiny_config, tmp_path / "detector.yaml")
    experiment = experiment_of(
        tmp_path / "detector.yaml",
        "attention",
        overrides=["train.epochs=1"],
        variants={"none": ["rpn.attention=none"], "se": ["rpn.attention=se"]},
        baseline="none",
        seeds=[3],
    )
    cells = cells_of(experiment, tmp_path / "out")
    assert run_cells(cells) == {}
    keep_experiments([experiment], tmp_path / "out")
    found = write_summary(tmp_path / "out")["experiments"]["attention"]
    assert found["main"] == "3d"
    row = found["variants"]["se"]
    assert set(row["robustness"]) == {change.name for change in ON_SWEEPS}
    assert set(row["test"]) == set(row["train"]) == {"3d", "bev"}
    assert row["test"]["3d"]["std"] is None and row["seeds"] == [3]
    more = row["parameters"] - found["variants"]["none"]["parameters"]
    assert more > 0


def test_points_are_perturbed_too(tiny_classifier: ClassifierConfig, tmp_path: Path) -> None:
    save_config(tiny_classifier, tmp_path / "points.yaml")
    experiment = experiment_of(
        tmp_path / "points.yaml",
        "points",
        overrides=["model=pointnet2", "classifier={points: 32}", "train.epochs=1"],
        variants={"plain": []},
        baseline="plain",
        seeds=[0],
    )
    figures = run_cell(*cells_of(experiment, tmp_path / "out"))
    assert set(figures["robustness"]) == {change.name for change in ON_POINTS}


@pytest.mark.slow
def test_several_at_once_give_the_same(heads: ExperimentConfig, tmp_path: Path) -> None:
    alone, together = (cells_of(heads, tmp_path / name, seeds=[0]) for name in ("a", "b"))
    assert run_cells(alone) == {}
    states = []
    gone = heads.model_copy(update={"name": "gone", "overrides": ("objects.root=nowhere",)})
    failures = run_cells(
        [*together, *cells_of(gone, tmp_path / "b", seeds=[0])],
        jobs=2,
        report=lambda cell, *state: states.append((cell.name, *state)),
    )
    assert sorted(failures) == ["gone/average-seed0", "gone/max-seed0"]
    assert ("heads/max-seed0", "epoch", 1, 2) in states
    for one, other in zip(alone, together, strict=True):
        expected, found = finished(one), finished(other)
        assert expected is not None and found is not None
        assert found["test"] == expected["test"] and found["jobs"] == 2
        memory = found["training_step_mb"]
        assert memory is None or memory > 0, "measured there, in a fresh process"


@pytest.mark.slow
def test_memory_is_what_a_step_takes_at_most(tiny_classifier: ClassifierConfig) -> None:
    batch = {
        "inputs": np.zeros((256, 1, 32, 32, 32), np.float32),
        "labels": np.zeros(256, np.int64),
    }
    found = peak_memory(training_step, tiny_classifier, batch)
    # The first convolution's 4 channels, as they are, normalized and rectified in place.
    maps = 256 * 32**3 * 4 * 4 / 1e6
    assert math.isnan(found) or 1.5 * maps < found < 8 * maps


def test_a_training_step_leaves_gradients(
    tiny_config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tiny_config
    points = np.random.default_rng(0).uniform(0, 12, (200, 4)).astype(np.float32)
    batch = {
        "points": points,
        "batch": np.repeat([0, 1], 100),
        "boxes": np.array([[8, 0, -1, 4, 1.6, 1.5, 0]], np.float32),
        "classes": np.zeros(1, np.int64),
        "counts": np.array([1, 0]),
    }
    built = []
    monkeypatch.setattr(
        measure, "build_detector", lambda c: built.append(build_detector(c)) or built[0]
    )
    training_step(config, batch)()
    gradients = [parameter.grad for parameter in built[0].parameters()]
    assert all(gradient is not None for gradient in gradients)
    assert any(gradient.abs().max() > 0 for gradient in gradients)


def figures_of(variant: str, seed: int, test: float, train: float, **more: Any) -> dict[str, Any]:
    return {
        "variant": variant,
        "seed": seed,
        "main": "accuracy",
        "test": {"accuracy": test, "class_mean": test - 1},
        "train": {"accuracy": train, "class_mean": train},
        "robustness": {"drop 0.25": {"accuracy": test / 2, "class_mean": 0.0}},
        "parameters": 1234567,
        "forward_ms": 2.0 + seed,
        "training_step_mb": 10.0,
        "training_seconds": None,
        "forward_batch": 32,
        "training_batch": 16,
        "threads": 1,
        "jobs": 2,
        "machine": {},
        **more,
    }


def test_summaries_against_numpy(heads: ExperimentConfig) -> None:
    rng = np.random.default_rng(0)
    test, train = rng.uniform(50, 90, (2, 4)), rng.uniform(90, 100, (2, 4))
    cells = [
        figures_of(variant, seed, float(test[row, seed]), float(train[row, seed]))
        for row, variant in enumerate(("average", "max"))
        for seed in (2, 0, 3, 1)
    ][:-1]  # the last seed of max is not there
    found = summarize(heads, cells)
    average, most = found["variants"]["average"], found["variants"]["max"]
    assert most["seeds"] == [0, 2, 3] and average["seeds"] == [0, 1, 2, 3]
    rows = [0, 2, 3]

    def check(value: dict[str, Any], wanted: np.ndarray) -> None:
        assert value["mean"] == pytest.approx(wanted.mean())
        assert value["std"] == pytest.approx(wanted.std(ddof=1))
        assert value["values"] == pytest.approx(wanted.tolist())

    check(average["test"]["accuracy"], test[0])
    check(most["test"]["class_mean"], test[1][rows] - 1)
    check(most["gap"], (train[1] - test[1])[rows])
    check(most["against_baseline"], (test[1] - test[0])[rows])
    check(most["robustness"]["drop 0.25"]["accuracy"], test[1][rows] / 2)
    check(average["forward_ms"], np.array([2.0, 3.0, 4.0, 5.0]))
    assert average["training_seconds"] is None
    table = table_of(found)
    assert table.headings == ["", "average", "max"]
    lines = {row[0]: row[1:] for row in table.rows}
    mean, std = test[1][rows].mean(), test[1][rows].std(ddof=1)
    assert lines["accuracy, %"][1] == f"{mean:.2f} ± {std:.2f}"
    assert lines["against average"][0] == ""
    assert lines["against average"][1].startswith(f"{(test[1] - test[0])[rows].mean():+.2f}")
    assert lines["parameters"] == ["1,234,567"] * 2
    assert lines["25% dropped"][0].startswith(f"{test[0].mean() / 2:.2f}")
    text = table.markdown().splitlines()
    assert text[3] == "| --- | ---: | ---: |" and all(line.count("|") == 4 for line in text[2:-1])


def test_spread_of_one_and_of_nothing() -> None:
    assert spread([3.0]) == {"mean": 3.0, "std": None, "values": [3.0]}
    assert spread([]) is None and spread([1.0, None]) is None


def test_experiments_and_their_errors(heads: ExperimentConfig, tmp_path: Path) -> None:
    path = tmp_path / "configs" / "heads.yaml"
    save_experiment(heads, path)
    assert load_experiment(path) == heads
    text = path.read_text()
    relative = text.replace(str(Path(heads.config).resolve()), "tiny.yaml")
    path.write_text(relative)
    assert load_experiment(path) == heads, "relative to the experiment"

    def fails(old: str, new: str) -> str:
        assert old in text
        path.write_text(text.replace(old, new))
        with pytest.raises(ConfigError) as caught:
            cells_of(load_experiment(path), tmp_path / "out")
        return str(caught.value)

    assert "basline: unknown key, did you mean baseline?" in fails("baseline", "basline")
    assert "baseline none is none of the variants" in fails("baseline: average", "baseline: none")
    assert "seeds name one twice" in fails("[0, 1]", "[1, 1]")
    assert "classifier.heat: unknown key, did you mean head" in fails(
        "classifier.head=max", "classifier.heat=max"
    )
    with pytest.raises(ConfigError, match=r"none\.yaml: No such file"):
        load_experiment(tmp_path / "none.yaml")
    with pytest.raises(DataError, match="no measured cell"):
        write_summary(tmp_path)


def test_the_experiments_that_come_along(tmp_path: Path) -> None:
    folder = Path(__file__).parents[2] / "configs" / "compare"
    every = {path.stem: load_experiment(path) for path in sorted(folder.glob("*.yaml"))}
    assert list(every) == ["detector", "recipe", "voxnet"]
    for name, experiment in every.items():
        assert experiment.name == name
        for short in (False, True):
            cells = cells_of(experiment, tmp_path, short=short)
            assert len({str(cell.config) for cell in cells}) == len(cells), "no two are the same"
        assert len(experiment.seeds) >= 3


def test_the_recipe_of_the_paper_is_that_of_its_configuration(tmp_path: Path) -> None:
    """And the other recipe is what the detector's poolings are compared with."""
    folder = Path(__file__).parents[2] / "configs"
    recipes = {
        cell.variant: cell.config
        for cell in cells_of(load_experiment(folder / "compare" / "recipe.yaml"), tmp_path)
    }
    paper, alike = load_config(folder / "voxelnet_car.yaml"), recipes["paper"]
    assert isinstance(paper, Config) and isinstance(alike, Config)
    assert alike.data.augment == paper.data.augment
    assert (alike.loss, alike.head) == (paper.loss, paper.head)
    for key in ("optimizer", "lr", "momentum", "weight_decay", "gradient_clip", "precision"):
        assert getattr(alike.train, key) == getattr(paper.train, key)
    plain = cells_of(load_experiment(folder / "compare" / "detector.yaml"), tmp_path)
    assert recipes["focal"] in [cell.config for cell in plain if cell.variant == "plain"]
