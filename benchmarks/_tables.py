"""Results files as tables: in the terminal, and in Markdown."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

COLUMNS = ("", "median, ms", "min, ms", "n", "GB/s", "voxelpool is faster", "wanted")


def show(report: dict[str, Any], console: Console) -> None:
    """Prints a table for each family; points of curves are left to the pictures."""
    console.print(heading(report), highlight=False)
    for family in families(report):
        table = Table(*COLUMNS, title=family, box=box.SIMPLE_HEAD)
        for column in table.columns[1:]:
            column.justify = "right"
        for result in tabled(report, family):
            table.add_row(f"[bold]{result['title']}")
            for row in rows(result):
                table.add_row(*row)
            table.add_section()
        console.print(table)


def markdown(report: dict[str, Any]) -> str:
    """The same in Markdown."""
    lines = [heading(report), ""]
    for family in families(report):
        lines += [f"### {family}", ""]
        for result in tabled(report, family):
            lines += [f"**{result['title']}**", ""]
            lines += ["| " + " | ".join(COLUMNS) + " |", "|---|" + "---:|" * (len(COLUMNS) - 1)]
            lines += ["| " + " | ".join(row) + " |" for row in rows(result)]
            lines += [""]
    return "\n".join(lines)


def heading(report: dict[str, Any]) -> str:
    """Machine, versions, date and the memory's speed in a sentence or two."""
    where, speed = report["environment"], report["bandwidth"]
    versions = ", ".join(
        f"{name} {version}" for name, version in where["versions"].items() if version
    )
    missing = ", ".join(name for name, version in where["versions"].items() if not version)
    machine = where["gpu"] or f"{where['cpu']}, {where['cores']} cores, {where['instructions']}"
    text = (
        f"{machine}; {where['threads']} threads; load at the start {where['load']:.1f}; "
        f"{where['date']}. {versions}."
    )
    if missing:
        text += f" Not installed: {missing}."
    return text + (
        f" Memory: copies {speed['copy_gb_per_s']:.1f} GB/s (bytes read and written), "
        f"reads {speed['read_gb_per_s']:.1f} GB/s."
    )


def families(report: dict[str, Any]) -> list[str]:
    """In order of appearance."""
    return list(dict.fromkeys(result["family"] for result in report["results"]))


def tabled(report: dict[str, Any], family: str) -> list[dict[str, Any]]:
    """The results of a family that are no points of a curve."""
    return [
        result
        for result in report["results"]
        if result["family"] == family and result["curve"] is None
    ]


def rows(result: dict[str, Any]) -> list[list[str]]:
    """A row for each contender, and one for each further fact."""
    found = [
        row(result, contender, first=i == 0) for i, contender in enumerate(result["contenders"])
    ]
    for name, fact in result["facts"].items():
        found.append([f"{name}: {fact:,.4g}", *[""] * (len(COLUMNS) - 1)])
    return found


def row(result: dict[str, Any], contender: dict[str, Any], *, first: bool) -> list[str]:
    """One contender."""
    name = contender["name"] + (f" ({contender['note']})" if contender["note"] else "")
    if contender.get("missing"):
        return [name, "not here", *[""] * (len(COLUMNS) - 2)]
    wanted, reached = "", True
    if first and result["limit_ms"] is not None:
        wanted = f"< {result['limit_ms']:g} ms"
        reached = contender["median_ms"] < result["limit_ms"]
    elif contender["name"] in result["goals"]:
        goal = result["goals"][contender["name"]]
        wanted, reached = f"{goal:.3g}x", contender["ratio"] >= goal
    speed = contender["gb_per_s"]
    return [
        name,
        f"{contender['median_ms']:.3g}"
        if contender["median_ms"] < 1000
        else f"{contender['median_ms']:,.0f}",
        f"{contender['min_ms']:.3g}"
        if contender["min_ms"] < 1000
        else f"{contender['min_ms']:,.0f}",
        str(contender["repeats"]),
        f"{speed:.3g}" if speed else "",
        "" if first else f"{contender['ratio']:.3g}x",
        wanted and f"{wanted} {'yes' if reached else 'NO'}",
    ]
