"""What all tools share: how they start, fail, show progress and give their results to programs."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import os
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeAlias, TypeVar, get_type_hints

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

from voxelpool.errors import VoxelpoolError
from voxelpool.files import atomic_write

if TYPE_CHECKING:
    from voxelpool.config import AnyConfig

T = TypeVar("T")
console = Console(soft_wrap=True)
_stderr = Console(stderr=True, soft_wrap=True)
_progress = Console(stderr=True, soft_wrap=True)

JsonOut: TypeAlias = Annotated[
    Path | None,
    typer.Option(
        "--json",
        metavar="PATH|-",
        help="also write the results to this file as JSON; - is stdout, and all else goes to "
        "stderr",
        allow_dash=True,
    ),
]
"""The option ``json_out`` of a tool that has results; what it names goes to `write_json`."""

DIMS_HELP = "values per point in a .bin file; 5 for nuScenes"
INTENSITY_HELP = (
    "what stands for full reflectance in INPUT, such as 255 for nuScenes; default: 1, and of "
    "integers the largest of their type"
)

_PANEL = "Of every tool"
_COMMON: dict[str, tuple[Any, bool]] = {
    "quiet": (
        Annotated[
            bool,
            typer.Option(
                "--quiet", "-q", help="print errors and warnings alone", rich_help_panel=_PANEL
            ),
        ],
        False,
    ),
    "verbose": (
        Annotated[
            bool,
            typer.Option(
                "--verbose",
                "-v",
                help="also print what is logged, and the time",
                rich_help_panel=_PANEL,
            ),
        ],
        False,
    ),
    "debug": (
        Annotated[
            bool,
            typer.Option(
                "--debug", help="on an error, print its traceback", rich_help_panel=_PANEL
            ),
        ],
        False,
    ),
}


def _on_uncaught(kind: type[BaseException], error: BaseException, traceback: Any) -> None:
    if issubclass(kind, KeyboardInterrupt) and not _debugging():
        sys.stderr.write("interrupted\n")
    else:
        sys.__excepthook__(kind, error, traceback)


sys.excepthook = _on_uncaught  # for a Ctrl-C while a tool still imports what it needs


def run(main: Callable[..., Any]) -> None:
    """Runs ``main`` as a command-line tool, with the options that every tool has.

    Exit codes: 0 done; 1 an error, which is one line on stderr; 2 wrong usage; 130 Ctrl-C. A
    traceback is printed with --debug or VOXELPOOL_DEBUG=1 alone.
    """
    program = main.__globals__.get("program")  # the console command says how it is called
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(
        context_settings={"help_option_names": ["-h", "--help"]},
        help=_help(inspect.getdoc(main) or "", program),
    )(_with_common_options(main))
    warnings.showwarning = _show_warning
    app(prog_name=program)


def _help(text: str, program: str | None) -> str:
    """The help of a tool, with the examples as the console command takes them if that runs it."""
    if program is None:
        return text
    return re.sub(
        r"python tools/(\w+)\.py", lambda found: f"voxelpool {found[1].replace('_', '-')}", text
    )


def _with_common_options(main: Callable[..., Any]) -> Callable[..., Any]:
    """``main`` with --quiet, --verbose and --debug, ending the process as `run` says."""
    signature = inspect.signature(main)
    hints = get_type_hints(main, include_extras=True)
    own = [one.replace(annotation=hints[name]) for name, one in signature.parameters.items()]
    common = [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=hint)
        for name, (hint, default) in _COMMON.items()
    ]

    @functools.wraps(main)
    def tool(**values: Any) -> None:
        quiet, verbose, debug = (values.pop(name) for name in _COMMON)
        if quiet and verbose:
            raise typer.BadParameter("--quiet and --verbose: give one of them")
        if debug:
            os.environ["VOXELPOOL_DEBUG"] = "1"
        console.quiet = _progress.quiet = quiet
        console.stderr = values.get("json_out") == Path("-")
        if verbose:
            handler = RichHandler(console=_stderr, show_path=False)
            logging.basicConfig(level=logging.INFO, format="%(message)s", handlers=[handler])
        started = time.perf_counter()
        with _ending(_debugging()):
            main(**values)
        if verbose:
            _stderr.print(f"took {time.perf_counter() - started:.1f} s", highlight=False)

    tool.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[*own, *common], return_annotation=None
    )
    tool.__annotations__ = hints | {name: hint for name, (hint, _) in _COMMON.items()}
    del tool.__wrapped__  # type: ignore[attr-defined]
    return tool


def _debugging() -> bool:
    return os.environ.get("VOXELPOOL_DEBUG", "0") not in ("", "0")


@contextmanager
def _ending(traceback: bool) -> Iterator[None]:
    """Turns what goes wrong into a line on stderr and an exit code."""
    try:
        yield
    except (VoxelpoolError, OSError) as error:
        if traceback:
            raise
        _fail(_one_line(error))
    except ImportError as error:
        if traceback:
            raise
        _fail(f"a package that this needs does not load: {_one_line(error)}")
    except KeyboardInterrupt:
        if traceback:
            raise
        _stderr.print("interrupted")
        sys.exit(130)
    except SystemExit as stop:
        if not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        _stderr.print("interrupted")  # Lightning, which makes a plain failure of it
        sys.exit(130)
    except Exception as error:
        if traceback or type(error).__module__.startswith(("typer", "click")):
            raise
        what = f"{type(error).__name__}: {_one_line(error)}".removesuffix(": ")
        _fail(f"{what} (this is a defect; --debug shows where)")


def _fail(message: str) -> None:
    _stderr.print(f"[bold red]error:[/] {_escape(message)}", highlight=False)
    sys.exit(1)


def write_json(values: Any, path: Path | None) -> None:
    """Writes the results of a tool where --json says: nowhere, to a file or to stdout."""
    if path is None:
        return
    text = json.dumps(values, indent=2) + "\n"
    if path == Path("-"):
        sys.stdout.write(text)
        return
    with atomic_write(path) as file:
        file.write(text)
    console.print(str(path))


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


class _Rate(ProgressColumn):
    """Items a second, or seconds an item."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("")
        return Text(f"{speed:.3g}/s" if speed >= 1 else f"{1 / speed:.3g} s each")


def _bar() -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    return Progress(
        *columns, console=_progress, disable=_progress.quiet or not _progress.is_terminal
    )


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
