"""Trained classifiers whose answers another one learns beside the labels (Hinton et al. 2015)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from voxelpool.config import ClassifierConfig, TeachersConfig
from voxelpool.errors import ConfigError
from voxelpool.models import load_classifier
from voxelpool.models.checkpoint import checkpoint_config, load_checkpoint


class Teachers:
    """What trained classifiers say of moved objects, for another one to say the same.

    They are no part of what is trained: no module, so that no checkpoint holds them.

    Args:
        teachers: names them.
        config: of what is trained; what it is given they must be able to take.

    Attributes:
        weight: of their answers in the loss.

    Raises:
        CheckpointError: one cannot be read.
        ConfigError: one knows other classes or takes other inputs; names what differs.
    """

    def __init__(self, teachers: TeachersConfig, config: ClassifierConfig) -> None:
        self.weight, self.temperature = teachers.weight, teachers.temperature
        self.networks: list[nn.Module] = []
        for path in teachers.checkpoints:
            trained = checkpoint_config(load_checkpoint(path), path)
            network = load_classifier(path)  # which refuses a detector
            assert isinstance(trained, ClassifierConfig)
            wanted = _inputs(config)
            for key, value in _inputs(trained).items():
                if value != wanted[key]:
                    raise ConfigError(
                        f"loss.teachers: {path}: {key} is {value} there and {wanted[key]} here"
                    )
            self.networks.append(network.eval().requires_grad_(False))

    def to(self, device: torch.device | str) -> None:
        """Moves them to ``device``."""
        for network in self.networks:
            network.to(device)

    def divergences(self, logits: Tensor, inputs: Tensor) -> Tensor:
        """How far answers are from the mean of theirs.

        Args:
            logits: (B, K), what is answered.
            inputs: of the networks.

        Returns:
            (B,) Kullback-Leibler divergence at the temperature, times its square, which keeps the
            size of gradients.
        """
        cold = 1 / self.temperature
        with torch.no_grad():
            said = [(network(inputs).float() * cold).softmax(1) for network in self.networks]
            target = torch.stack(said).mean(0)
        apart = F.kl_div((logits * cold).log_softmax(1), target, reduction="none").sum(1)
        return apart * self.temperature**2


def _inputs(config: ClassifierConfig) -> dict[str, Any]:
    """What decides what a classifier is given, and what its answers mean."""
    found: dict[str, Any] = {
        "classes": ", ".join(config.classes),
        "the input": "points" if config.takes_points else "a grid",
        "objects.source": config.objects.source,
    }
    if config.objects.source == "crops":
        found["objects.extent"] = config.objects.extent
    if not config.takes_points:
        found["classifier.grid_size"] = config.classifier.grid_size
        found["classifier.occupancy"] = config.classifier.occupancy
    return found
