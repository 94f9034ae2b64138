"""tools/report.py: page, tables, pictures and figures, and what it says to bad input."""

from __future__ import annotations

import base64
import io
import json
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from voxelpool.config import ClassifierConfig, Config
from voxelpool.datasets.kitti import KittiObjects, read_label, write_result
from voxelpool.evaluation import evaluate
from voxelpool.training import Run, fit, new_run

RunTool = Callable[..., tuple[int, str, str]]

IDS = ("000004", "000005")
METRICS = """epoch,lr-AdamW,step,train/loss,train/residual,val/3d,val/Car/3d/moderate
,0.001,0,,,,
0,,0,4.0,2.0,,
,0.002,1,,,,
0,,1,2.0,1.0,,
0,,1,,,37.5,37.5
,0.001,2,,,,
1,,2,1.0,0.5,,
1,,2,,,62.5,62.5
"""


class Page(HTMLParser):
    """What a browser would load and show: pictures, links, tables by title, and all text."""

    VOID = ("meta", "img", "source", "br", "link")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.pictures: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.tags: list[str] = []
        self.tables: dict[str, list[list[str]]] = {}
        self.words = ""
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._title = ""
        self.feed(text)
        self.close()
        assert not self._open, f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.pictures += [given[name] or "" for name in ("src", "srcset") if name in given]
        self.links += [given["href"] or ""] if "href" in given else []
        self.ids += [given["id"] or ""] if "id" in given else []
        if tag == "img":
            assert given["alt"], "a picture without words"
        if tag not in self.VOID:
            self._open.append(tag)
        if tag == "table":
            self._rows, self._title = [], ""
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self.tables[self._title] = self._rows

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self._rows[-1][-1] += data
        if self._open and self._open[-1] == "caption":
            self._title += data
        if self._open and self._open[-1] != "style":
            self.words += data


def read_page(folder: Path) -> Page:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.pictures, "no pictures"
    for source in page.pictures:
        kind, _, data = source.partition(",")
        assert kind == "data:image/png;base64"
        assert Image.open(io.BytesIO(base64.b64decode(data, validate=True))).width > 100
    assert set(page.links) == {f"#{name}" for name in page.ids}
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"https?:|url\(|@import", text)
    return page


def error(code: int, err: str) -> str:
    assert code == 1, err
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in err
    return line


def scored(objects: KittiObjects) -> KittiObjects:
    """Each object with a score of its own."""
    objects.score = objects.location[:, 2] / 50
    return objects


@pytest.fixture
def run(tiny_config: Config, tmp_path: Path) -> Path:
    """The folder of a training as it would be, but for its checkpoints."""
    folder = new_run(tiny_config, tmp_path / "run").folder
    (folder / "metrics.csv").write_text(METRICS)
    return folder


@pytest.fixture
def results(tiny_kitti: Path, tmp_path: Path) -> Path:
    """The labels of the validation split as results."""
    folder = tmp_path / "results"
    folder.mkdir()
    for frame_id in IDS:
        objects = read_label(tiny_kitti / "training" / "label_2" / f"{frame_id}.txt")
        write_result(folder / f"{frame_id}.txt", scored(objects))
    return folder


def report(run_tool: RunTool, *arguments: object, out: Path) -> tuple[Page, dict, str]:
    figures = out.with_suffix(".json")
    code, text, err = run_tool("report", *arguments, "-o", out, "--json", figures)
    assert code == 0, err
    return read_page(out), json.loads(figures.read_text()), text


def test_perfect_results(
    run_tool: RunTool, run: Path, results: Path, tiny_kitti: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    page, figures, text = report(run_tool, run, "--results", results, out=out)
    assert figures["frames"] == 2 and figures["objects"] == {"Car": [4, 4, 4]}
    for what in ("distance", "points"):
        for kind in ("strict", "loose"):
            own = figures["bands"]["Car"][what][kind]
            assert sum(band["objects"] for band in own) == 4
            for band in own:
                assert band["hits"] == band["objects"] and band["false_alarms"] == 0
                assert band["recall"] == 1 and band["average_precision"] == pytest.approx(100)
    # 150 points fill each box; the ground adds a few.
    assert {band["low"] for band in figures["bands"]["Car"]["points"]["strict"]} <= {100, 300}
    folder = tiny_kitti / "training" / "label_2"
    labels = [read_label(folder / f"{frame_id}.txt") for frame_id in IDS]
    expected = evaluate(labels, [scored(objects) for objects in labels], ["Car"]).to_dict()
    assert figures["average_precision"]["strict"] == expected
    table = page.tables["Average precision, %, at the overlap of the class"]
    assert table[0][3:] == [
        f"{r} {d}" for r in ("R40", "R11") for d in ("easy", "moderate", "hard")
    ]
    rows = {tuple(row[:3]): row[3:] for row in table[1:]}
    for metric, own in expected["Car"].items():
        values = [f"{value:.2f}" for value in (*own["R40"], *own["R11"])]
        assert rows["Car", "0.7", metric.upper()] == values
    assert page.tables["Objects that count"][1] == ["Car", "4", "4", "4"]
    for heading in ("distance", "points in the box"):
        for row in page.tables[f"Car, 3D, by {heading}"][1:]:
            assert row[2:] == [row[1], "0", "100.00", "100.00"] * 2
    assert page.tables["Where precision and recall balance best"][1][2:] == [
        "4", "0", "0", "100.00", "100.00", "100.00",
    ]  # fmt: skip
    logged = {row[0]: row[1:] for row in page.tables["All that was logged"][1:]}
    assert logged["train/loss"] == ["4", "1", "1", "4"]
    assert logged["val/3d"] == ["37.5", "62.5", "37.5", "62.5"]
    assert figures["training"]["lr-AdamW"] == 0.001

    names = {path.name for path in out.iterdir()}
    assert {"report.html", "loss.png", "learning_rate.png", "validation.png"} <= names
    assert {"precision_car_3d_strict.png", "distance_car.png", "scores_car.png"} <= names
    assert sum(name.startswith(("best_", "worst_")) for name in names) == 2
    assert all(str(out / name) in text for name in names)
    # Beside the inlined pictures, light and dark charts and the two frames, lie the light ones.
    assert len(page.pictures) == 2 * (len(names) - 1) - 2


def test_the_curve_is_what_average_precision_is_the_mean_of(
    run_tool: RunTool, run: Path, results: Path, tmp_path: Path
) -> None:
    _, figures, _ = report(run_tool, run, "--results", results, out=tmp_path / "out")
    for kind in ("strict", "loose"):
        for metric, curve in figures["precision_recall"][kind]["Car"].items():
            assert curve["recall"] == pytest.approx([k / 40 for k in range(41)])
            for place, difficulty in enumerate(("easy", "moderate", "hard")):
                mean = 100 * sum(curve[difficulty][1:]) / 40
                own = figures["average_precision"][kind]["Car"][metric]["R40"][place]
                assert own == pytest.approx(mean)


def test_a_missed_car_shows_where_it_is(
    run_tool: RunTool, run: Path, results: Path, tmp_path: Path
) -> None:
    path = results / "000005.txt"
    lines = path.read_text().splitlines()
    depths = [float(line.split()[13]) for line in lines]
    far = depths.index(max(depths))
    path.write_text("".join(f"{line}\n" for row, line in enumerate(lines) if row != far))
    page, figures, _ = report(run_tool, run, "--results", results, out=tmp_path / "out")
    for band in figures["bands"]["Car"]["distance"]["strict"]:
        share = 0.5 if band["low"] <= depths[far] < (band["high"] or 1e9) else 1
        assert band["recall"] == share, band
        assert band["average_precision"] == pytest.approx(100 * share)
    assert [frame["frame"] for frame in figures["worst_frames"]] == ["000005"]
    assert figures["worst_frames"][0]["missed"] == 1
    assert figures["best_frames"][0] | {"found": 2, "missed": 0} == figures["best_frames"][0]
    assert "000005, worst 1: 1 found, 1 missed, 0 false, F1 67 %" in page.words


def test_nothing_found(run_tool: RunTool, run: Path, results: Path, tmp_path: Path) -> None:
    for path in results.iterdir():
        path.write_text("")
    page, figures, _ = report(
        run_tool, run, "--results", results, "--frames", "0", out=tmp_path / "out"
    )
    assert figures["average_precision"] == {"strict": {}, "loose": {}}
    assert "Never detected, and therefore not evaluated: Car" in page.words
    assert all(band["recall"] == 0 for band in figures["bands"]["Car"]["distance"]["strict"])
    assert figures["scores"]["Car"]["best_score"] is None
    assert not list((tmp_path / "out").glob("best_*"))


def test_detecting_agrees_with_evaluate(
    run_tool: RunTool, tiny_config: Config, tmp_path: Path
) -> None:
    train = tiny_config.train.model_copy(update={"epochs": 1, "val_every": 1})
    run = new_run(tiny_config.model_copy(update={"train": train}), tmp_path / "trained")
    fit(tiny_config.model_copy(update={"train": train}), run, progress=False)
    any_score = "postprocess.score_threshold=0"
    figures, found = tmp_path / "ap.json", tmp_path / "found"
    code, _, err = run_tool(
        "evaluate", run.config_path, any_score, "--checkpoint", run.best, "--json", figures,
        "--results", found,
    )  # fmt: skip
    assert code == 0, err
    _, detected, _ = report(run_tool, run.folder, any_score, out=tmp_path / "a")
    assert detected["average_precision"]["strict"] == json.loads(figures.read_text())
    _, read, _ = report(run_tool, run.folder, "--results", found, out=tmp_path / "b")
    assert read["bands"]["Car"]["distance"].keys() == detected["bands"]["Car"]["distance"].keys()
    assert read["average_precision"]["strict"]["Car"]["3d"]["R40"] == pytest.approx(
        detected["average_precision"]["strict"]["Car"]["3d"]["R40"], abs=1e-2
    )


def test_a_classifier(
    run_tool: RunTool, tiny_classifier: ClassifierConfig, results: Path, tmp_path: Path
) -> None:
    run = new_run(tiny_classifier, tmp_path / "trained")
    fit(tiny_classifier, run, progress=False)
    scores = tmp_path / "scores.json"
    code, _, err = run_tool("evaluate", run.config_path, "--checkpoint", run.best, "--json", scores)
    assert code == 0, err
    page, figures, _ = report(run_tool, run.folder, out=tmp_path / "out")
    expected = json.loads(scores.read_text())
    assert {key: figures[key] for key in expected} == expected
    assert [row[1:] for row in page.tables["Confusion, objects"][1:]] == [
        [str(count) for count in row] for row in expected["confusion"]
    ]
    assert page.tables["Classes"][1][2] == f"{100 * next(iter(expected['recall'].values())):.2f}"
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"confusion.png", "loss.png", "accuracy.png", "train_accuracy.png"} <= names
    code, _, err = run_tool("report", run.folder, "--results", results, "-o", tmp_path / "o")
    assert "is a classifier; --results and --precision are for detectors" in error(code, err)


def test_an_earlier_report_is_kept_or_replaced_whole(
    run_tool: RunTool, run: Path, results: Path, tmp_path: Path
) -> None:
    arguments = ("report", run, "--results", results, "--frames", "1")
    code, _, err = run_tool(*arguments)
    assert code == 0, err
    out = run / "report"
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    code, _, err = run_tool(*arguments)
    assert f"{out}: already exists and is not overwritten" in error(code, err)
    (out / "worst_9_000009.png").write_bytes(b"of an earlier report")
    code, _, err = run_tool(*arguments, "--overwrite")
    assert code == 0, err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "notes.txt").write_text("mine")
    code, _, err = run_tool(*arguments, "--overwrite")
    assert f"{out}: is not overwritten, as notes.txt in it is no part of a report" in error(
        code, err
    )
    (out / "notes.txt").unlink()
    (out / "report.html").unlink()
    code, _, err = run_tool(*arguments, "--overwrite")
    assert f"{out}: is not overwritten, as it holds no report.html" in error(code, err)
    assert (out / "loss.png").is_file()
    assert not [path for path in run.iterdir() if path.name.startswith(".")]


def test_what_is_missing_is_named(
    run_tool: RunTool, run: Path, results: Path, tmp_path: Path
) -> None:
    def fails(*arguments: object) -> str:
        code, _, err = run_tool("report", *arguments, "-o", tmp_path / "out")
        assert not (tmp_path / "out").exists()
        return error(code, err)

    assert f"{tmp_path / 'none'}: no such folder of a training" in fails(tmp_path / "none")
    best = run / "checkpoints" / "best.ckpt"
    assert f"{best}: no such checkpoint, nor last.ckpt beside it" in fails(run)
    assert "elsewhere.ckpt" in fails(run, "--checkpoint", tmp_path / "elsewhere.ckpt")
    both = ("--results", results, "--checkpoint", best)
    assert "--results and --checkpoint: give one of them" in fails(run, *both)
    assert f"{tmp_path / 'none'}: no such folder of results" in fails(
        run, "--results", tmp_path / "none"
    )
    root = tmp_path / "no_data"
    assert f"{root}/training/velodyne: no such folder" in fails(
        run, f"data.root={root}", "--results", results
    )
    (results / "000005.txt").unlink()
    line = fails(run, "--results", results)
    assert f"{results / '000005.txt'}: no such result file (1 of the 2 frames" in line
    text = METRICS.replace("1,,2,1.0,0.5", "1,,2,much,0.5")
    (run / "metrics.csv").write_text(text)
    line = fails(run, "--results", results)
    assert f"{run / 'metrics.csv'}:8: train/loss is 'much', which is no number" in line
    (run / "metrics.csv").write_text("a,b\n1,2\n")
    assert "has no column 'step'" in fails(run, "--results", results)
    (run / "metrics.csv").unlink()
    assert f"{run / 'metrics.csv'}: no such file" in fails(run, "--results", results)
    Run(run).config_path.unlink()
    assert f"{run / 'config.yaml'}: no such file" in fails(run, "--results", results)


def test_help_shows_an_example(run_tool: RunTool) -> None:
    code, out, _ = run_tool("report", "--help")
    assert code == 0 and "Example: python tools/report.py runs/demo" in out
