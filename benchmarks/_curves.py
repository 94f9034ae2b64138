"""Scaling curves of a results file, as PNG."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Any

Lines = dict[str, list[tuple[float, float]]]


def curves(report: dict[str, Any]) -> dict[tuple[str, str], Lines]:
    """By name and axis: for each contender the places and medians."""
    found: dict[tuple[str, str], Lines] = defaultdict(lambda: defaultdict(list))
    for result in report["results"]:
        if result["curve"] is not None:
            name, axis, place = result["curve"]
            for contender in result["contenders"]:
                if not contender.get("missing"):
                    line = found[name, axis][contender["name"]]
                    line.append((place, contender["median_ms"]))
    return found


def draw(report: dict[str, Any], folder: Path, prefix: str) -> list[Path]:
    """Draws every curve to a file of its own; none where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return []
    paths = []
    for (name, axis), lines in curves(report).items():
        figure = Figure(figsize=(6, 4), dpi=120, layout="constrained")
        plot = figure.subplots()
        for contender, points in lines.items():
            plot.plot(*zip(*sorted(points), strict=True), marker="o", label=contender)
        plot.set(xscale="log", yscale="log", xlabel=axis, ylabel="median, ms", title=name)
        if axis == "threads":
            places = [place for place, _ in next(iter(lines.values()))]
            plot.set_xscale("linear")
            plot.set_xticks(places)
        plot.grid(alpha=0.3)
        plot.legend()
        path = folder / f"{prefix}-{name}-{axis}.png".replace(" ", "_")
        figure.savefig(path)
        paths.append(path)
    return paths
