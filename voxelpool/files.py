"""Output files that are written whole or not at all, and folders that come along."""

from __future__ import annotations

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

_PACKAGE = Path(__file__).parent


def shipped_folder(name: str, in_checkout: str | None = None) -> Path:
    """A folder that comes along: in an installed package, or at the top of a checkout.

    Args:
        name: in the package.
        in_checkout: what it is called there; None: the same.
    """
    checkout = _PACKAGE.parent
    if (checkout / "pyproject.toml").is_file():
        return checkout / (in_checkout or name)
    return _PACKAGE / name


def _temporary_beside(path: Path) -> Path:
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")


def _cannot_write(error: OSError, path: Path) -> OSError:
    code = error.errno or errno.EIO
    return OSError(code, f"cannot write ({os.strerror(code)})", str(path))


@contextmanager
def atomic_write(
    path: str | os.PathLike[str], mode: str = "w", *, durable: bool = False
) -> Iterator[IO[Any]]:
    """Opens a temporary file beside ``path`` and renames it to ``path`` once it is complete.

    Args:
        path: the file to write; its folder must exist. An existing file is replaced only at the
            end, so a failure (a full disk, an exception, a kill) leaves it untouched.
        mode: "w" for text (UTF-8) or "wb" for bytes.
        durable: force the bytes to the disk before the file gets its name; otherwise it may be
            short after a power cut.

    Yields:
        The open temporary file.

    Raises:
        OSError: the folder is missing, read-only or full; names ``path``.
    """
    path = Path(path)
    if mode not in ("w", "wb"):
        raise ValueError(f"mode must be 'w' or 'wb', got {mode!r}")
    temporary = _temporary_beside(path)
    try:
        with open(
            temporary, mode.replace("w", "x"), encoding=None if "b" in mode else "utf-8"
        ) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename in (None, str(temporary)):
            raise _cannot_write(error, path) from error
        raise


@contextmanager
def atomic_directory(path: str | os.PathLike[str], *, replace: bool = False) -> Iterator[Path]:
    """Makes a temporary folder beside ``path`` and renames it to ``path`` once it is complete.

    Args:
        path: the folder to create, with its parents. It may exist only if it is empty.
        replace: it may exist and hold anything, which is then deleted, at the end.

    Yields:
        The temporary folder, to be filled.

    Raises:
        FileExistsError: ``path`` exists and is not an empty folder.
        OSError: the parent is read-only or full; names ``path``.
    """
    path = Path(path)
    if not replace:
        refuse_existing(path)
    temporary = _temporary_beside(path)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.mkdir()
        except OSError as error:
            raise _cannot_write(error, path) from error
        yield temporary
        _put_in_place(temporary, path, replace)
    except BaseException:  # an interruption may come as soon as the folder is there
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def _put_in_place(temporary: Path, path: Path, replace: bool) -> None:
    if not (replace and path.is_dir()):
        os.replace(temporary, path)
        return
    former = _temporary_beside(path)
    os.replace(path, former)
    try:
        os.replace(temporary, path)
    except BaseException:
        os.replace(former, path)
        raise
    shutil.rmtree(former, ignore_errors=True)


def refuse_existing(path: str | os.PathLike[str]) -> None:
    """Raises FileExistsError if ``path`` is a file or a folder that holds anything."""
    path = Path(path)
    if path.is_dir() and not any(path.iterdir()):
        return
    if path.exists():
        raise FileExistsError(errno.EEXIST, "already exists and is not overwritten", str(path))
