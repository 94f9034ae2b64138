"""What the benchmarks share: contenders that must agree, timed in turn in one run.

A benchmark gives cases; a case has contenders, the first of which is voxelpool. Before anything is
timed, every contender runs once and its result is compared with the first one's. Then all are
called in turn, so that whatever else the machine does falls on all of them alike.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import importlib.metadata
import json
import os
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from _peers import numba
from rich.console import Console
from torch import Tensor

import voxelpool
from voxelpool.files import atomic_write
from voxelpool.machine import cpu_name

OURS = "voxelpool"
LEAST_REPEATS = 3
CURVE_REPEATS = 7
PACKAGES = ("torch", "numpy", "torch-scatter", "spconv-cu120", "numba", "shapely")

Result = Callable[[Any], Sequence[Tensor]]


@dataclass(frozen=True)
class Setting:
    """How to measure.

    Attributes:
        device: "cpu" or "cuda".
        threads: of torch, and so of the kernels, and of numba.
        repeats: calls of each contender.
        seconds: a contender that has taken this long is called no more than `LEAST_REPEATS` times.
        quick: small sizes, to see that all runs.
    """

    device: str = "cpu"
    threads: int = 1
    repeats: int = 20
    seconds: float = 5.0
    quick: bool = False

    def size(self, full: int, quick: int) -> int:
        """A size, by `quick`."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Contender:
    """One way to do the work of a case.

    Attributes:
        name: as in the tables.
        run: does the work; None: not installed.
        result: what must agree, from what `run` returns; None: a yardstick that computes another
            thing (such as reading the input once).
        tolerance: largest difference from the first contender, relative to the largest magnitude;
            0 asks for equality.
        note: said beside the name.
        scale: it does this part of the work; its time is multiplied.

    A contender may give fewer results than the first one; those that it gives are compared.
    """

    name: str
    run: Callable[[], Any] | None
    result: Result | None = None
    tolerance: float = 0.0
    note: str = ""
    scale: float = 1.0


@dataclass(frozen=True)
class Case:
    """A piece of work and those who do it.

    Attributes:
        title: as in the tables.
        contenders: the first is voxelpool; all others are compared with it.
        goals: by contender, how many times faster than it voxelpool should be.
        limit_ms: the time that voxelpool should stay under.
        bytes_moved: what has to be read and written at least.
        curve: name of the scaling curve that this is a point of, its axis and the place on it;
            points of curves are measured with fewer repetitions.
        threads: another number of threads than the setting's.
        facts: what else was found, for the JSON and the tables.
    """

    title: str
    contenders: Sequence[Contender]
    goals: dict[str, float] = field(default_factory=dict)
    limit_ms: float | None = None
    bytes_moved: int = 0
    curve: tuple[str, str, float] | None = None
    threads: int | None = None
    facts: dict[str, Any] = field(default_factory=dict)


Cases = Callable[[Setting], Iterator[Case]]


class Disagreement(RuntimeError):
    """Contenders gave different results: their times would say nothing."""


def measure(case: Case, setting: Setting) -> dict[str, Any]:
    """Checks and times the contenders of a case.

    Returns:
        What the JSON holds of it: times in milliseconds.

    Raises:
        Disagreement: a contender's result is not the first one's.
    """
    set_threads(case.threads or setting.threads)
    repeats, seconds = setting.repeats, setting.seconds
    if case.curve is not None:
        repeats, seconds = min(CURVE_REPEATS, repeats), seconds / 10
    differences = _compare(case)
    timer = _cuda_milliseconds if setting.device == "cuda" else _cpu_milliseconds
    live = [(contender.name, contender.run) for contender in case.contenders if contender.run]
    times: dict[str, list[float]] = {name: [] for name, _ in live}
    order = random.Random(0)
    for _ in range(repeats):
        for name, run in order.sample(live, len(live)):
            taken = times[name]
            if len(taken) < LEAST_REPEATS or sum(taken) < 1000 * seconds:
                taken.append(timer(run))
    ours = statistics.median(times[case.contenders[0].name])
    return {
        "title": case.title,
        "goals": case.goals,
        "limit_ms": case.limit_ms,
        "bytes": case.bytes_moved,
        "curve": case.curve,
        "facts": case.facts,
        "contenders": [
            _row(contender, times.get(contender.name), ours, case, differences)
            for contender in case.contenders
        ],
    }


def _row(
    contender: Contender,
    times: list[float] | None,
    ours: float,
    case: Case,
    differences: dict[str, float],
) -> dict[str, Any]:
    row: dict[str, Any] = {"name": contender.name, "note": contender.note}
    if times is None:
        return row | {"missing": True}
    times = [contender.scale * time for time in times]
    median = statistics.median(times)
    return row | {
        "median_ms": median,
        "min_ms": min(times),
        "repeats": len(times),
        "ratio": median / ours,
        "gb_per_s": case.bytes_moved / median / 1e6 if case.bytes_moved else None,
        "difference": differences.get(contender.name),
    }


def _compare(case: Case) -> dict[str, float]:
    """The largest difference of every contender's result from the first one's."""
    first, *others = case.contenders
    assert first.run is not None and first.result is not None, case.title
    expected = [tensor.detach().clone() for tensor in first.result(first.run())]
    if not expected or not all(tensor.numel() for tensor in expected):
        raise Disagreement(f"{case.title}: {first.name} has no result to compare")
    differences = {}
    for contender in others:
        if contender.run is None:
            continue
        got = contender.run()
        if contender.result is None:
            continue
        worst = require_agreement(
            case.title,
            (first.name, expected),
            (contender.name, contender.result(got)),
            contender.tolerance,
        )
        differences[contender.name] = worst
    return differences


def require_agreement(
    title: str,
    first: tuple[str, Sequence[Tensor]],
    other: tuple[str, Sequence[Tensor]],
    tolerance: float,
) -> float:
    """The largest difference of named results, relative to the largest value.

    Args:
        title: of the case.
        first: whose results are the measure.
        other: may have fewer results; those are compared.
        tolerance: what is allowed.

    Raises:
        Disagreement: it is larger than that, or shapes differ.
    """
    pairs = list(zip(other[1], first[1], strict=False))
    if not pairs or any(theirs.shape != ours.shape for theirs, ours in pairs):
        raise Disagreement(
            f"{title}: {other[0]} and {first[0]} have results of shapes "
            f"{[(tuple(theirs.shape), tuple(ours.shape)) for theirs, ours in pairs]}"
        )
    worst = max(_difference(*pair) for pair in pairs)
    if not worst <= tolerance:
        raise Disagreement(
            f"{title}: {other[0]} differs from {first[0]} by {worst:.2g}, relative to the largest "
            f"value; {tolerance:.2g} is allowed"
        )
    return worst


def _difference(got: Tensor, expected: Tensor) -> float:
    got, expected = got.detach().to(expected.device).double(), expected.double()
    scale = float(expected.abs().max()) or 1.0
    return float((got - expected).abs().max()) / scale


def _cpu_milliseconds(run: Callable[[], Any]) -> float:
    started = time.perf_counter()
    run()
    return 1000 * (time.perf_counter() - started)


def _cuda_milliseconds(run: Callable[[], Any]) -> float:
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def bandwidth(setting: Setting) -> dict[str, float]:
    """Speed of the memory, GB/s: bytes read and written by a copy, bytes read by a reduction."""
    source = torch.ones(setting.size(64 << 20, 1 << 20), device=setting.device)
    target = torch.empty_like(source)
    size = source.numel() * source.element_size()
    timer = _cuda_milliseconds if setting.device == "cuda" else _cpu_milliseconds

    def fastest(run: Callable[[], Any]) -> float:
        return min(timer(run) for _ in range(10))

    copy = fastest(lambda: target.copy_(source))
    read = min(fastest(lambda: torch.dot(source, source)), fastest(source.sum))
    return {"copy_gb_per_s": 2 * size / copy / 1e6, "read_gb_per_s": size / read / 1e6}


def environment(setting: Setting) -> dict[str, Any]:
    """The machine, the versions and the date."""
    versions = {"python": platform.python_version(), "voxelpool": voxelpool.__version__}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            versions[package] = ""
    return {
        "date": datetime.date.today().isoformat(),
        "device": setting.device,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if setting.device == "cuda" else "",
        "threads": setting.threads,
        "load": os.getloadavg()[0],
        "versions": versions,
        "compiled": str(voxelpool.show_config()["compiled"]),
    }


def run_family(
    family: str, cases: Cases, setting: Setting, console: Console, pattern: str = ""
) -> list[dict[str, Any]]:
    """Measures the cases of a family whose title has `pattern` in it."""
    results = []
    for case in cases(setting):
        if pattern.lower() in case.title.lower():
            console.print(f"[dim]{family}: {case.title}")
            results.append({"family": family, **measure(case, setting)})
            gc.collect()
    return results


def parser(description: str | None) -> argparse.ArgumentParser:
    """The arguments that all benchmarks take."""
    arguments = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    arguments.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments.add_argument("--repeats", type=int, default=20, help="calls of each contender")
    arguments.add_argument(
        "--seconds", type=float, default=5.0, help="time after which a contender drops out"
    )
    arguments.add_argument("--quick", action="store_true", help="tiny sizes: does it run at all?")
    arguments.add_argument("--only", default="", help="cases with this in their title")
    arguments.add_argument("--json", type=Path, default=None, help="write the results here")
    return arguments


def powers(first: int, last: int, step: int = 10) -> list[int]:
    """first, first * step, … up to last."""
    places = [first]
    while places[-1] * step <= last:
        places.append(places[-1] * step)
    return places


def thread_counts(setting: Setting) -> list[int]:
    """1, 2, 4, … up to the cores; none where they do not matter."""
    if setting.device != "cpu":
        return []
    return powers(1, 2 if setting.quick else os.cpu_count() or 1, 2)


def set_threads(count: int) -> None:
    """Sets the threads of torch, hence of the kernels, and of numba."""
    torch.set_num_threads(count)
    if numba is not None:
        numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def setting_of(arguments: argparse.Namespace) -> Setting:
    """The setting that the arguments ask for; sets torch's threads."""
    set_threads(arguments.threads)
    return Setting(
        arguments.device,
        arguments.threads,
        arguments.repeats,
        arguments.seconds,
        arguments.quick,
    )


def measure_families(
    families: Iterable[tuple[str, Cases]], setting: Setting, console: Console, pattern: str = ""
) -> dict[str, Any]:
    """All that a results file holds."""
    report = {"environment": environment(setting), "bandwidth": bandwidth(setting), "results": []}
    for family, cases in families:
        report["results"] += run_family(family, cases, setting, console, pattern)
    return report


def save(report: dict[str, Any], path: Path) -> None:
    """Writes a results file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        json.dump(report, file, indent=1)
        file.write("\n")


def main(family: str, cases: Cases, description: str | None) -> None:
    """The command line of one family."""
    import _tables

    arguments = parser(description).parse_args()
    console = Console()
    report = measure_families([(family, cases)], setting_of(arguments), console, arguments.only)
    _tables.show(report, console)
    if arguments.json is not None:
        save(report, arguments.json)
