"""Errors whose message is meant for the user: one sentence that names what is wrong and where."""

from __future__ import annotations


class VoxelpoolError(Exception):
    """Base of every error that a tool reports as one line instead of a traceback."""


class DataError(VoxelpoolError, ValueError):
    """A file or an array does not hold what it must; the message names it."""


class ConfigError(VoxelpoolError, ValueError):
    """A configuration has an unknown key, a wrong type or an impossible value."""


class CheckpointError(VoxelpoolError, ValueError):
    """A checkpoint cannot be read or belongs to another configuration."""


class TrainingError(VoxelpoolError, RuntimeError):
    """Training cannot go on, for instance because the loss is no longer finite."""
