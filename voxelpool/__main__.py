"""The tools by one command: ``voxelpool TOOL …``, or ``python -m voxelpool TOOL …``."""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

from voxelpool.files import shipped_folder


def tools() -> dict[str, Path]:
    """The tools by their names, in alphabetical order."""
    paths = sorted(shipped_folder("_tools", "tools").glob("[!_]*.py"))
    return {path.stem.replace("_", "-"): path for path in paths}


def usage() -> str:
    """The list of the tools, made without importing any."""
    found = {name: _summary(path) for name, path in tools().items()}
    found["config"] = "Says what is installed: versions, the compiled part, GPUs."
    width = max(map(len, found))
    rows = "\n".join(f"  {name:{width}}  {found[name]}" for name in sorted(found))
    return (
        f"Usage: voxelpool TOOL [OPTION]...\n\nTools:\n{rows}\n\n"
        "`voxelpool TOOL --help` explains one; `voxelpool --version` names the version.\n\n"
        "Example: voxelpool detect --weights voxelnet_car_sim sweep.bin -o detections --png\n"
    )


def _summary(path: Path) -> str:
    """The first line of a tool's docstring."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.partition("\n")[0]


def main(arguments: list[str] | None = None) -> None:
    """Runs the tool that ``arguments`` (by default the process's own) name."""
    first, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if first in ("-h", "--help"):
        sys.stdout.write(usage())
    elif first == "--version":
        from voxelpool import __version__

        sys.stdout.write(f"voxelpool {__version__}\n")
    elif first == "config":
        from voxelpool._config_report import show_config

        sys.stdout.write(f"{show_config()}\n")
    else:
        path = tools().get(first.replace("_", "-"))
        if path is None:
            sys.stderr.write(f"error: {first}: no such tool; `voxelpool --help` lists them\n")
            sys.exit(2)
        sys.argv[1:] = rest
        sys.path.insert(0, str(path.parent))
        runpy.run_path(str(path), {"program": f"voxelpool {first}"}, run_name="__main__")


if __name__ == "__main__":
    main(sys.argv[1:] or ["config"])
