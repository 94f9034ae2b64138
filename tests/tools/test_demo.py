"""What tools/demo.sh calls exists, with the options that it gives."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

DEMO = Path(__file__).parents[2] / "tools" / "demo.sh"


def test_its_commands_are_there(run_tool: Callable[..., tuple[int, str, str]]) -> None:
    text = DEMO.read_text().replace("\\\n", " ")
    commands = re.findall(r"^python tools/(\w+)\.py (.*)$", text, flags=re.MULTILINE)
    assert [name for name, _ in commands] == [
        "simulate", "prepare_kitti", "train", "evaluate", "detect", "report",
    ]  # fmt: skip
    for name, arguments in commands:
        code, out, _ = run_tool(name, "--help")
        assert code == 0
        for option in re.findall(r"(?<!\S)--?[a-z][a-z-]*", arguments):
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", out), f"{name} {option}"


def test_its_steps_are_numbered() -> None:
    numbers = re.findall(r'^step "(\d)/(\d) ', DEMO.read_text(), flags=re.MULTILINE)
    assert numbers == [(str(k), str(len(numbers))) for k in range(1, len(numbers) + 1)]
