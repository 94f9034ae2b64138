"""tools/evaluate.py as a user runs it: table, JSON, messages and exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

TOOLS = Path(__file__).parents[2] / "tools"

CAR = "Car 0.00 0 0.10 100.00 150.00 200.00 200.00 1.50 1.60 4.00 0.00 1.60 20.00 0.00"
PEDESTRIAN = (
    "Pedestrian 0.00 0 0.10 300.00 150.00 330.00 220.00 1.70 0.60 0.80 5.00 1.60 15.00 0.00"
)
ALONE = [pytest.approx(100 / 11)] * 3  # one hit at the top: one slot of eleven
NOTHING = [0.0] * 3


@pytest.fixture
def folders(tmp_path):
    """Three labelled frames, two of which have results."""
    labels, results = tmp_path / "label_2", tmp_path / "results"
    labels.mkdir()
    results.mkdir()
    (labels / "000000.txt").write_text(f"{CAR}\n{PEDESTRIAN}\n")
    (labels / "000001.txt").write_text("")
    (labels / "000002.txt").write_text(f"{CAR}\n")
    (results / "000000.txt").write_text(f"{CAR} 0.90\n")
    (results / "000001.txt").write_text(f"{CAR} 0.95\n")
    return labels, results


@pytest.fixture
def tool(run_tool, folders):
    """Runs the tool on the folders; returns exit code, stdout and stderr."""

    def run(*arguments, labels=folders[0], results=folders[1]):
        return run_tool("evaluate", "--labels", labels, "--results", results, *arguments)

    return run


def error_line(code, err):
    assert code == 1
    (line,) = [line for line in err.splitlines() if line.startswith("error:")]
    return line


def test_table_and_json(tool, tmp_path):
    path = tmp_path / "ap.json"
    code, out, _ = tool("--json", path)
    assert code == 0
    # The alarm of frame 1 stands above the hit of frame 0: precision 1/2.
    half = {"R40": NOTHING, "R11": [pytest.approx(50 / 11)] * 3}
    assert json.loads(path.read_text()) == {"Car": dict.fromkeys(("3d", "bev", "2d", "aos"), half)}
    assert "2 frames" in out
    rows = [line.split() for line in out.splitlines()]
    assert ["Car", "0.7", "3D", "0.00", "0.00", "0.00", "4.55", "4.55", "4.55"] in rows
    assert ["BEV", "0.00", "0.00", "0.00", "4.55", "4.55", "4.55"] in rows
    assert "not evaluated, as never detected: Pedestrian, Cyclist" in out
    assert str(path) in out
    assert [p.name for p in tmp_path.iterdir() if p.suffix] == ["ap.json"]


def test_fits_a_terminal_of_80_columns(tool, folders, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    lines = [f"{CAR.replace('Car', name)} 0.9" for name in ("Car", "Person_sitting")]
    (folders[1] / "000000.txt").write_text("\n".join(lines))
    code, out, _ = tool("--classes", "Car", "Person_sitting")
    assert code == 0
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_split_chooses_frames(tool, folders, tmp_path):
    split, path = tmp_path / "val.txt", tmp_path / "ap.json"
    split.write_text("000000\n000002\n")
    code, out, err = tool("--split", split, "--json", path)
    assert code == 0
    assert json.loads(path.read_text())["Car"]["3d"]["R11"] == ALONE
    assert "1 frame" in out
    assert "warning:" in err
    assert "1 of the 2 frames" in err
    assert "000002.txt" in err
    split.write_text("000002\n")
    code, _, err = tool("--split", split)
    assert f"{folders[1]}: holds no result file of a frame of {split}" in error_line(code, err)


def test_options_take_several_values(tool, folders, tmp_path):
    # The car is moved by a quarter of its length: overlap .6. The pedestrian fits.
    moved = CAR.replace("0.00 1.60 20.00", "1.00 1.60 20.00").replace("100.00 150", "125.00 150")
    moved = moved.replace("200.00 200.00", "225.00 200.00")
    (folders[1] / "000000.txt").write_text(f"{moved} 0.9\n{PEDESTRIAN} 0.8\n")
    (folders[1] / "000001.txt").write_text("")
    path = tmp_path / "ap.json"
    for classes in (["--classes", "Car", "Pedestrian"], ["--classes=Pedestrian", "--classes=Car"]):
        for overlaps, hit in (
            (["--min-iou", "Car=0.55", "Pedestrian=0.9"], ALONE),
            (["--min-iou", "Pedestrian=0.9", "--min-iou=Car=0.65"], NOTHING),
            ([], NOTHING),
        ):
            code, out, _ = tool(*classes, *overlaps, "--json", path)
            assert code == 0
            found = json.loads(path.read_text())
            assert set(found) == {"Car", "Pedestrian"}
            assert found["Car"]["bev"]["R11"] == hit
            assert found["Pedestrian"]["bev"]["R11"] == ALONE
            assert (" 0.55 " in out) == ("Car=0.55" in overlaps)


def test_frames_without_detections(tool, folders, tmp_path):
    for path in folders[1].iterdir():
        path.write_text("")
    path = tmp_path / "ap.json"
    code, out, _ = tool("--json", path)
    assert code == 0
    assert json.loads(path.read_text()) == {}
    assert "never detected: Car, Pedestrian, Cyclist" in out


def test_missing_folders_and_files(tool, folders, tmp_path):
    labels, results = folders
    code, _, err = tool(labels=tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}: no such folder (--labels)" in error_line(code, err)
    code, _, err = tool(results=tmp_path / "nowhere")
    assert f"{tmp_path / 'nowhere'}: no such folder (--results)" in error_line(code, err)
    code, _, err = tool("--split", tmp_path / "val.txt")
    assert str(tmp_path / "val.txt") in error_line(code, err)
    (labels / "000001.txt").unlink()
    code, _, err = tool()
    line = error_line(code, err)
    assert f"{labels / '000001.txt'}: no such label file" in line
    assert "1 of 2 results have no label" in line
    for path in results.iterdir():
        path.unlink()
    code, _, err = tool()
    assert f"{results}: holds no result file" in error_line(code, err)


def test_malformed_files_are_named_with_their_line(tool, folders):
    labels, results = folders
    (results / "000001.txt").write_text(f"{CAR} 0.9\n{CAR}\n")
    code, _, err = tool()
    line = error_line(code, err)
    assert f"{results / '000001.txt'}:2" in line
    assert "16 columns, found 15" in line
    (labels / "000000.txt").write_text(f"{CAR.rsplit(' ', 1)[0]}\n")
    code, _, err = tool()
    line = error_line(code, err)
    assert f"{labels / '000000.txt'}:1" in line
    assert "15 columns, found 14" in line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--classes", "Car", "Bus"], "unknown class 'Bus'; known are Car, "),
        (["--min-iou", "Bus=0.5"], "unknown class 'Bus'"),
        (["--min-iou", "Car=0.5", "0.7"], "such as Car=0.5, got '0.7'"),
        (["--min-iou", "Car=much"], "such as Car=0.5, got 'Car=much'"),
        (["--min-iou", "Car=70"], "minimum overlap of Car must be in [0, 1), got 70"),
    ],
)
def test_bad_options_are_named(tool, arguments, message):
    code, _, err = tool(*arguments)
    assert message in error_line(code, err)


def test_json_that_cannot_be_written(tool, tmp_path):
    path = tmp_path / "missing" / "ap.json"
    code, out, err = tool("--json", path)
    assert str(path) in error_line(code, err)
    assert "Car" in out  # the table is not lost


def test_help_shows_an_example_and_usage_errors_exit_with_2(tool):
    code, out, _ = tool("--help")
    assert code == 0
    assert "Example: python tools/evaluate.py" in out
    code, _, err = tool("--no-such-option")
    assert code == 2
    assert "no-such-option" in err


def test_as_a_program(folders):
    command = [sys.executable, TOOLS / "evaluate.py", "--labels", folders[0], "--results"]
    done = subprocess.run([*command, folders[1]], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "Car" in done.stdout
