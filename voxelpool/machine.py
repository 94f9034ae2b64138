"""The machine that something is measured on, and the memory that it takes there."""

from __future__ import annotations

import gc
import math
import multiprocessing
import platform
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch


def cpu_name() -> str:
    """What the processor calls itself."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def peak_memory(prepare: Callable[..., Callable[[], Any]], *arguments: Any) -> float:
    """MB by which a fresh process grows at most while it does something; NaN where none can tell.

    Args:
        prepare: a function of a module; what it returns is run and measured.
        arguments: of ``prepare``.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    threads = torch.get_num_threads()
    process = context.Process(target=_report_growth, args=(theirs, threads, prepare, arguments))
    process.start()
    theirs.close()
    try:
        return float(ours.recv())
    except EOFError:  # it was ended, for want of memory perhaps
        return math.nan
    finally:
        process.terminate()
        process.join()
        ours.close()


def _report_growth(
    connection: Connection,
    threads: int,
    prepare: Callable[..., Callable[[], Any]],
    arguments: tuple[Any, ...],
) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who asked ends this process
    torch.set_num_threads(threads)
    run = prepare(*arguments)
    gc.collect()
    try:
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from here
        before = _memory("VmRSS")
        run()
        grown = _memory("VmHWM") - before
    except OSError:
        grown = math.nan
    connection.send(grown)
    connection.close()


def _memory(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next((float(line.split()[1]) / 1e3 for line in lines if line.startswith(name)), math.nan)
