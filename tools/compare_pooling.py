"""Compares poolings, heads, necks and attention: trains, measures, sums up."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import _cli
import typer
from rich.box import SIMPLE_HEAD
from rich.progress import TaskID
from rich.table import Table

from voxelpool.config import load_experiment
from voxelpool.errors import ConfigError, TrainingError
from voxelpool.training import Cell, Roots, cells_of, run_cells, write_summary
from voxelpool.training.comparison import TextTable, keep_experiments, table_of

EXPERIMENTS = Path(__file__).parents[1] / "configs" / "compare"


def main(
    only: Annotated[
        list[str] | None,
        typer.Option(metavar="EXPERIMENT...", help="names in --experiments  [default: all]"),
    ] = None,
    experiments: Annotated[
        Path, typer.Option(help="folder of experiments, a YAML file each")
    ] = EXPERIMENTS,
    seeds: Annotated[
        list[int] | None, typer.Option(metavar="SEED...", help="in place of the experiments' own")
    ] = None,
    short: Annotated[
        bool, typer.Option("--short", help="minutes, to see that all runs; says nothing")
    ] = False,
    jobs: Annotated[
        int, typer.Option(min=1, help="cells at once, each with its share of the cores")
    ] = 1,
    out: Annotated[
        Path | None,
        typer.Option(help="results  [default: runs/compare_pooling, with _short for --short]"),
    ] = None,
    modelnet: Annotated[
        Path | None,
        typer.Option(envvar="MODELNET10", help="ModelNet10's archive, in place of the config's"),
    ] = None,
    sweeps: Annotated[
        Path | None, typer.Option(help="data set in KITTI's layout, in place of the config's")
    ] = None,
    summary: Annotated[
        bool, typer.Option("--summary", help="train nothing, sum up what is there")
    ] = False,
    json_out: _cli.JsonOut = None,
) -> None:
    """Trains every variant of every experiment with every seed, and compares them.

    What is done is kept: called again, it goes on where it was stopped, in the middle of a training
    too. OUT gets summary.json, summary.md with the tables, and a picture of each experiment.

    Example: python tools/compare_pooling.py --jobs 2 --sweeps data/simulated

    Example: python tools/compare_pooling.py --only voxnet --seeds 0 1 --short
    """
    folder = out or Path("runs", "compare_pooling_short" if short else "compare_pooling")
    failures: dict[str, str] = {}
    if not summary:
        chosen = [load_experiment(path) for path in find_experiments(experiments, only or [])]
        roots = Roots(modelnet, sweeps)
        cells = [
            cell
            for experiment in chosen
            for cell in cells_of(experiment, folder, short=short, seeds=seeds or None, roots=roots)
        ]
        keep_experiments(chosen, folder)
        with Bars(len(cells)) as bars:
            failures = run_cells(cells, jobs=jobs, report=bars.show)
        for name, problem in failures.items():
            _cli.warn(f"{name}: {problem}")
        if len(failures) == len(cells):
            raise TrainingError(f"all {len(cells)} cells failed")
    found = write_summary(folder)
    for name, experiment in found["experiments"].items():
        _cli.console.print(rich_table(table_of(experiment)))
        _cli.console.print(str(folder / f"{name}.png"))
    _cli.console.print(f"{folder / 'summary.md'}, {folder / 'summary.json'}")
    _cli.write_json(found, json_out)
    if failures:
        raise TrainingError(f"{len(failures)} of {len(cells)} cells failed; they are named above")


def find_experiments(folder: Path, names: list[str]) -> list[Path]:
    """The files of the experiments, all of them if none is named."""
    there = {path.stem: path for path in sorted(folder.glob("*.yaml"))}
    for name in names:
        if name not in there:
            raise ConfigError(f"{folder}: no experiment {name}; there are {', '.join(there)}")
    if not there:
        raise ConfigError(f"{folder}: holds no experiment")
    return [there[name] for name in names or there]


def rich_table(text: TextTable) -> Table:
    """The table for a terminal."""
    table = Table(title=text.title, box=SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for number, heading in enumerate(text.headings):
        table.add_column(heading, justify="right" if number else "left", no_wrap=True)
    for row in text.rows:
        table.add_row(*row)
    return table


class Bars:
    """A bar of the cells, and one of each cell that is at work."""

    def __init__(self, total: int) -> None:
        self.total = total
        self.tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Bars:
        self.context = _cli.progress_bar()
        self.bar = self.context.__enter__()
        self.cells = self.bar.add_task("cells", total=self.total)
        return self

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(*error)

    def show(self, cell: Cell, doing: str, done: int, total: int) -> None:
        """Called as a cell comes forward."""
        if doing in ("done", "failed"):
            if cell.name in self.tasks:
                self.bar.remove_task(self.tasks.pop(cell.name))
            self.bar.advance(self.cells)
            return
        if cell.name not in self.tasks:
            self.tasks[cell.name] = self.bar.add_task(cell.name)
        text = f"  {cell.name}: {doing}"
        self.bar.update(self.tasks[cell.name], description=text, completed=done, total=total)


if __name__ == "__main__":
    sys.argv[1:] = _cli.repeat_options(sys.argv[1:], ("--only", "--seeds"))
    _cli.run(main)
