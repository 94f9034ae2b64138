"""The threads that the kernels share with torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading

import pytest
import torch

from voxelpool import ops


def run_python(code: str) -> str:
    """Runs code in a process of its own; what it printed."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_child_pools_with_threads_of_its_own():
    """Of the parent's threads none lives on in the child: whoever waited for them would hang."""
    out = run_python("""
        import os, torch
        from voxelpool import ops
        torch.set_num_threads(4)
        src, offsets = torch.randn(40000, 16), torch.arange(0, 40001, 4)
        expected = ops.segment_max(src, offsets)  # starts the parent's threads
        (src + src).sum()
        child = os.fork()
        if child == 0:
            pooled = ops.segment_max(src, offsets)
            # By numpy: the threads of torch itself do not outlive a fork.
            same = all((a.numpy() == b.numpy()).all() for a, b in zip(pooled, expected))
            os._exit(0 if same else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert out.strip() == "0"


@pytest.mark.skipif(sys.platform == "win32", reason="there is no fork")
def test_a_forked_child_pools_where_the_parent_only_ran_torch():
    out = run_python("""
        import os, torch
        from voxelpool import ops
        torch.set_num_threads(4)
        src, offsets = torch.randn(40000, 16), torch.arange(0, 40001, 4)
        (src + src).sum()  # starts torch's threads
        child = os.fork()
        if child == 0:
            pooled = ops.segment_max(src, offsets)[0].numpy()
            same = (pooled == src.numpy().reshape(10000, 4, 16).max(1)).all()
            os._exit(0 if same else 3)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
    """)
    assert out.strip() == "0"


def test_callers_at_the_same_time_do_not_disturb_each_other():
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        inputs = [torch.randn(30000, 8) for _ in range(4)]
        offsets = torch.arange(0, 30001, 3)
        expected = [src.view(10000, 3, 8).amax(1) for src in inputs]
        wrong = []

        def pool(src: torch.Tensor, wanted: torch.Tensor) -> None:
            for _ in range(20):
                if not torch.equal(ops.segment_max(src, offsets)[0], wanted):
                    wrong.append(src)

        callers = [
            threading.Thread(target=pool, args=pair) for pair in zip(inputs, expected, strict=True)
        ]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
        assert not wrong
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("threads", [2, 7])
def test_an_error_in_a_thread_reaches_the_caller_and_the_next_call_works(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        index = torch.randint(0, 100, (100_000,))
        src = torch.randn(100_000, 8)
        index[99_999] = 100
        with pytest.raises((IndexError, ValueError), match="99999"):
            ops.scatter_max(src, index, dim=0, dim_size=100)
        index[99_999] = 99
        assert ops.scatter_max(src, index, dim=0, dim_size=100)[0].shape == (100, 8)
    finally:
        torch.set_num_threads(before)
