"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


@pytest.fixture(
    params=[
        "cpu",
        pytest.param(
            "cuda",
            marks=[
                pytest.mark.cuda,
                pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
            ],
        ),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    """The devices that kernels must agree on."""
    return torch.device(request.param)


def _folder_from_environment(variable: str, what: str) -> Path:
    value = os.environ.get(variable)
    if not value:
        pytest.skip(f"{variable} is not set: it names {what}")
    folder = Path(value)
    if not folder.is_dir():
        pytest.fail(f"{variable} is set to {folder}, which is no folder")
    return folder


@pytest.fixture(scope="session")
def kitti_sample() -> Path:
    """A folder with real frames in KITTI's layout."""
    return _folder_from_environment("KITTI_SAMPLE_DIR", "a folder of real frames")


@pytest.fixture(scope="session")
def kitti_eval_cases() -> Path:
    """A folder of label/result sets with the figures of the devkit's evaluator."""
    return _folder_from_environment("KITTI_EVAL_CASES", "a folder of evaluation cases")
