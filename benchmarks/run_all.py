"""Times every operation against its peers, draws how it scales, and writes all of it down.

Examples:
    python benchmarks/run_all.py                     # the CPU, in under ten minutes
    python benchmarks/run_all.py --seconds 300       # every contender its 20 calls
    python benchmarks/run_all.py --device cuda
    python benchmarks/run_all.py --markdown benchmarks/results/cpu-2026-01-31.json
"""

from __future__ import annotations

import datetime
import json
import time
from pathlib import Path

import _curves
import _tables
import bench_boxes
import bench_detectors
import bench_pool
import bench_pyramid
import bench_sparse
import bench_vfe
import bench_voxelize
from _measure import measure_families, parser, save, setting_of
from rich.console import Console

from voxelpool.files import refuse_existing

RESULTS = Path(__file__).parent / "results"
FAMILIES = {
    "pool": bench_pool.cases,
    "voxelize": bench_voxelize.cases,
    "boxes": bench_boxes.cases,
    "vfe": bench_vfe.cases,
    "pyramid": bench_pyramid.cases,
    "sparse": bench_sparse.cases,
    "voxelnet": bench_detectors.voxelnet_cases,
    "family": bench_detectors.family_cases,
}


def _unused(name: str) -> Path:
    """The first of name, name-2, name-3, … that is not there yet."""
    path, number = RESULTS / f"{name}.json", 2
    while path.exists():
        path, number = RESULTS / f"{name}-{number}.json", number + 1
    return path


def main() -> None:
    """The command line."""
    arguments_parser = parser(__doc__)
    arguments_parser.add_argument("--families", nargs="+", choices=FAMILIES, default=[*FAMILIES])
    arguments_parser.add_argument(
        "--markdown", type=Path, help="print a results file, measure nothing"
    )
    arguments = arguments_parser.parse_args()
    if arguments.markdown is not None:
        print(_tables.markdown(json.loads(arguments.markdown.read_text())))
        return
    path = arguments.json or _unused(f"{arguments.device}-{datetime.date.today()}")
    try:
        refuse_existing(path)
    except FileExistsError as error:
        arguments_parser.error(f"{error.filename}: {error.strerror}")
    console = Console()
    started = time.perf_counter()
    families = [(name, FAMILIES[name]) for name in arguments.families]
    report = measure_families(families, setting_of(arguments), console, arguments.only)
    _tables.show(report, console)
    save(report, path)
    drawn = _curves.draw(report, path.parent, path.stem)
    console.print(f"{path} and {len(drawn)} curves, {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
