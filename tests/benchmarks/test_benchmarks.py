"""Every benchmark runs in its tiny form, and its contenders agree before they are timed."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from voxelpool.config import Config, save_config

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
FAMILIES = {"pool", "voxelize", "boxes", "vfe", "pyramid", "sparse", "voxelnet", "family"}


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(BENCHMARKS / f"{script}.py"), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def quick_results(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results file of all families in their tiny form, its curves beside it."""
    path = tmp_path_factory.mktemp("benchmarks") / "results.json"
    run("run_all", "--quick", "--repeats", 1, "--threads", 1, "--json", path)
    return path


def check_report(report: dict[str, Any]) -> None:
    assert report["bandwidth"]["copy_gb_per_s"] > 0
    assert {"date", "cpu", "cores", "threads", "versions"} <= set(report["environment"])
    assert report["environment"]["versions"]["torch"] == torch.__version__
    assert report["results"]
    for result in report["results"]:
        first, *others = result["contenders"]
        assert first["name"].startswith("voxelpool") and first["ratio"] == 1
        assert set(result["goals"]) <= {"torch-scatter", "copying as many bytes"} | {
            other["name"] for other in others
        }
        for contender in result["contenders"]:
            if not contender.get("missing"):
                assert 0 < contender["min_ms"] <= contender["median_ms"]
                assert contender["repeats"] >= 1
        if result["curve"] is None:  # at least one peer, whose result was compared
            assert any(other.get("difference") is not None for other in others), result["title"]


@pytest.mark.slow
def test_every_benchmark_runs(quick_results: Path) -> None:
    report = json.loads(quick_results.read_text())
    check_report(report)
    assert {result["family"] for result in report["results"]} == FAMILIES


@pytest.mark.slow
def test_results_become_tables_and_curves(quick_results: Path, load) -> None:
    curve = quick_results.with_name("results-voxelize-points.png")
    assert curve.stat().st_size > 1000
    text = load("_tables").markdown(json.loads(quick_results.read_text()))
    assert "### voxelize" in text and "| numpy.unique (no sampling) |" in text


@pytest.mark.slow
def test_a_benchmark_runs_alone(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    run("bench_voxelize", "--quick", "--repeats", 1, "--threads", 1, "--json", path)
    check_report(json.loads(path.read_text()))


def test_results_are_not_overwritten(tmp_path: Path, load) -> None:
    taken = tmp_path / "mine.json"
    taken.write_text("mine")
    command = [sys.executable, str(BENCHMARKS / "run_all.py"), "--quick", "--json", str(taken)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode != 0
    assert "mine.json: already exists" in done.stderr
    assert taken.read_text() == "mine"
    run_all = load("run_all")
    run_all.RESULTS = tmp_path
    assert run_all._unused("mine").name == "mine-2.json"
    assert run_all._unused("cpu").name == "cpu.json"


def test_a_contender_with_another_result_is_not_timed(load) -> None:
    measure = load("_measure")
    right, wrong = torch.ones(3), torch.tensor([1.0, 1.0, 1.1])

    def case(other: torch.Tensor, tolerance: float = 0.0):
        first = measure.Contender("voxelpool", lambda: right, lambda out: [out])
        peer = measure.Contender("peer", lambda: other, lambda out: [out], tolerance)
        return measure.Case("work", [first, peer])

    setting = measure.Setting(repeats=2)
    for other in (wrong, right[:2], right * torch.nan):
        with pytest.raises(measure.Disagreement, match="peer"):
            measure.measure(case(other), setting)
    row = measure.measure(case(wrong, 0.2), setting)["contenders"][1]
    assert row["repeats"] == 2 and row["difference"] == pytest.approx(0.1)


def test_a_missing_peer_is_named(load) -> None:
    measure, tables = load("_measure"), load("_tables")
    first = measure.Contender("voxelpool", lambda: torch.ones(1), lambda out: [out])
    case = measure.Case("work", [first, measure.Contender("peer", None)], goals={"peer": 2.0})
    rows = tables.rows(measure.measure(case, measure.Setting(repeats=1)))
    assert rows[1][:2] == ["peer", "not here"]


@pytest.mark.parametrize("name", ["VOXELNET", "SECOND", "POINTPILLARS"])
def test_the_plain_network_is_the_same_in_float64(load, name: str) -> None:
    bench, plain = load("bench_detectors"), load("_plain")
    points, _ = bench.sweep(True, 800)
    net = bench.detector(getattr(bench, name), points, quick=True).double().train()
    voxels, doubles = net.voxelize(points), points.double()
    found = []
    for predictions in (net.predict(doubles, voxels), plain.PlainDetector(net)(doubles)):
        outputs = [part for part in predictions if part is not None]
        loss = sum(
            (part * torch.linspace(0, 1, part.numel()).view_as(part)).sum() + part.square().sum()
            for part in outputs
        )
        found.append([*outputs, *torch.autograd.grad(loss, list(net.parameters()))])
    for ours, theirs in zip(*found, strict=True):
        scale = float(theirs.detach().abs().max())
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-9 * scale)


def test_training_speed(tiny_config: Config, tmp_path: Path) -> None:
    config, report = tmp_path / "tiny.yaml", tmp_path / "report.json"
    save_config(tiny_config, config)
    out = run("training", config, "--quick", "--threads", 1, "--workers", 0, "--json", report)
    assert "the loader" in out
    loader, model = json.loads(report.read_text())["results"]
    assert loader["what"] == "loader, 0 workers" and model["what"] == "model, 32, cpu"
    assert loader["frames_per_second"] > 0 and model["frames_per_second"] > 0
    assert model["peak_mb"] > 0
