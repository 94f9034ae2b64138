"""Checkpoints: weights with the configuration that they belong to."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from voxelpool.config import (
    AnyConfig,
    ClassifierConfig,
    Config,
    GridConfig,
    dump_config,
    parse_config,
)
from voxelpool.errors import CheckpointError, ConfigError
from voxelpool.files import atomic_write
from voxelpool.models.classifier import build_classifier
from voxelpool.models.detector import VoxelDetector, build_detector

CONFIG_KEY = "voxelpool_config"
WEIGHTS_PREFIX = "model."
_DECIDES_THE_NETWORK = ("model", "grid", "anchors", "vfe", "middle", "norm", "rpn", "head")
_CHANGES_NO_WEIGHTS = ("backend", "min_voxels")
_DECIDES_THE_CLASSIFIER = ("model", "classes", "classifier")


def config_entry(config: AnyConfig) -> dict[str, str]:
    """What a checkpoint holds beside the weights, so that it can be checked against a config."""
    return {CONFIG_KEY: dump_config(config)}


def load_data(path: str | os.PathLike[str]) -> Any:
    """Reads what ``torch.save`` wrote as data alone: no code in it is ever run.

    Raises:
        CheckpointError: no such file, not made by torch.save, damaged, or more than data (then
            caused by an ``UnpicklingError``).
    """
    path = Path(path)
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than weights, or is no checkpoint") from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: is damaged or no checkpoint") from error


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint, as data alone.

    Raises:
        CheckpointError: as `load_data`, or not made by this package.
    """
    contents = load_data(path)
    if not isinstance(contents, dict) or not {CONFIG_KEY, "state_dict"} <= contents.keys():
        raise CheckpointError(f"{path}: is no checkpoint of this package")
    return contents


def checkpoint_config(contents: dict[str, Any], path: str | os.PathLike[str]) -> AnyConfig:
    """The configuration that a checkpoint was trained with.

    Raises:
        CheckpointError: it is none of this version; names the key.
    """
    try:
        return parse_config(contents[CONFIG_KEY], source=str(path))
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration does not fit: {error}") from error


def trained_detector_config(path: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Config:
    """The configuration in a detector's checkpoint, with some keys replaced.

    Args:
        path: the checkpoint.
        overrides: as `voxelpool.config.load_config`.

    Raises:
        CheckpointError: unreadable, or of a classifier.
        ConfigError: ``overrides`` are wrong; names the key.
    """
    trained = checkpoint_config(load_checkpoint(path), path)
    return _of_detector(parse_config(dump_config(trained), overrides, source=str(path)), path)


def _of_detector(config: AnyConfig, path: str | os.PathLike[str]) -> Config:
    if not isinstance(config, Config):
        raise CheckpointError(f"{path}: is of the classifier {config.model}, no detector")
    return config


def write_checkpoint(
    path: str | os.PathLike[str], config: Config, weights: Mapping[str, Tensor]
) -> None:
    """Writes weights with their configuration as a checkpoint that `load_detector` reads.

    Raises:
        OSError: it cannot be written; nothing is left of it then.
    """
    state = {WEIGHTS_PREFIX + name: value for name, value in weights.items()}
    with atomic_write(path, "wb") as file:
        torch.save({**config_entry(config), "state_dict": state}, file)


def load_detector(path: str | os.PathLike[str], config: Config | None = None) -> VoxelDetector:
    """Builds the detector of a checkpoint and loads its weights, ready to detect.

    Args:
        path: a checkpoint that training wrote.
        config: what it must fit; None takes the checkpoint's own.

    Raises:
        CheckpointError: unreadable, or trained with another network than ``config`` describes;
            names the first key that differs.
    """
    contents, trained = _trained(path, config)
    trained = _of_detector(trained, path)
    return _with_weights(build_detector(config or trained), contents, path)


def begin_with(detector: VoxelDetector, path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Gives a detector the weights of one that was trained, perhaps for other classes or ranges.

    The networks must be the same but for their anchors and for how far they reach along x and y:
    their convolutions are the same everywhere. What the heads say of an anchor that both
    have, of the same class, size, height and rotations, is taken over; of others it stays.

    Args:
        detector: changed in place.
        path: a checkpoint that training wrote.

    Returns:
        The classes that nothing was taken over for.

    Raises:
        CheckpointError: unreadable, of a classifier, or of another network in more than its
            anchors and its range along x and y; names the first key that differs. ``detector`` is
            as it was then.
    """
    trained = load_detector(path)
    config, known = detector.config, trained.config
    reaching = known.grid.model_copy(update={"range": _reach(config.grid, known.grid)})
    alike = known.model_copy(update={"grid": reaching})
    require_same_network(config, alike, path, but_for=("anchors",))
    anchors = _anchors_of_both(config, known)
    classes = [
        (row, known.classes.index(name))
        for row, name in enumerate(config.classes)
        if name in known.classes
    ]
    # What a head says of an anchor: values here, and the same values there.
    values = {
        "rpn.score_head": classes if config.head.scores == "all" else [(0, 0)],
        "rpn.residual_head": [(row, row) for row in range(7)],
        "rpn.direction_head": [(row, row) for row in range(2)],
    }
    weights = detector.state_dict()
    for name, value in trained.state_dict().items():
        head = name.rpartition(".")[0]
        if head not in values:
            weights[name].copy_(value)
            continue
        here = weights[name].unflatten(0, (len(detector.anchor_classes), -1))
        there = value.unflatten(0, (len(trained.anchor_classes), -1))
        for anchor, known_anchor in anchors:
            for row, known_row in values[head]:
                here[anchor, row] = there[known_anchor, known_row]
    taken_over = {config.classes[int(detector.anchor_classes[anchor])] for anchor, _ in anchors}
    return tuple(name for name in config.classes if name not in taken_over)


def average_checkpoints(paths: Sequence[str | os.PathLike[str]], config: Config) -> VoxelDetector:
    """The detector whose weights are the means of those of several trainings.

    Of trainings that began with the same weights, the mean is often better than each (Wortsman et
    al., 2022, Model soups). Statistics of norms are averaged too.

    Args:
        paths: checkpoints of the same network, one or more. They may know more classes than
            ``config`` has: what they say of the others is left out.
        config: of the detector.

    Raises:
        CheckpointError: unreadable, of a classifier, of another network, or without one of the
            anchors of ``config``.
    """
    detector = build_detector(config)
    sums: dict[str, Tensor] = {}
    for path in paths:
        trained = trained_detector_config(path)
        require_same_network(config, trained, path, but_for=("anchors",))
        if len(_anchors_of_both(config, trained)) < len(detector.anchor_classes):
            require_same_network(config, trained, path)  # says which
        begin_with(detector, path)
        for name, value in detector.state_dict().items():
            sums[name] = sums.get(name, 0) + value.double()
    weights = detector.state_dict()
    for name, total in sums.items():
        weights[name].copy_(total / len(paths))
    return detector.eval()


def _reach(plane: GridConfig, height: GridConfig) -> tuple[float, ...]:
    """The range of one grid along x and y, and of the other along z."""
    bounds = plane.range[:2], height.range[2:3], plane.range[3:5], height.range[5:]
    return tuple(chain.from_iterable(bounds))


def _anchors_of_both(config: Config, known: Config) -> list[tuple[int, int]]:
    """Which anchor of a place of ``config`` is which of ``known``; those of both alone."""
    here, there = (
        [
            (anchor.class_name, anchor.size, anchor.z_center, yaw)
            for anchor in of.anchors
            for yaw in anchor.rotations
        ]
        for of in (config, known)
    )
    return [(row, there.index(anchor)) for row, anchor in enumerate(here) if anchor in there]


def load_classifier(
    path: str | os.PathLike[str], config: ClassifierConfig | None = None
) -> nn.Module:
    """Like `load_detector`, for a classifier; its forward gives logits (B, classes).

    Raises:
        CheckpointError: as there.
    """
    contents, trained = _trained(path, config)
    if not isinstance(trained, ClassifierConfig):
        raise CheckpointError(f"{path}: is of the detector {trained.model}, no classifier")
    return _with_weights(classifier_of(config or trained), contents, path)


def classifier_of(config: ClassifierConfig) -> nn.Module:
    """The network that a configuration describes, untrained."""
    return build_classifier(config.model, len(config.classes), **classifier_options(config))


def classifier_options(config: ClassifierConfig) -> dict[str, Any]:
    """What `build_classifier` is told beside model and classes: what the configuration states."""
    options = config.classifier.model_dump(exclude_none=True)
    if config.takes_points:
        del options["dim"]
    return options


Network = TypeVar("Network", bound=nn.Module)


def _trained(
    path: str | os.PathLike[str], config: AnyConfig | None
) -> tuple[dict[str, Any], AnyConfig]:
    """A checkpoint and its own configuration, which fits ``config`` if there is one."""
    contents = load_checkpoint(path)
    trained = checkpoint_config(contents, path)
    if config is not None:
        require_same_network(config, trained, path)
    return contents, trained


def _with_weights(
    network: Network, contents: dict[str, Any], path: str | os.PathLike[str]
) -> Network:
    weights = {
        name.removeprefix(WEIGHTS_PREFIX): value
        for name, value in contents["state_dict"].items()
        if name.startswith(WEIGHTS_PREFIX)
    }
    try:
        network.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit: {error}") from error
    return network.eval()


def require_same_network(
    config: AnyConfig,
    trained: AnyConfig,
    path: str | os.PathLike[str],
    *,
    but_for: Sequence[str] = (),
) -> None:
    """Raises CheckpointError, naming the key, unless both describe the same network.

    Args:
        config: what is asked for.
        trained: what the checkpoint has.
        path: the checkpoint.
        but_for: keys that may differ.
    """
    classifier = isinstance(config, ClassifierConfig) and isinstance(trained, ClassifierConfig)
    keys = _DECIDES_THE_CLASSIFIER if classifier else _DECIDES_THE_NETWORK
    for key in keys if type(config) is type(trained) else ("model",):
        if key in but_for:
            continue
        asked, has = getattr(config, key), getattr(trained, key)
        difference = first_difference(asked, has, key)
        if difference:
            raise CheckpointError(
                f"{path}: was trained with another configuration ({trained.name}): {difference}"
            )


def first_difference(asked: Any, has: Any, key: str) -> str:
    """Says where two values of a configuration differ, below ``key``; empty if they are equal."""
    if asked == has:
        return ""
    if hasattr(asked, "model_fields_set") and type(asked) is type(has):
        pairs = (
            (name, getattr(asked, name), getattr(has, name))
            for name in type(asked).model_fields
            if name not in _CHANGES_NO_WEIGHTS
        )
        found = (first_difference(one, other, f"{key}.{name}") for name, one, other in pairs)
        return next(filter(None, found), "")
    if isinstance(asked, tuple) and isinstance(has, tuple) and len(asked) == len(has):
        for row, (one, other) in enumerate(zip(asked, has, strict=True)):
            inner = first_difference(one, other, f"{key}.{row}")
            if inner:
                return inner
    return f"{key} is {has} there and {asked} here"
