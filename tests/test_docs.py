"""What the README and the manual show is true: their Python and their commands run.

A block runs in a folder with tiny data where the pages expect it. One that needs more (hours,
KITTI, a display, a network) has ``<!-- not run: REASON -->`` above it, which readers do not see;
its commands are parsed all the same, so that options exist and configurations are valid.
"""

from __future__ import annotations

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
import typer

from voxelpool import ops
from voxelpool.config import ConfigError, load_config
from voxelpool.datasets.kitti import (
    KittiDataset,
    results_from_boxes,
    write_result,
    write_sweep,
)
from voxelpool.datasets.sweeps import write_points
from voxelpool.models import build_detector
from voxelpool.models.checkpoint import write_checkpoint

ROOT = Path(__file__).parents[1]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "data/README.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
#: Where pages without markers need more than there is.
NEEDS = {"data/kitti": "KITTI", "--window": "a display"}
#: What makes a training short, whatever it is told.
SHORT = ["train.epochs=1", "train.drawn_frames=0", "data.num_workers=0", "train.val_every=1"]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, or an indented one of commands."""

    page: Path
    line: int
    language: str
    text: str
    reason: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command, comments left out."""
        lines = self.text.replace("\\\n", " ").replace(" && ", "\n").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks_of(page: Path) -> list[Block]:
    found, reason, lines = [], None, page.read_text(encoding="utf-8").splitlines()
    row = 0
    while row < len(lines):
        line, start = lines[row], row + 1
        row += 1
        if marker := re.fullmatch(r"<!-- not run: (.+) -->", line):
            reason = marker[1]
            continue
        if fence := re.fullmatch(r"```(\S*)", line):
            end = lines.index("```", row)
            language, text = fence[1], "\n".join(lines[row:end])
            row = end + 1
        elif line.startswith("    python tools/"):
            language, text = "bash", line
        else:
            reason = reason if not line else None
            continue
        if language == "" and re.match(r"(CUDA_VISIBLE_DEVICES= |)(python|torchrun) ", text):
            language = "bash"
        if reason is None and page.parent != ROOT / "docs":
            reason = next((what for sign, what in NEEDS.items() if sign in text), None)
        found.append(Block(page, start, language, text, reason))
        reason = None
    return found


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PYTHON = [block for block in BLOCKS if block.language == "python"]
BASH = [block for block in BLOCKS if block.language == "bash"]


def inline_commands() -> list[tuple[str, list[str]]]:
    """Commands in the running text, and the page each is of."""
    found = []
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for command in re.findall(r"`((?:python|make|voxelpool) [^`]*)`", text.replace("\n", " ")):
            found.append((page.name, shlex.split(command.replace("…", ""), comments=True)))
    return found


def test_every_language_is_known() -> None:
    known = {"bash", "python", "text", "cpp", "{toctree}", "{eval-rst}"}
    assert {block.language for block in BLOCKS} <= known
    assert len(PYTHON) > 5 and len(BASH) > 10


def tool_of(words: list[str]) -> tuple[str, list[str]] | None:
    """The tool that a command calls and its arguments."""
    words = [word for word in words if "=" not in word or not word.split("=")[0].isupper()]
    if any(re.search(r"\bNAME\b|\bTOOL\b", word) for word in words):
        return None  # of any tool
    if words[:1] == ["torchrun"]:
        words = ["python", *words[words.index("--") + 1 :]]
    if Path(words[0]).name == "python" and re.fullmatch(r"tools/\w+\.py", words[1]):
        return Path(words[1]).stem, words[2:]
    if words[0] == "voxelpool" or words[:3] == ["python", "-m", "voxelpool"]:
        rest = words[1:] if words[0] == "voxelpool" else words[3:]
        if rest and not rest[0].startswith("-") and rest[0] != "config":
            return rest[0].replace("-", "_"), rest[1:]
    return None


class Tools:
    """Tools as modules, each loaded once; they parse and run in this process."""

    def __init__(self) -> None:
        sys.path.insert(0, str(ROOT / "tools"))
        import _cli

        self.cli = _cli
        self.mains: dict[str, dict] = {}

    def command(self, name: str):
        if name not in self.mains:
            self.mains[name] = runpy.run_path(str(ROOT / "tools" / f"{name}.py"), run_name=name)
        app = typer.Typer(add_completion=False)
        app.command()(self.cli._with_common_options(self.mains[name]["main"]))
        return typer.main.get_command(app)

    def arguments(self, name: str, arguments: list[str]) -> list[str]:
        """With repeated options spread, as the tool itself does it."""
        source = (ROOT / "tools" / f"{name}.py").read_text(encoding="utf-8")
        if several := re.search(r"repeat_options\(sys\.argv\[1:\], (\(.*?\))\)", source):
            return self.cli.repeat_options(arguments, re.findall(r'"(--[\w-]+)"', several[1]))
        return arguments


@pytest.fixture(scope="module")
def tools():
    import warnings

    path, shown, hook = list(sys.path), warnings.showwarning, sys.excepthook
    yield Tools()
    sys.path[:], warnings.showwarning, sys.excepthook = path, shown, hook


def check_command(words: list[str], tools: Tools) -> None:
    """The command exists, with the options and the keys that it is given."""
    called = tool_of(words)
    if called is None:
        check_other(words)
        return
    name, arguments = called
    assert (ROOT / "tools" / f"{name}.py").is_file(), name
    arguments = [word for word in arguments if word not in ("[KEY=VALUE]...", "…")]
    if "--help" in arguments or arguments in ([], ["ROOT", "--gt-database"]):
        return
    command = tools.command(name)
    with command.make_context(name, tools.arguments(name, arguments)):
        pass
    configs = [word for word in arguments if word.endswith(".yaml") and "*" not in word]
    for config in configs:
        if (ROOT / config).is_file():
            load_config(ROOT / config, [w for w in arguments if re.match(r"[a-z][\w.]*=", w)])
        else:
            raise AssertionError(f"no such configuration: {config}")


def check_other(words: list[str]) -> None:
    """Commands that are no tools of this project."""
    while "=" in words[0]:
        words = words[1:]
    program = Path(words[0]).name
    if program == "make":
        makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
        for target in (word for word in words[1:] if "=" not in word):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
    elif program == "python" and words[1] != "-m" and "NAME" not in words[1]:
        assert (ROOT / words[1]).is_file(), words[1]
    else:
        known = ("python", "pip", "pre-commit", "source", "tensorboard", "voxelpool")
        assert program in known, words


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with all that the pages name: a sweep, tiny data sets, a checkpoint."""
    root = tmp_path_factory.mktemp("stage")
    rng = np.random.default_rng(0)
    for name in ("tools", "configs"):
        (root / name).symlink_to(ROOT / name)
    make_data_set(root / "data" / "simulated", rng)
    write_sweep(root / "sweep.bin", street(rng, [])[0])
    (root / "sweeps").mkdir()
    rows = ["frame,class,x,y,z,dx,dy,dz,yaw"]
    for number in range(1, 7):
        points, boxes = street(rng, [(12, -3, 0.1), (22, 3, 1.5)])
        suffix = (".bin", ".npy", ".pcd", ".ply", ".las")[number % 5]
        name = f"{number:04d}"
        write_points(root / "sweeps" / (name + (".pcd" if number == 1 else suffix)), points)
        rows += [",".join([name, "car", *(f"{value:.3f}" for value in box)]) for box in boxes]
    (root / "boxes.csv").write_text("\n".join(rows) + "\n")
    torch.manual_seed(0)
    config = load_config(ROOT / "configs" / "demo.yaml")
    network = build_detector(config).eval()
    with torch.no_grad():
        network.rpn.score_head.bias.add_(0.5)
    for name in ("best", "last"):
        path = root / "runs" / "demo" / "checkpoints" / f"{name}.ckpt"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_checkpoint(path, config, network.state_dict())
    results = root / "runs" / "demo" / "results"
    results.mkdir()
    frames = KittiDataset(root / "data" / "simulated", "val", require_labels=True)
    for frame in (frames[row] for row in range(len(frames))):
        found = results_from_boxes(
            frame.boxes, [0.9, 0.4], frame.names, frame.calibration, frame.image_size
        )
        write_result(results / f"{frame.frame_id}.txt", found)
    torch.save({"state_dict": network.state_dict()}, root / "latest.pth")
    return root


def street(rng: np.random.Generator, cars: list[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """Ground, and cars (x, y, yaw) full of points."""
    ground = rng.uniform([4, -15, -1.72], [40, 15, -1.68], (800, 3))
    boxes = np.array([[x, y, -0.95, 4, 1.7, 1.5, yaw] for x, y, yaw in cars]).reshape(-1, 7)
    parts = [ground]
    for box in boxes:
        turn = [[np.cos(box[6]), np.sin(box[6])], [-np.sin(box[6]), np.cos(box[6])]]
        inside = rng.uniform(-0.49, 0.49, (80, 3)) * box[3:6]
        parts.append(box[:3] + np.column_stack([inside[:, :2] @ turn, inside[:, 2]]))
    xyz = np.concatenate(parts)
    return np.column_stack([xyz, rng.uniform(0, 0.9, len(xyz))]).astype(np.float32), boxes


def make_data_set(root: Path, rng: np.random.Generator) -> None:
    from voxelpool.datasets.import_sweeps import ImportSettings, LabelledBox, write_frames

    folder = root.with_name("raw")
    folder.mkdir(parents=True)
    boxes = {}
    names = ["000000", "000001", "000002", "000003", "000600", "000601"]
    for name in names:
        points, cars = street(rng, [(10, -2, 0.1), (20, 3, 1.5)])
        write_sweep(folder / f"{name}.bin", points)
        boxes[name] = [LabelledBox("Car", tuple(car)) for car in cars.tolist()]
    root.mkdir()
    write_frames(root, sorted(folder.iterdir()), boxes, ImportSettings(val_frames=2))
    shutil.rmtree(folder)


@pytest.fixture
def workplace(stage: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the stage to work in, of its own for each block."""
    shutil.copytree(stage, tmp_path / "work", symlinks=True)
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize("block", PYTHON, ids=str)
def test_python(block: Block, workplace: Path) -> None:
    code = compile(block.text, str(block), "exec")
    if block.reason is None:
        exec(code, {"__name__": "__main__"})


@pytest.mark.parametrize("block", BASH, ids=str)
def test_commands(block: Block, workplace: Path, tools: Tools) -> None:
    for words in block.commands:
        check_command(words, tools)
    if block.reason is not None:
        return
    for words in block.commands:
        if (called := tool_of(words)) is not None and words[0] != "torchrun":
            name, arguments = called
            arguments = [*arguments, *(SHORT if name == "train" else [])]
            command = tools.command(name)
            command(tools.arguments(name, arguments), prog_name=name, standalone_mode=False)
        elif words[:2] == ["python", "-m"]:
            subprocess.run([sys.executable, *words[1:]], check=True, capture_output=True)


@pytest.mark.parametrize(("page", "words"), inline_commands(), ids=lambda value: str(value)[:60])
def test_commands_in_the_text(page: str, words: list[str], tools: Tools) -> None:
    check_command(words, tools)


def test_reasons_are_reasons() -> None:
    """A marker belongs to a block, and says something."""
    for page in PAGES:
        markers = len(re.findall("^<!-- not run", page.read_text(encoding="utf-8"), flags=re.M))
        marked = [block for block in BLOCKS if block.page == page and block.reason is not None]
        assert markers <= len(marked), page
    with pytest.raises(ConfigError):
        load_config(ROOT / "configs" / "demo.yaml", ["train.nothing=1"])


def test_pictures_and_pages_are_there() -> None:
    for page in PAGES:
        text = re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
        for target in re.findall(r"\]\(([^)#\s]+)(?:#[^)]*)?\)", text):
            if not target.startswith("http"):
                assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_every_page_is_in_the_manual() -> None:
    index = (ROOT / "docs" / "index.md").read_text(encoding="utf-8").splitlines()
    assert {path.stem for path in (ROOT / "docs").glob("*.md")} - {"index"} <= set(index)


def test_every_operation_is_in_the_reference() -> None:
    text = (ROOT / "docs" / "ops.md").read_text(encoding="utf-8")
    assert set(ops.__all__) <= set(re.findall(r"autofunction:: (\w+)", text))


def test_tiny_data_is_what_it_should_be(stage: Path) -> None:
    frames = KittiDataset(stage / "data" / "simulated", "val", require_labels=True)
    assert frames.frame_ids == ["000600", "000601"] and frames[0].names == ["Car", "Car"]
