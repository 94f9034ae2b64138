"""What all tools share: how they start, fail and show progress."""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from voxelpool.errors import VoxelpoolError

if TYPE_CHECKING:
    from voxelpool.config import AnyConfig

T = TypeVar("T")
console = Console(soft_wrap=True)
_stderr = Console(stderr=True, soft_wrap=True)


def run(main: Callable[..., Any]) -> None:
    """Runs ``main`` as a command-line tool.

    An error meant for the user becomes one line on stderr and exit code 1, Ctrl-C exit code 130;
    anything else is a defect and keeps its traceback, as everything does with VOXELPOOL_DEBUG=1.
    """
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(context_settings={"help_option_names": ["-h", "--help"]})(main)
    warnings.showwarning = _show_warning
    try:
        app()
    except (VoxelpoolError, OSError) as error:
        if os.environ.get("VOXELPOOL_DEBUG") == "1":
            raise
        _stderr.print(f"[bold red]error:[/] {_escape(_one_line(error))}", highlight=False)
        sys.exit(1)
    except KeyboardInterrupt:
        _stderr.print("interrupted")
        sys.exit(130)


def repeat_options(arguments: Sequence[str], options: Sequence[str]) -> list[str]:
    """Lets an option take several values: "--classes Car Van" is "--classes Car --classes Van"."""
    spread: list[str] = []
    option, first = None, False
    for argument in arguments:
        if argument.startswith("-"):
            option, first = (argument if argument in options else None), True
        elif option is not None and not first:
            spread.append(option)
        elif option is not None:
            first = False
        spread.append(argument)
    return spread


def say_backend(config: AnyConfig, device: str | None = None) -> None:
    """Prints what computes the sparse middle layers of a configuration, if it has any.

    ``device`` None is the one that training takes: CUDA where there is one.
    """
    import torch  # here, since half of the tools start without it

    from voxelpool.config import Config, SparseMiddleConfig
    from voxelpool.nn.sparse import resolve_backend

    if not (isinstance(config, Config) and isinstance(config.middle, SparseMiddleConfig)):
        return
    place = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    backend = resolve_backend(config.middle.backend, place)
    console.print(f"sparse middle layers: {backend} (middle.backend: {config.middle.backend})")


def warn(message: str) -> None:
    """One line on stderr."""
    _stderr.print(f"[bold yellow]warning:[/] {_escape(message)}", highlight=False)


def progress(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Yields from ``iterable`` under a progress bar."""
    if total is None and hasattr(iterable, "__len__"):
        total = len(iterable)
    with progress_bar() as bar:
        yield from bar.track(iterable, total=total, description=description)


@contextmanager
def progress_bar() -> Iterator[Progress]:
    """A progress bar whose tasks the caller adds and advances."""
    with _bar() as bar:
        yield bar


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(show_speed=True),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(*columns, console=_stderr)


@contextmanager
def reading() -> Iterator[Callable[[str, int, int], None]]:
    """Yields what shows how far the reading of something has come: (what, done, total).

    The bar goes away when all is read, so that another one may follow.
    """
    bars: dict[str, Progress] = {}

    def show(what: str, done: int, total: int) -> None:
        if what not in bars and done < total:
            bars[what] = _bar()
            bars[what].start()
            bars[what].add_task(what, total=total)
        if what in bars:
            bars[what].update(bars[what].task_ids[0], completed=done)
            if done >= total:
                bars.pop(what).stop()

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.stop()


def _one_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.filename is not None:
        text = f"{error.filename}: {error.strerror}"
    else:
        text = str(error)
    if "\nOriginal Traceback" in text:  # a worker's error, told by torch; its last line is ours
        text = text.strip().splitlines()[-1].partition(": ")[2]
    return " ".join(text.split())


def _escape(text: str) -> str:
    return text.replace("[", r"\[")


def _show_warning(message: Any, *_: Any, **__: Any) -> None:
    warn(str(message))
