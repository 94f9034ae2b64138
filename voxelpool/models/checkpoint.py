"""Checkpoints: weights with the configuration that they belong to."""

from __future__ import annotations

import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from voxelpool.config import Config, dump_config, parse_config
from voxelpool.errors import CheckpointError, ConfigError
from voxelpool.models.voxelnet import VoxelNet, build_detector

CONFIG_KEY = "voxelpool_config"
WEIGHTS_PREFIX = "model."
_DECIDES_THE_NETWORK = ("model", "grid", "anchors", "vfe", "middle", "rpn")


def config_entry(config: Config) -> dict[str, str]:
    """What a checkpoint holds beside the weights, so that it can be checked against a config."""
    return {CONFIG_KEY: dump_config(config)}


def load_checkpoint(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a checkpoint as data alone: no code in it is ever run.

    Raises:
        CheckpointError: no such file, not a checkpoint, damaged, or not made by this package.
    """
    path = Path(path)
    try:
        contents = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: holds more than weights, or is no checkpoint") from error
    except (RuntimeError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: is damaged or no checkpoint") from error
    if not isinstance(contents, dict) or not {CONFIG_KEY, "state_dict"} <= contents.keys():
        raise CheckpointError(f"{path}: is no checkpoint of this package")
    return contents


def checkpoint_config(contents: dict[str, Any], path: str | os.PathLike[str]) -> Config:
    """The configuration that a checkpoint was trained with."""
    try:
        return parse_config(contents[CONFIG_KEY], source=str(path))
    except ConfigError as error:
        raise CheckpointError(f"{path}: its configuration does not fit: {error}") from error


def load_detector(path: str | os.PathLike[str], config: Config | None = None) -> VoxelNet:
    """Builds the detector of a checkpoint and loads its weights, ready to detect.

    Args:
        path: a checkpoint that training wrote.
        config: what it must fit; None takes the checkpoint's own.

    Raises:
        CheckpointError: unreadable, or trained with another network than ``config`` describes;
            names the first key that differs.
    """
    contents = load_checkpoint(path)
    trained = checkpoint_config(contents, path)
    config = trained if config is None else config
    require_same_network(config, trained, path)
    detector = build_detector(config)
    weights = {
        name.removeprefix(WEIGHTS_PREFIX): value for name, value in contents["state_dict"].items()
    }
    try:
        detector.load_state_dict(weights)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: its weights do not fit: {error}") from error
    return detector.eval()


def require_same_network(config: Config, trained: Config, path: str | os.PathLike[str]) -> None:
    """Raises CheckpointError, naming the key, unless both describe the same network."""
    for key in _DECIDES_THE_NETWORK:
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
        for name in type(asked).model_fields:
            inner = first_difference(getattr(asked, name), getattr(has, name), f"{key}.{name}")
            if inner:
                return inner
    if isinstance(asked, tuple) and isinstance(has, tuple) and len(asked) == len(has):
        for row, (one, other) in enumerate(zip(asked, has, strict=True)):
            inner = first_difference(one, other, f"{key}.{row}")
            if inner:
                return inner
    return f"{key} is {has} there and {asked} here"
