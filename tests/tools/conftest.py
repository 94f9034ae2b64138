"""Runs tools as a shell would, in this process."""

from __future__ import annotations

import runpy
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"
RunTool = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunTool:
    """Called with a tool's name and arguments; returns exit code, stdout and stderr."""
    monkeypatch.syspath_prepend(str(TOOLS))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    monkeypatch.setenv("COLUMNS", "120")

    def call(name: str, *arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", [f"{name}.py", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            runpy.run_path(str(TOOLS / f"{name}.py"), run_name="__main__")
        return int(stop.value.code or 0), *capsys.readouterr()

    return call


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lets a tool's stderr show progress bars, as a terminal would."""
    import _cli

    monkeypatch.setattr(_cli._progress, "_force_terminal", True)
