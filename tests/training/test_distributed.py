"""Several processes that train one network: the result is that of one process."""

from __future__ import annotations

import csv
import warnings
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from voxelpool.config import AnyConfig, ClassifierConfig, Config
from voxelpool.errors import ConfigError, DataError
from voxelpool.nn import PackedBatchNorm, reach, synchronise_norms
from voxelpool.training import Run, distributed, fit, new_run
from voxelpool.training.data import EpochBatches, Position, ValidationBatches

Together = Callable[..., list[Any]]


def with_train(config: AnyConfig, **changes: object) -> AnyConfig:
    return config.model_copy(update={"train": config.train.model_copy(update=changes)})


def trained(config: AnyConfig, folder: Path) -> dict[str, torch.Tensor]:
    run = distributed.on_first(lambda: new_run(config, folder))
    fit(config, run, progress=False)
    return torch.load(run.last, weights_only=True)["state_dict"]


def rows(run: Run) -> list[dict[str, float]]:
    with open(run.folder / "metrics.csv") as file:
        table = list(csv.DictReader(file))
    return [{key: float(value) for key, value in row.items() if value} for row in table]


@pytest.mark.parametrize("what", ["balanced", "focal and clipped", "classifier"])
def test_two_processes_train_as_one(
    what: str,
    tiny_config: Config,
    tiny_classifier: ClassifierConfig,
    together: Together,
    tmp_path: Path,
) -> None:
    """Weights after some steps of the same global batch agree, and so do loss and AP."""
    config: AnyConfig = with_train(tiny_config, epochs=2, val_every=1, sync_batchnorm=True)
    if what == "classifier":
        config = with_train(tiny_classifier, epochs=1, sync_batchnorm=True, optimizer="sgd")
    elif what != "balanced":
        loss = config.loss.model_copy(update={"classification": "focal"})
        config = with_train(config.model_copy(update={"loss": loss}), gradient_clip=0.5, epochs=1)
    alone, both = tmp_path / "alone", tmp_path / "both"
    expected = trained(config, alone)
    for weights in together(lambda: trained(config, both)):
        for name, value in expected.items():
            assert torch.allclose(weights[name].double(), value.double(), atol=1e-4), name
    pairs = list(zip(rows(Run(alone)), rows(Run(both)), strict=True))
    assert pairs
    for one, two in pairs:
        assert one == pytest.approx(two, rel=1e-3, abs=1e-3)
    assert sorted(path.name for path in both.rglob("*.ckpt")) == sorted(
        path.name for path in alone.rglob("*.ckpt")
    )
    assert len(list(both.glob("events*"))) == 1


def test_without_synchronised_norms_statistics_are_the_mean(
    tiny_config: Config, together: Together, tmp_path: Path
) -> None:
    config = with_train(tiny_config, epochs=1)

    def run() -> dict[str, torch.Tensor]:
        folder = distributed.on_first(lambda: new_run(config, tmp_path / "run"))
        module = fit(config, folder, progress=False)
        return module.model.state_dict()

    first, second = together(run)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def test_synchronised_norms_are_those_of_the_whole_batch(together: Together) -> None:
    """Against torch's own on all rows, with processes that have some, one or none of them."""
    cases = [
        (norm, shape, cut)
        for norm, shape in (
            (nn.BatchNorm1d, (7, 3)),
            (nn.BatchNorm2d, (5, 3, 4, 2)),
            (nn.BatchNorm3d, (3, 3, 2, 2, 2)),
            (PackedBatchNorm, (7, 3)),
        )
        for cut in (0, 1, 2)
    ]

    def differences() -> list[float]:
        worst = []
        for kind, shape, cut in cases:
            torch.manual_seed(0)
            x, grad = (torch.randn(shape, dtype=torch.float64) * 3 + 5 for _ in range(2))
            whole, synced = kind(3).double(), kind(3).double()
            nn.init.normal_(whole.weight)
            synced.load_state_dict(whole.state_dict())
            synchronise_norms(synced)
            own = slice(0, cut) if distributed.rank() == 0 else slice(cut, None)
            worst += compare(whole, synced, x, grad, own, lambda norm, rows, _: norm(rows))
        return worst

    def compare(
        whole: nn.Module, synced: nn.Module, x: Any, grad: Any, own: slice, run: Any
    ) -> list[float]:
        part, x = x[own].clone().requires_grad_(), x.requires_grad_()
        out, out_part = run(whole, x, slice(None)), run(synced, part, own)
        out.backward(grad)
        out_part.backward(grad[own])
        pairs = [
            (out[own], out_part),
            (x.grad[own], part.grad),
            (whole.weight.grad, distributed.total(synced.weight.grad)),
            (whole.bias.grad, distributed.total(synced.bias.grad)),
            (whole.running_mean, synced.running_mean),
            (whole.running_var, synced.running_var),
        ]
        return [float((a - b).abs().sum()) for a, b in pairs]

    def on_rows() -> list[float]:
        torch.manual_seed(0)
        x, grad = (torch.randn(6, 3, dtype=torch.float64) for _ in range(2))
        counts = torch.tensor([1.0, 5, 2, 3, 1, 7], dtype=torch.float64)
        whole, synced = nn.BatchNorm2d(3).double(), nn.BatchNorm2d(3).double()
        synchronise_norms(synced)
        own = slice(0, 2) if distributed.rank() == 0 else slice(2, None)
        return compare(
            whole,
            synced,
            x,
            grad,
            own,
            lambda norm, r, part: reach.norm_relu(r, counts[part], norm),
        )

    def one_row_in_all() -> list[float]:
        norm = PackedBatchNorm(3)
        synchronise_norms(norm)
        before = {name: value.clone() for name, value in norm.state_dict().items()}
        rows = torch.full((distributed.rank(), 3), 2.0, requires_grad=True)
        norm(rows).sum().backward()
        changed = sum(float((norm.state_dict()[k] - v).abs().sum()) for k, v in before.items())
        scale = 1 / np.sqrt(1 + norm.eps)
        return [changed, float((norm(rows) - 2 * scale).abs().sum())]

    def run() -> list[float]:
        return differences() + on_rows() + one_row_in_all()

    for worst in together(run):
        assert max(worst) < 1e-5


@pytest.mark.parametrize(("length", "size"), [(12, 4), (11, 4), (9, 4), (5, 2), (3, 7), (2, 2)])
@pytest.mark.parametrize("processes", [1, 2])
def test_every_row_comes_once(
    length: int, size: int, processes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(distributed, "size", lambda: processes)
    parts = []
    for rank in range(processes):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        batches = EpochBatches(length, size, seed=3)
        batches.set_epoch(2)
        parts.append(list(batches))
        assert len(batches) == len(parts[-1]) and all(parts[-1])
        again = EpochBatches(length, size, seed=3, start=Position(epoch=2, batches=1))
        again.set_epoch(2)
        assert list(again) == parts[-1][1:]
        again.set_epoch(3)
        assert len(list(again)) == len(batches) and next(iter(again))[0][0] == 3
    whole = [sorted(chain(*batch)) for batch in zip(*parts, strict=True)]
    assert sorted(chain(*whole)) == [(2, row) for row in range(length)]
    order = np.random.default_rng([3, 2]).permutation(length).tolist()
    expected = [sorted((2, row) for row in order[i : i + size]) for i in range(0, length, size)]
    if len(expected[-1]) < processes and len(expected) > 1:
        expected[-2:] = [sorted(expected[-2] + expected[-1])]
    assert whole == expected


def test_validation_batches_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    alone = list(ValidationBatches(11, 2))
    monkeypatch.setattr(distributed, "size", lambda: 3)
    shares = []
    for rank in range(3):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        shares.append(list(ValidationBatches(11, 2)))
    assert [shares[i % 3][i // 3] for i in range(6)] == alone
    assert list(chain(*alone)) == list(range(11))


def test_too_few_rows_for_the_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "size", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 0)
    with pytest.raises(ConfigError, match=r"train\.batch_size: 3 is too few for 4 processes"):
        EpochBatches(10, 3, seed=0)
    with pytest.raises(DataError, match="3 training samples are too few for 4 processes"):
        EpochBatches(3, 8, seed=0)
    with pytest.raises(ConfigError, match="needs 2 of a batch"):
        EpochBatches(10, 7, seed=0, least=2)


def test_broken_frames_of_all_processes_are_counted(
    tiny_config: Config, tiny_kitti: Path, together: Together, tmp_path: Path
) -> None:
    for frame in ("000001", "000005"):
        (tiny_kitti / "training" / "velodyne" / f"{frame}.bin").write_bytes(b"\0" * 7)
    data = tiny_config.data.model_copy(update={"on_broken_frame": "skip"})
    config = with_train(tiny_config.model_copy(update={"data": data}), epochs=1, val_every=1)

    def run() -> list[str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            trained(config, tmp_path / "run")
        return [str(w.message) for w in caught if "skipped" in str(w.message)]

    first, second = together(run)
    everywhere = first + second
    assert "epoch 0: 2 broken frames skipped" in first
    for frame in ("000001", "000005"):
        assert sum(f"{frame}.bin: 7 bytes" in text for text in everywhere) == 1
