"""What a user sees first: the import, and the report of what is installed."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import voxelpool


def run_python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "VOXELPOOL_REQUIRE_NATIVE": "0", **environment},
        check=False,
    )


def test_the_report_names_versions_and_parts():
    report = voxelpool.show_config()
    assert report["voxelpool"] == voxelpool.__version__
    assert isinstance(report["compiled"]["present"], bool)
    assert isinstance(report["compiled"]["cuda_architectures"], list)
    assert report["packages"]["torch"]
    text = str(report)
    for word in ("torch", "cuda_architectures", "open3d", "spconv", "gpu", "compiler"):
        assert word in text


def test_the_module_prints_the_report():
    result = subprocess.run(
        [sys.executable, "-m", "voxelpool"], capture_output=True, text=True, check=True
    )
    assert result.stdout.startswith("voxelpool ")
    assert "packages:" in result.stdout


def test_import_loads_nothing_heavy():
    result = run_python("import sys, voxelpool; print('torch' in sys.modules)")
    assert result.stdout.strip() == "False", result.stderr
    code = "import sys, voxelpool.ops; print('open3d' in sys.modules, 'spconv' in sys.modules)"
    assert run_python(code).stdout.strip() == "False False"


WITHOUT_NATIVE = "import sys; sys.modules['voxelpool._C'] = None\n"


def test_ops_work_without_the_compiled_part():
    code = WITHOUT_NATIVE + (
        "import torch, voxelpool\n"
        "x = torch.randn(5, 3, requires_grad=True)\n"
        "out, arg = voxelpool.ops.segment_max(x, torch.tensor([0, 2, 2, 5]))\n"
        "out.sum().backward()\n"
        "assert arg[1].tolist() == [5] * 3 and x.grad.sum() == 6\n"
        "grid = voxelpool.structures.VoxelGrid((0, 0, 0, 4, 4, 4), (1, 1, 1))\n"
        "voxels = voxelpool.ops.voxelize(x.detach().abs(), grid, max_points=1)\n"
        "assert voxels.num_points == voxels.num_voxels > 0\n"
        "print(voxelpool.show_config()['compiled']['present'])\n"
    )
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "False"


def test_a_missing_compiled_part_is_an_error_where_it_is_required():
    result = run_python(WITHOUT_NATIVE + "import voxelpool.ops", VOXELPOOL_REQUIRE_NATIVE="1")
    assert result.returncode != 0
    assert "VOXELPOOL_REQUIRE_NATIVE is set" in result.stderr
    report = run_python(
        WITHOUT_NATIVE + "import voxelpool; print(voxelpool.show_config())",
        VOXELPOOL_REQUIRE_NATIVE="1",
    )
    assert "present        no" in report.stdout, report.stderr


def test_an_unknown_part_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'pooling'"):
        _ = voxelpool.pooling
    assert {"ops", "structures", "show_config"} <= set(dir(voxelpool))
