"""How fast training goes: the loader and the model by themselves, and the memory that both take.

Training never waits for its data where the loader gives more frames a second than the model takes.

Example: python benchmarks/training.py configs/voxelnet_car.yaml data.root=data/kitti --seconds 60
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import torch
from _measure import environment, parser, save, setting_of
from rich.console import Console
from rich.table import Table

from voxelpool.config import ClassifierConfig, load_config
from voxelpool.machine import peak_memory
from voxelpool.training import ClassifierModule, DetectorModule, ObjectData, SweepData
from voxelpool.training.classify import network_inputs

_HALF = {"32": None, "bf16": torch.bfloat16, "16": torch.float16}


@dataclass(frozen=True)
class Speed:
    """What was measured.

    Attributes:
        what: the loader with so many workers, or the model.
        frames_per_second: the median over batches, of batches of ``batch_size``.
        batches: how many were timed.
        peak_mb: what the process grows by (CPU), or most that is allocated (CUDA); None of loaders.
    """

    what: str
    frames_per_second: float
    batch_size: int
    batches: int
    peak_mb: float | None = None


def data_of(config: Any) -> Any:
    """The data module of a configuration."""
    return ObjectData(config) if isinstance(config, ClassifierConfig) else SweepData(config)


def loader_speed(config: Any, workers: int, batches: int, seconds: float) -> Speed:
    """Frames that come ready for the model, augmented and collated."""
    block = "objects" if isinstance(config, ClassifierConfig) else "data"
    changed = getattr(config, block).model_copy(update={"num_workers": workers})
    config = config.model_copy(update={block: changed})
    loader = data_of(config).train_dataloader()
    epochs: Iterator[Any] = chain.from_iterable(repeat(loader))
    next(epochs)  # starts the workers
    frames, begun = 0, time.perf_counter()
    for done in range(1, batches + 1):
        frames += next(epochs).batch_size
        taken = time.perf_counter() - begun
        if taken > seconds and done >= 3:
            break
    size = config.train.batch_size
    return Speed(f"loader, {workers} workers", frames / taken, size, done)


def training_step(config: Any, device: str) -> tuple[Callable[[], None], int]:
    """A whole step on a batch that lies ready: forward, loss, backward and the optimizer."""
    torch.manual_seed(0)
    data = data_of(config)
    batch = next(iter(data.train_dataloader())).to(device)
    module: Any
    if isinstance(config, ClassifierConfig):
        module = ClassifierModule(config, data.class_weights())
    else:
        module = DetectorModule(config)
    module = module.to(device).train()
    network = module.model
    kind = torch.optim.SGD if config.train.optimizer == "sgd" else torch.optim.AdamW
    optimizer = kind(network.parameters(), lr=1e-6)
    half = _HALF[config.train.precision]

    def loss() -> torch.Tensor:
        if isinstance(config, ClassifierConfig):
            logits = network(network_inputs(batch, config, batch.moves)).float()
            return module._loss(logits, batch.labels)
        voxels = network.voxelize(batch.points, batch.batch, batch.batch_size)
        predictions = network.predict(batch.points, voxels)
        counted = network.counted_anchors(voxels)
        return network.loss(predictions, batch.boxes, batch.classes, counted)["loss"]

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast(device, half, enabled=half is not None):
            value = loss()
        value.backward()
        optimizer.step()
        if device == "cuda":
            torch.cuda.synchronize()

    return step, batch.batch_size


def prepared(path: str, overrides: list[str], device: str, threads: int) -> Callable[[], None]:
    """The step, in a process of its own."""
    torch.set_num_threads(threads)
    return training_step(load_config(path, overrides), device)[0]


def model_speed(config: Any, device: str, batches: int, seconds: float) -> Speed:
    """Frames that are learnt from, data ready."""
    step, size = training_step(config, device)
    step()
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    times: list[float] = []
    while len(times) < 3 or (len(times) < batches and sum(times) < seconds):
        begun = time.perf_counter()
        step()
        times.append(time.perf_counter() - begun)
    peak = torch.cuda.max_memory_allocated() / 2**20 if device == "cuda" else None
    what = f"model, {config.train.precision}, {device}"
    return Speed(what, size / statistics.median(times), size, len(times), peak)


def main() -> None:
    """The command line."""
    arguments = parser(__doc__)
    arguments.add_argument("config", help="of a detector or a classifier")
    arguments.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="replace keys of it")
    arguments.add_argument("--workers", nargs="+", type=int, default=[0, os.cpu_count() or 1])
    given = arguments.parse_intermixed_args()
    setting = setting_of(given)
    overrides = [*given.overrides, *(["train.batch_size=2"] if setting.quick else [])]
    config = load_config(given.config, overrides)
    batches = 3 if setting.quick else setting.repeats
    in_memory = isinstance(config, ClassifierConfig)
    speeds = [
        loader_speed(config, workers, batches, setting.seconds)
        for workers in ([0] if in_memory else dict.fromkeys(given.workers))
    ]
    gc.collect()
    speed = model_speed(config, setting.device, batches, setting.seconds)
    if setting.device == "cpu":
        peak = peak_memory(prepared, given.config, overrides, setting.device, setting.threads)
        speed = Speed(**asdict(speed) | {"peak_mb": peak})
    table = Table("what", "frames/s", "batch", "batches", "peak MB", title=config.name)
    for row in (*speeds, speed):
        memory = "" if row.peak_mb is None else f"{row.peak_mb:.0f}"
        counts = (str(row.batch_size), str(row.batches))
        table.add_row(row.what, f"{row.frames_per_second:.2f}", *counts, memory)
    console = Console()
    console.print(table)
    fastest = max(row.frames_per_second for row in speeds)
    verdict = "keeps up with" if fastest >= speed.frames_per_second else "starves"
    console.print(
        f"the loader {verdict} the model: {fastest:.2f} and {speed.frames_per_second:.2f}"
    )
    if given.json is not None:
        report = {
            "environment": environment(setting),
            "config": str(Path(given.config).name),
            "overrides": overrides,
            "results": [asdict(row) for row in (*speeds, speed)],
        }
        save(report, given.json)


if __name__ == "__main__":
    main()
