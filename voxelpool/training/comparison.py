"""Comparisons: variants of one network, trained alike with several seeds, measured and summed up.

A cell is one variant with one seed. Its folder OUT/EXPERIMENT/VARIANT-seedN holds the run and, once
measured, cell.json, which is written whole or not at all; a cell that has it is never run again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import signal
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import connection, get_context
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import Callback

from voxelpool.config import (
    AnyConfig,
    ClassifierConfig,
    ExperimentConfig,
    dump_config,
    load_config,
    load_experiment,
    save_experiment,
)
from voxelpool.datasets.perturb import ON_GRIDS, ON_POINTS, Perturbation
from voxelpool.errors import ConfigError, DataError, VoxelpoolError
from voxelpool.files import atomic_write
from voxelpool.machine import peak_memory
from voxelpool.models import load_checkpoint
from voxelpool.training.measure import machine, meter_of, milliseconds, training_step
from voxelpool.training.run import Run, config_difference, fit, new_run
from voxelpool.visualization.bars import Bar, Curve, Panel, draw_bars

CELL_FILE = "cell.json"
EXPERIMENT_FILE = "experiment.yaml"
SUMMARY = "summary.json"
MAIN_SCORES = ("accuracy", "class_mean", "3d", "bev")
SCORE_NAMES = {
    "accuracy": "accuracy, %",
    "class_mean": "class mean, %",
    "3d": "3D AP, %",
    "bev": "BEV AP, %",
}

_VERSION = 1  # of cell.json; cells of another are measured anew
_WHERE_DATA_LIES = {"data": ("root", "num_workers"), "objects": ("root", "cache", "num_workers")}


@dataclass(frozen=True)
class Cell:
    """One variant of an experiment with one seed.

    Attributes:
        experiment: its name.
        variant: its name.
        seed: of the training.
        config: what is trained.
        folder: its run.
    """

    experiment: str
    variant: str
    seed: int
    config: AnyConfig
    folder: Path

    @property
    def name(self) -> str:
        """EXPERIMENT/VARIANT-seedN."""
        return f"{self.experiment}/{self.variant}-seed{self.seed}"


Report = Callable[[Cell, str, int, int], None]
"""Called with a cell, what it does, how much of that is done and how much there is; at its end with
"done" or "failed"."""


@dataclass(frozen=True)
class Roots:
    """Where data lies, in place of what the configurations say; None leaves it to them.

    Attributes:
        modelnet: ``objects.root`` of classifiers on ModelNet.
        sweeps: ``data.root`` of detectors and ``objects.root`` of classifiers on crops.
        workers: ``num_workers`` of all.
    """

    modelnet: Path | None = None
    sweeps: Path | None = None
    workers: int | None = None

    def put_into(self, config: AnyConfig) -> AnyConfig:
        """The configuration with these roots."""
        classifier = isinstance(config, ClassifierConfig)
        block = "objects" if classifier else "data"
        of_modelnet = classifier and config.objects.source != "crops"
        root = self.modelnet if of_modelnet else self.sweeps
        changes: dict[str, Any] = {} if root is None else {"root": str(root)}
        if self.workers is not None:
            changes["num_workers"] = self.workers
        return config.model_copy(update={block: getattr(config, block).model_copy(update=changes)})


def cells_of(
    experiment: ExperimentConfig,
    out: Path,
    *,
    short: bool = False,
    seeds: Sequence[int] | None = None,
    roots: Roots = Roots(),
) -> list[Cell]:
    """The cells of an experiment, seed by seed, so that an early end leaves whole rounds.

    Args:
        experiment: what is compared.
        out: folder of all comparisons.
        short: its short mode.
        seeds: in place of its own.
        roots: where data lies.

    Raises:
        ConfigError: its configuration or an override does not fit.
    """
    common = [*experiment.overrides, *(experiment.short.overrides if short else ())]
    if seeds is None:
        seeds = experiment.short.seeds if short else experiment.seeds
    return [
        Cell(
            experiment.name,
            variant,
            seed,
            roots.put_into(load_config(experiment.config, [*common, *changes, f"seed={seed}"])),
            out / experiment.name / f"{variant}-seed{seed}",
        )
        for seed in seeds
        for variant, changes in experiment.variants.items()
    ]


def finished(cell: Cell) -> dict[str, Any] | None:
    """What was measured of a cell; None if it is not done.

    Raises:
        ConfigError: the cell was begun with another configuration; names the key.
    """
    run = Run(cell.folder)
    if not run.config_path.is_file():
        return None
    difference = config_difference(cell.config, load_config(run.config_path), _WHERE_DATA_LIES)
    if difference:
        raise ConfigError(
            f"{cell.folder}: was begun with another configuration: {difference}; move it away or "
            "take another folder"
        )
    return read_cell(cell.folder / CELL_FILE)


def read_cell(path: Path) -> dict[str, Any] | None:
    """The figures in a cell.json; None if there are none, or of an earlier version.

    Raises:
        DataError: it is damaged.
    """
    if not path.is_file():
        return None
    try:
        figures = json.loads(path.read_text(encoding="utf-8"))
        current = figures["version"] == _VERSION
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: is damaged; delete it to have it measured anew") from error
    return figures if current else None


def run_cell(cell: Cell, report: Report | None = None, jobs: int = 1) -> dict[str, Any]:
    """Trains and measures a cell, or goes on where it was left.

    Args:
        cell: the cell.
        report: called as it comes forward.
        jobs: cells that run at once, to be noted.

    Returns:
        What cell.json holds.

    Raises:
        ConfigError: it was begun with another configuration.
        VoxelpoolError: as `fit`.
    """
    figures = finished(cell)
    if figures is not None:
        return figures

    def tell(doing: str, done: int, total: int) -> None:
        if report is not None:
            report(cell, doing, done, total)

    seconds = _train(cell, tell)
    figures = {
        "version": _VERSION,
        "experiment": cell.experiment,
        "variant": cell.variant,
        "seed": cell.seed,
        **_measure(cell, tell),
        "training_seconds": seconds,
        "jobs": jobs,
        "machine": machine(),
    }
    _write_json(figures, cell.folder / CELL_FILE)
    Run(cell.folder).best.unlink(missing_ok=True)  # last.ckpt is what was measured
    return figures


def _train(cell: Cell, tell: Callable[[str, int, int], None]) -> float | None:
    """Trains what is left to train; the seconds of a training in one go, otherwise None."""
    run = Run(cell.folder)
    epochs = cell.config.train.epochs
    resume = run.last.is_file()
    if resume and load_checkpoint(run.last)["epoch"] + 1 >= epochs:
        return None
    if not resume:
        if run.config_path.is_file():  # ended within its first epoch
            shutil.rmtree(cell.folder)
        new_run(cell.config, cell.folder)
    started = time.perf_counter()
    try:
        fit(
            cell.config,
            run,
            resume=resume,
            progress=False,
            callbacks=[_Epochs(tell)],
            reading=tell,
        )
    except SystemExit:  # what Lightning makes of Ctrl-C, and of being told to end
        raise KeyboardInterrupt from None
    return None if resume else time.perf_counter() - started


class _Epochs(Callback):
    def __init__(self, tell: Callable[[str, int, int], None]) -> None:
        self.tell = tell

    def on_train_epoch_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.tell("epoch", trainer.current_epoch, trainer.max_epochs or 0)


def _measure(cell: Cell, tell: Callable[[str, int, int], None]) -> dict[str, Any]:
    meter = meter_of(cell.config, Run(cell.folder).last)
    total = len(meter.perturbations) + 3
    tell("measuring", 0, total)
    forward = milliseconds(meter.forward())
    memory = peak_memory(training_step, cell.config, meter.training_batch())
    tell("measuring", 1, total)
    test = meter.scores()
    tell("measuring", 2, total)
    train = meter.scores(training=True)
    robustness = {}
    for done, change in enumerate(meter.perturbations, 3):
        tell("measuring", done, total)
        robustness[change.name] = meter.scores(change)
    return {
        "main": meter.main,
        "test": test,
        "train": train,
        "robustness": robustness,
        "parameters": meter.parameters,
        "forward_ms": forward,
        "forward_batch": meter.batch,
        "threads": torch.get_num_threads(),
        "training_step_mb": memory,
        "training_batch": cell.config.train.batch_size,
    }


def run_cells(
    cells: Sequence[Cell], *, jobs: int = 1, report: Report | None = None
) -> dict[str, str]:
    """Runs the cells that are not done, several at once if asked to.

    Cells of several experiments that train the very same thing are run once. A cell that fails does
    not stop the others.

    Args:
        cells: of any experiments.
        jobs: cells at once, each in a process of its own with its share of the cores; 1 stays in
            this process.
        report: called as they come forward.

    Returns:
        What went wrong, by the names of the cells.

    Raises:
        ConfigError: a cell was begun with another configuration; before anything is trained.
    """
    say = report or (lambda *_: None)
    done = {cell for cell in cells if finished(cell) is not None}
    known = _done_elsewhere(cells)
    waiting: list[Cell] = []
    twins: list[tuple[Cell, Cell]] = []
    first: dict[str, Cell] = {}
    for cell in cells:
        if cell in done:
            say(cell, "done", 1, 1)
            continue
        key = dump_config(cell.config)
        if key in known:
            _copy_figures(known[key], cell)
            say(cell, "done", 1, 1)
        elif key in first:
            twins.append((first[key], cell))
        else:
            first[key] = cell
            waiting.append(cell)
    failures: dict[str, str] = {}

    def settle(cell: Cell, problem: str | None) -> None:
        same = [twin for other, twin in twins if other is cell]
        if problem is None:
            for twin in same:
                _copy_figures(cell.folder / CELL_FILE, twin)
        for one in (cell, *same):
            if problem is not None:
                failures[one.name] = problem
            say(one, "done" if problem is None else "failed", 1, 1)

    if jobs > 1:
        _run_in_processes(waiting, jobs, say, settle)
    else:
        for cell in waiting:
            settle(cell, _attempt(cell, say, 1))
    return failures


def _done_elsewhere(cells: Iterable[Cell]) -> dict[str, Path]:
    """Figures beside the cells, by their configurations."""
    folders = {cell.folder.parent.parent for cell in cells}
    found = {}
    for path in sorted(path for out in folders for path in out.glob(f"*/*/{CELL_FILE}")):
        config_path = Run(path.parent).config_path
        if config_path.is_file() and read_cell(path) is not None:
            found[dump_config(load_config(config_path))] = path
    return found


def _copy_figures(source: Path, cell: Cell) -> None:
    """Gives a cell the figures of one that trained the same."""
    figures = read_cell(source)
    assert figures is not None
    if not Run(cell.folder).config_path.is_file():
        new_run(cell.config, cell.folder)
    same = figures.get("same_as", f"{source.parent.parent.name}/{source.parent.name}")
    changes = {"experiment": cell.experiment, "variant": cell.variant, "same_as": same}
    _write_json(figures | changes, cell.folder / CELL_FILE)


def _attempt(cell: Cell, report: Report, jobs: int) -> str | None:
    try:
        run_cell(cell, report, jobs)
    except (VoxelpoolError, OSError) as error:
        return str(error)
    return None


def _run_in_processes(
    cells: Sequence[Cell],
    jobs: int,
    report: Report,
    settle: Callable[[Cell, str | None], None],
) -> None:
    context = get_context("spawn")
    threads = max(1, (os.cpu_count() or 1) // jobs)
    queue = deque(cells)
    workers: dict[connection.Connection, tuple[BaseProcess, Cell]] = {}

    def start() -> None:
        ours, theirs = context.Pipe()
        process = context.Process(target=_work, args=(theirs, threads, jobs))
        process.start()
        theirs.close()
        workers[ours] = process, queue.popleft()
        ours.send(workers[ours][1])

    try:
        for _ in range(min(jobs, len(queue))):
            start()
        while workers:
            for place in connection.wait(list(workers)):
                assert isinstance(place, connection.Connection)
                process, cell = workers[place]
                try:
                    doing, *rest = place.recv()
                except EOFError:
                    process.join()
                    del workers[place]
                    settle(cell, f"its process ended with code {process.exitcode}")
                    if queue:
                        start()
                    continue
                if doing != "settled":
                    report(cell, doing, *rest)
                    continue
                if queue:
                    workers[place] = process, queue.popleft()
                    place.send(workers[place][1])
                else:
                    del workers[place]
                    place.close()
                    process.join()
                settle(cell, rest[0])
    finally:
        for process, _ in workers.values():
            process.terminate()
            process.join()


def _work(place: connection.Connection, threads: int, jobs: int) -> None:
    """Runs the cells that come until there are no more."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that began this one ends it
    torch.set_num_threads(threads)

    def send(_: Cell | None, *state: Any) -> None:
        try:
            place.send(state)
        except OSError:  # that process is gone
            os._exit(1)

    while True:
        try:
            cell = place.recv()
            send(None, "settled", _attempt(cell, send, jobs))
        except (EOFError, KeyboardInterrupt):  # no more, or told to end in the middle of a training
            return


def _write_json(values: Mapping[str, Any], path: Path) -> None:
    with atomic_write(path) as file:
        json.dump(_plain(values), file, indent=1, allow_nan=False)
        file.write("\n")


def _plain(value: Any) -> Any:
    """The same with None for what is no number."""
    if isinstance(value, Mapping):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def spread(values: Iterable[float | None]) -> dict[str, Any] | None:
    """Mean, standard deviation (n - 1; None of one value) and values; None if one is missing."""
    numbers = list(values)
    if not numbers or any(value is None for value in numbers):
        return None
    return {
        "mean": statistics.fmean(numbers),
        "std": statistics.stdev(numbers) if len(numbers) > 1 else None,
        "values": numbers,
    }


def summarize(experiment: ExperimentConfig, cells: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Sums up an experiment over its seeds.

    Args:
        experiment: what is compared.
        cells: what was measured, as cell.json holds it.

    Returns:
        Plain values: for each variant that has cells, its seeds and `spread` of every figure:
        scores of test and training data, the gap between them, robustness by perturbation and
        score, "against_baseline" (of the main score, seed by seed), and costs.
    """
    by_variant: dict[str, dict[int, Mapping[str, Any]]] = {}
    for figures in cells:
        by_variant.setdefault(figures["variant"], {})[figures["seed"]] = figures
    baseline = by_variant.get(experiment.baseline, {})
    variants = {}
    main = ""
    for name in experiment.variants:
        if name not in by_variant:
            continue
        seeds = sorted(by_variant[name])
        rows = [by_variant[name][seed] for seed in seeds]
        main = rows[0]["main"]
        shared = [seed for seed in seeds if seed in baseline]
        variants[name] = {
            "seeds": seeds,
            "test": _spreads(row["test"] for row in rows),
            "train": _spreads(row["train"] for row in rows),
            "gap": spread(row["train"][main] - row["test"][main] for row in rows),
            "robustness": {
                change: _spreads(row["robustness"][change] for row in rows)
                for change in rows[0]["robustness"]
            },
            "against_baseline": spread(
                by_variant[name][seed]["test"][main] - baseline[seed]["test"][main]
                for seed in shared
            ),
            "parameters": rows[0]["parameters"],
            "forward_ms": spread(row["forward_ms"] for row in rows),
            "training_step_mb": spread(row["training_step_mb"] for row in rows),
            "training_seconds": spread(row["training_seconds"] for row in rows),
            "forward_batch": rows[0]["forward_batch"],
            "training_batch": rows[0]["training_batch"],
            "threads": sorted({row["threads"] for row in rows}),
            "jobs": sorted({row["jobs"] for row in rows}),
            "same_as": sorted({row["same_as"] for row in rows if "same_as" in row}),
        }
    return {
        "title": experiment.title or experiment.name,
        "baseline": experiment.baseline,
        "main": main,
        "variants": variants,
    }


def _spreads(scores: Iterable[Mapping[str, float]]) -> dict[str, Any]:
    rows = list(scores)
    return {metric: spread(row[metric] for row in rows) for metric in rows[0]}


def summarize_folder(out: Path) -> dict[str, Any]:
    """Sums up all experiments below a folder, from what lies there.

    Returns:
        "machines" that cells were measured on, and "experiments" by name, as `summarize`.

    Raises:
        DataError: there is no measured cell.
    """
    experiments, machines = {}, []
    for path in sorted(out.glob(f"*/{EXPERIMENT_FILE}")):
        experiment = load_experiment(path)
        found = [read_cell(cell) for cell in sorted(path.parent.glob(f"*/{CELL_FILE}"))]
        cells = [figures for figures in found if figures is not None]
        summary = summarize(experiment, cells)
        if summary["variants"]:
            experiments[experiment.name] = summary
        machines += [cell["machine"] for cell in cells if cell["machine"] not in machines]
    if not experiments:
        raise DataError(f"{out}: holds no measured cell")
    return {"machines": machines, "experiments": experiments}


def keep_experiments(experiments: Iterable[ExperimentConfig], out: Path) -> None:
    """Writes the experiments to their folders, for `summarize_folder`."""
    for experiment in experiments:
        folder = out / experiment.name
        folder.mkdir(parents=True, exist_ok=True)
        save_experiment(experiment, folder / EXPERIMENT_FILE)


@dataclass(frozen=True)
class TextTable:
    """A table for people.

    Attributes:
        title: what it shows.
        headings: of its columns.
        rows: as many texts each.
    """

    title: str
    headings: list[str]
    rows: list[list[str]]

    def markdown(self) -> str:
        """The table in Markdown, numbers to the right."""
        rule = ["---", *["---:"] * (len(self.headings) - 1)]
        lines = [f"| {' | '.join(row)} |" for row in (self.headings, rule, *self.rows)]
        return "\n".join([f"**{self.title}**", "", *lines, ""])


def table_of(summary: Mapping[str, Any]) -> TextTable:
    """The table of one experiment: a column for each variant, mean ± standard deviation.

    Args:
        summary: as `summarize` gives it.
    """
    variants, main = summary["variants"], summary["main"]
    some = next(iter(variants.values()))

    def row(
        heading: str, find: Callable[[Mapping[str, Any]], Any], digits: int = 2, sign: bool = False
    ) -> list[str]:
        return [heading, *(_text(find(column), digits, sign) for column in variants.values())]

    rows = [
        row(SCORE_NAMES[metric], lambda column, metric=metric: column["test"][metric])
        for metric in MAIN_SCORES
        if metric in some["test"]
    ]
    baseline = summary["baseline"]
    if baseline in variants:
        against = row(f"against {baseline}", lambda column: column["against_baseline"], sign=True)
        against[1 + list(variants).index(baseline)] = ""
        rows.append(against)
    rows.append(row("train - test", lambda column: column["gap"]))
    for name in some["robustness"]:
        rows.append(
            row(change_of(name).label, lambda column, name=name: column["robustness"][name][main])
        )
    rows += [
        ["parameters", *(f"{column['parameters']:,}" for column in variants.values())],
        row(f"ms, forward of {some['forward_batch']}", lambda column: column["forward_ms"], 1),
        row(
            f"MB, training step of {some['training_batch']}",
            lambda column: column["training_step_mb"],
            0,
        ),
    ]
    seeds = sorted({seed for column in variants.values() for seed in column["seeds"]})
    threads = "/".join(str(count) for count in some["threads"])
    return TextTable(
        f"{summary['title']} (seeds {', '.join(map(str, seeds))}; threads {threads})",
        ["", *variants],
        rows,
    )


def change_of(name: str) -> Perturbation:
    """The perturbation of a name, such as "drop 0.25"."""
    for change in (*ON_GRIDS, *ON_POINTS):
        if change.name == name:
            return change
    raise DataError(f"no perturbation is called {name!r}")


def _text(value: Mapping[str, Any] | None, digits: int, sign: bool) -> str:
    if value is None:
        return "-"
    text = f"{value['mean']:{'+' if sign else ''}.{digits}f}"
    return text if value["std"] is None else f"{text} ± {value['std']:.{digits}f}"


def draw_summary(summary: Mapping[str, Any], path: Path) -> None:
    """Draws one experiment: bars of its main score, and the score over each perturbation.

    Args:
        summary: as `summarize` gives it.
        path: the picture.
    """
    main, variants = summary["main"], summary["variants"]
    bars = [
        Bar(name, row["test"][main]["mean"], row["test"][main]["std"] or 0.0)
        for name, row in variants.items()
    ]
    kinds: dict[str, list[Perturbation]] = {}
    for name in next(iter(variants.values()))["robustness"]:
        kinds.setdefault(change_of(name).kind, []).append(change_of(name))
    panels = []
    for kind, changes in kinds.items():
        curves = []
        for row in variants.values():
            found = {change.amount: row["robustness"][change.name][main] for change in changes}
            found[1.0 if kind == "scale" else 0.0] = row["test"][main]
            curves.append(
                Curve([(x, found[x]["mean"], found[x]["std"] or 0.0) for x in sorted(found)])
            )
        panels.append(Panel(PANEL_TITLES[kind], curves))
    draw_bars(bars, panels, path, title=summary["title"], unit=SCORE_NAMES[main])


PANEL_TITLES = {
    "drop": "share dropped",
    "noise": "noise, cm",
    "flip": "share of cells flipped",
    "shift": "shifted by cells",
    "scale": "scaled by",
    "bend": "bent by cells",
}


def write_summary(out: Path) -> dict[str, Any]:
    """Writes summary.json, summary.md and a picture of each experiment below a folder.

    Returns:
        What summary.json holds.

    Raises:
        DataError: there is no measured cell.
    """
    summary = summarize_folder(out)
    _write_json(summary, out / SUMMARY)
    parts = []
    for name, experiment in summary["experiments"].items():
        draw_summary(experiment, out / f"{name}.png")
        parts += [f"## {name}", "", table_of(experiment).markdown()]
    with atomic_write(out / "summary.md") as file:
        file.write("\n".join(parts))
    return summary
