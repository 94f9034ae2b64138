"""What others offer for the same work. Every peer is optional; a missing one is None."""

from __future__ import annotations

import importlib
import warnings
from types import ModuleType


def _module(name: str) -> ModuleType | None:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except (ImportError, OSError):
        return None


torch_scatter = _module("torch_scatter")
numba = _module("numba")
shapely = _module("shapely")
spconv = _module("spconv.pytorch.utils")
numba_segment_max = numba_scatter_max = None

if numba is not None:

    @numba.njit(parallel=True, cache=True)
    def numba_segment_max(src, offsets, out, arg):
        """Largest value and its row for each group: groups in parallel, each row read once."""
        rows, channels = src.shape
        for group in numba.prange(len(offsets) - 1):
            begin, end = offsets[group], offsets[group + 1]
            if begin == end:
                out[group] = 0
                arg[group] = rows
                continue
            for c in range(channels):
                out[group, c] = src[begin, c]
                arg[group, c] = begin
            for row in range(begin + 1, end):
                for c in range(channels):
                    if src[row, c] > out[group, c]:
                        out[group, c] = src[row, c]
                        arg[group, c] = row

    @numba.njit(cache=True)
    def numba_scatter_max(src, index, out, arg):
        """The same for rows in any order, on one thread: groups are filled as rows come."""
        rows, channels = src.shape
        arg[:] = rows
        for row in range(rows):
            group = index[row]
            for c in range(channels):
                if arg[group, c] == rows or src[row, c] > out[group, c]:
                    out[group, c] = src[row, c]
                    arg[group, c] = row
        for group in range(len(out)):
            for c in range(channels):
                if arg[group, c] == rows:
                    out[group, c] = 0
