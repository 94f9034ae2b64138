"""Output is written whole or not at all."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from voxelpool.files import atomic_directory, atomic_write, refuse_existing


def test_writes_text_and_bytes(tmp_path: Path) -> None:
    with atomic_write(tmp_path / "a.txt") as file:
        file.write("grün")
    with atomic_write(tmp_path / "b.bin", "wb") as file:
        file.write(b"\x00\x01")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "grün"
    assert (tmp_path / "b.bin").read_bytes() == b"\x00\x01"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "b.bin"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_failure_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(error), atomic_write(target) as file:
        file.write("new")
        raise error
    assert target.read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_full_disk_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    target = tmp_path / "a.txt"
    with pytest.raises(OSError, match="cannot write") as caught, atomic_write(target) as file:
        file.write("new")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(target)
    assert "No space left" in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_truly_fails(tmp_path: Path) -> None:
    """The system refuses the bytes, as it does on a full disk."""
    script = """
import resource, sys
from voxelpool.files import atomic_write
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    with atomic_write(sys.argv[1]) as file:
        file.write("x" * 100_000)
except OSError as error:
    print(error)
"""
    target = tmp_path / "a.txt"
    done = subprocess.run(
        [sys.executable, "-c", script, str(target)], capture_output=True, text=True, check=True
    )
    assert "cannot write (File too large)" in done.stdout
    assert str(target) in done.stdout
    assert list(tmp_path.iterdir()) == []


def test_missing_folder_is_named(tmp_path: Path) -> None:
    target = tmp_path / "none" / "a.txt"
    with (
        pytest.raises(OSError, match=r"cannot write.*No such file") as caught,
        atomic_write(target),
    ):
        pass
    assert caught.value.filename == str(target)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a folder that nobody may write to")
def test_read_only_folder_is_named() -> None:
    with pytest.raises(OSError, match="cannot write") as caught, atomic_write("/proc/a.txt"):
        pass
    assert caught.value.filename == "/proc/a.txt"


def test_directory_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "run"
    with atomic_directory(target) as folder:
        (folder / "a").write_text("1")
        assert not target.exists()
    assert (target / "a").read_text() == "1"
    assert [path.name for path in target.parent.iterdir()] == ["run"]


def test_directory_failure_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), atomic_directory(tmp_path / "run") as folder:
        (folder / "a").write_text("1")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []


def test_existing_is_refused(tmp_path: Path) -> None:
    refuse_existing(tmp_path / "new")
    refuse_existing(tmp_path)
    (tmp_path / "a").write_text("mine")
    with pytest.raises(FileExistsError):
        refuse_existing(tmp_path)
    with pytest.raises(FileExistsError), atomic_directory(tmp_path):
        pass
    with pytest.raises(FileExistsError):
        refuse_existing(tmp_path / "a")
    assert (tmp_path / "a").read_text() == "mine"


def test_durable_files_are_forced_to_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: forced.append(handle))
    with atomic_write(tmp_path / "a.bin", "wb", durable=True) as file:
        file.write(b"whole")
        assert not (tmp_path / "a.bin").exists()
    assert (tmp_path / "a.bin").read_bytes() == b"whole" and len(forced) == 1
    with atomic_write(tmp_path / "b.bin", "wb") as file:
        file.write(b"whole")
    assert len(forced) == 1


def test_a_folder_is_replaced_whole(tmp_path: Path) -> None:
    target = tmp_path / "made"
    target.mkdir()
    (target / "old").write_text("old")
    with pytest.raises(RuntimeError), atomic_directory(target, replace=True) as folder:
        (folder / "new").write_text("new")
        raise RuntimeError
    assert [path.name for path in target.iterdir()] == ["old"]
    with atomic_directory(target, replace=True) as folder:
        (folder / "new").write_text("new")
        assert [path.name for path in target.iterdir()] == ["old"]
    assert [path.name for path in target.iterdir()] == ["new"]
    with atomic_directory(tmp_path / "fresh", replace=True) as folder:
        (folder / "a").write_text("")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fresh", "made"]
