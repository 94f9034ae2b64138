"""Draws sweeps with what is known and what was found in them."""

from __future__ import annotations

from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Annotated, Literal

import _cli
import typer
from PIL.Image import Image

from voxelpool import scenes
from voxelpool.config import Config, load_detector_config
from voxelpool.errors import ConfigError
from voxelpool.files import atomic_write, refuse_existing
from voxelpool.visualization import Scene, render_html
from voxelpool.visualization.canvas import save_png
from voxelpool.visualization.film import render_scene, render_strip
from voxelpool.visualization.html import HEAVY
from voxelpool.visualization.page import Picture, Section
from voxelpool.visualization.page import page as page_of
from voxelpool.visualization.window import has_display, show


class View(str, Enum):
    """Where a picture is taken from."""

    bev = "bev"
    oblique = "oblique"
    driver = "driver"


class Color(str, Enum):
    """What the colours of points mean."""

    height = "height"
    reflectance = "reflectance"
    range = "range"
    distance = "distance"
    classes = "class"


class VoxelsAs(str, Enum):
    """How voxels are drawn."""

    none = "none"
    cubes = "cubes"
    points = "points"


class Lesson(str, Enum):
    """What a picture teaches."""

    kept = "kept"
    histogram = "histogram"
    winner = "winner"
    features = "features"
    scores = "scores"


WORDS = {"window": "a window", "png": "a picture", "html": "a page"}
MAPS = {
    Lesson.histogram: "How many voxels hold how many points",
    Lesson.features: "What the middle layers hand on, from above",
    Lesson.scores: "The surest anchor's score at each place, from above",
}


def main(
    given: Annotated[
        Path | None,
        typer.Argument(
            metavar="[INPUT]", help="a sweep (.bin), or voxels that tools/voxelize.py wrote (.npz)"
        ),
    ] = None,
    root: Annotated[Path | None, typer.Option(help="a data set in KITTI's layout")] = None,
    frame: Annotated[str | None, typer.Option(help="a frame of --root, such as 000008")] = None,
    frames: Annotated[
        str | None,
        typer.Option(
            metavar="A:B",
            help="frames A to B - 1 of --root (of those with results, if given), counted from 0; "
            "or of --simulate",
        ),
    ] = None,
    simulate: Annotated[
        int | None, typer.Option(metavar="SEED", help="a simulated street, labels included", min=0)
    ] = None,
    results: Annotated[
        Path | None, typer.Option(help="folder of KITTI result files, held against the labels")
    ] = None,
    min_score: Annotated[float, typer.Option(help="draw results from this score on")] = 0.3,
    match_iou: Annotated[
        float, typer.Option(help="overlap from above that makes a result right")
    ] = 0.5,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="the file; default: NAME_VIEW.png or NAME.html here"),
    ] = None,
    window: Annotated[
        bool, typer.Option("--window", help="open a window; h lists its keys")
    ] = False,
    png: Annotated[bool, typer.Option("--png", help="write a picture; needs no display")] = False,
    page: Annotated[
        bool, typer.Option("--html", help="write a page that any browser opens, without a network")
    ] = False,
    view: Annotated[
        View | None, typer.Option(help="from above, behind or the side; default: bev, page oblique")
    ] = None,
    color: Annotated[Color, typer.Option(help="what colours of points mean")] = Color.height,
    voxels: Annotated[VoxelsAs, typer.Option(help="also voxels, by their count")] = VoxelsAs.none,
    crop: Annotated[
        bool, typer.Option("--crop/--no-crop", help="only what the camera sees, if known")
    ] = True,
    image: Annotated[
        bool, typer.Option("--image/--no-image", help="also the camera's image, if there is one")
    ] = True,
    teach: Annotated[
        Lesson | None,
        typer.Option(
            help="what voxelization keeps; a histogram of points per voxel; the point that is the "
            "maximum of its voxel; a detector's features or scores from above"
        ),
    ] = None,
    channel: Annotated[
        str | None,
        typer.Option(help="of winner: x, y, z, reflectance; of features: a number"),
    ] = None,
    config: Annotated[
        Path | None, typer.Option(help="voxels as this configuration makes them")
    ] = None,
    checkpoint: Annotated[Path | None, typer.Option(help="weights of --config, for maps")] = None,
    weights: Annotated[
        str | None,
        typer.Option(metavar="NAME|PATH", help="instead of --config and --checkpoint, for maps"),
    ] = None,
    augmented: Annotated[
        Path | None,
        typer.Option(metavar="CONFIG", help="draw --frame as it is and as CONFIG trains on it"),
    ] = None,
    epoch: Annotated[int, typer.Option(min=0, help="of the training, with --augmented")] = 0,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="replace OUT")] = False,
    json_out: _cli.JsonOut = None,
) -> None:
    """Draws a sweep, its labels and results in a window, as a PNG or as one HTML page.

    Labels, calibration and image are found beside the sweep in KITTI's layout. Without --window,
    --png and --html the ending of OUT decides; without OUT too it is a window where there is a
    display, else a PNG.

    Example: python tools/visualize.py --root data/simulated --frame 000600 --view oblique
    -o frame.png

    Example: python tools/visualize.py --root data/simulated --results runs/demo/results
    --frames 0:8 --html

    Example: python tools/visualize.py --simulate 7 --voxels cubes --teach winner --channel z
    -o winner.png

    Example: python tools/visualize.py --augmented configs/demo.yaml --root data/simulated
    --frame 000000 --epoch 3
    """
    how = chosen_output(window, png, page, out, teach)
    settings = None if config is None else load_detector_config(config)
    voxelization = scenes.Voxelization() if settings is None else scenes.Voxelization.of(settings)
    if augmented is not None:
        if given is not None or frame is None:
            raise ConfigError("--augmented draws a frame of the training split: give --frame")
        shown = scenes.augmented_scenes(augmented, frame, root=root, epoch=epoch, color=color.value)
    else:
        shown = scenes.wanted_scenes(
            given,
            root=root,
            frame=frame,
            frames=frames,
            simulate=simulate,
            results=results,
            min_score=min_score,
            match_iou=match_iou,
            color=color.value,
            crop=crop,
        )
    if not image:
        shown = [replace(scene, camera=None) for scene in shown]
    if teach is Lesson.kept:
        shown = [scenes.kept_scene(scene, voxelization) for scene in shown]
    elif teach is Lesson.winner:
        shown = [scenes.winner_scene(scene, voxelization, channel or "z") for scene in shown]
    elif voxels is not VoxelsAs.none:
        shown = [scenes.with_voxels(scene, voxelization, voxels.value) for scene in shown]
    if not (window or png or page or out or teach in MAPS):
        why = "there is a display" if how == "window" else "there is no display for a window"
        _cli.console.print(f"{WORDS[how]}, since {why} (--window, --png and --html choose)")
    summaries = [scene.summary() for scene in shown]
    if how == "window":
        _cli.write_json({"files": [], "scenes": summaries}, json_out)
        show(shown, say=_cli.console.print)
        return
    seen = view or (View.oblique if how == "html" else View.bev)
    name = shown[0].title.replace(",", "").replace(" ", "_")
    drawn = teach.value if teach in MAPS else seen.value
    if teach in MAPS or how == "png":
        name += f"_{drawn}"
    outs = [out or Path(f"{name}.{how}")]
    if augmented is not None and how == "png":
        outs.append(outs[0].with_name(f"{outs[0].stem}_augmented{outs[0].suffix}"))
    if not overwrite:
        for path in outs:
            refuse_existing(path)
    if teach in MAPS:
        network = (
            (None, None) if teach is Lesson.histogram else trained(weights, checkpoint, settings)
        )
        picture = scenes.draw_map(shown[0], teach.value, voxelization, *network, channel)
        if how == "html":
            write_page(picture, shown[0], teach, outs[0])
        else:
            save_png(picture, outs[0])
    elif how == "html":
        render_html(shown, outs[0], view=seen.value)
    elif len(outs) == len(shown):
        for scene, path in zip(shown, outs, strict=True):
            render_scene(scene, path, view=seen.value)
    else:
        render_strip(shown, outs[0], view=seen.value)
    for path in outs:
        _cli.console.print(str(path))
        if path.stat().st_size > HEAVY:
            size = f"{path.stat().st_size / 1e6:.0f} MB"
            _cli.warn(f"{path}: {size} are slow to open; draw fewer --frames at once, or --crop")
    _cli.write_json({"files": [str(path) for path in outs], "scenes": summaries}, json_out)


def write_page(picture: Image, scene: Scene, teach: Lesson, path: Path) -> None:
    """Writes a map as a page of its own."""
    figure = Picture(teach.value, picture, f"{MAPS[teach]}: {scene.title}", natural=True)
    facts = [("sweep", scene.title), ("points", f"{len(scene.points):,}")]
    with atomic_write(path) as file:
        file.write(page_of(scene.title, facts, [Section(MAPS[teach], "", [figure])]))


def chosen_output(
    window: bool, png: bool, page: bool, out: Path | None, teach: Lesson | None
) -> Literal["window", "png", "html"]:
    """What is asked for, else what the machine can do."""
    if window + png + page > 1:
        raise ConfigError("--window, --png and --html: give one of them")
    if teach in MAPS and window:
        raise ConfigError(f"--teach {teach.value} goes with --png or --html")
    if window:
        return "window"
    if page or (not png and out is not None and out.suffix.lower() in (".html", ".htm")):
        return "html"
    if png or out is not None or teach in MAPS:
        return "png"
    return "window" if has_display() else "png"


def trained(
    weights: str | None, checkpoint: Path | None, config: Config | None
) -> tuple[str | Path, Config | None]:
    """The weights that are meant, and the configuration if they do not bring one."""
    if weights is not None and checkpoint is None:
        return weights, None
    if weights is not None or checkpoint is None:
        raise ConfigError("maps of a detector: give --weights, or --config and --checkpoint")
    if config is None:
        raise ConfigError("--checkpoint goes with --config")
    return checkpoint, config


if __name__ == "__main__":
    _cli.run(main)
