"""What is said of the machine, and of the memory that work takes."""

from __future__ import annotations

import functools
import math
import operator

import pytest

from voxelpool.machine import cpu_name, peak_memory


@pytest.mark.slow
def test_peak_memory_is_what_the_work_takes() -> None:
    megabytes = peak_memory(functools.partial, operator.mul, b"x", 50_000_000)
    if not math.isnan(megabytes):
        assert 45 < megabytes < 60


def test_the_processor_has_a_name() -> None:
    assert cpu_name().strip() == cpu_name() != ""
