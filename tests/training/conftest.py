"""Tiny networks train faster on one thread than on several."""

from __future__ import annotations

import multiprocessing
import os
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from voxelpool.training import distributed


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def together(tmp_path: Path) -> Callable[..., list[Any]]:
    """Calls a function in several processes as torchrun would; returns what each of them gives."""

    def call(function: Callable[[], Any], processes: int = 2) -> list[Any]:
        port, folder = free_port(), Path(tempfile.mkdtemp(dir=tmp_path))
        context = multiprocessing.get_context("fork")
        children = [
            context.Process(
                target=_as_one_of, args=(function, rank, processes, port, folder / f"{rank}.pt")
            )
            for rank in range(processes)
        ]
        for child in children:
            child.start()
        for child in children:
            child.join(timeout=300)
            if child.is_alive():
                child.kill()
        assert [child.exitcode for child in children] == [0] * processes
        return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(processes)]

    return call


def _as_one_of(
    function: Callable[[], Any], rank: int, processes: int, port: int, path: Path
) -> None:
    os.environ |= {
        "TORCHELASTIC_RUN_ID": "test",
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0",
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    with distributed.joined():
        result = function()
    torch.save(result, path)
