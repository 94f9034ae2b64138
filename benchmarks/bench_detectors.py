"""Whole detectors at their papers' size: one sweep forward, and one training step.

Example: KITTI_SAMPLE_DIR=path/to/frames python benchmarks/bench_detectors.py --seconds 120
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from _data import boxes, sweep
from _measure import OURS, Case, Contender, Setting, main, require_agreement
from _plain import PlainDetector
from torch import Tensor, nn

from voxelpool.config import load_config
from voxelpool.detection import Predictions
from voxelpool.detection.box_coder import decode
from voxelpool.machine import peak_memory
from voxelpool.models.detector import VoxelDetector, build_detector

CONFIGS = Path(__file__).parents[1] / "configs"


@dataclass(frozen=True)
class Subject:
    """A detector that is measured.

    Attributes:
        name: as tables have it.
        config: its file in configs/.
        quick: overrides that make it small.
        goals: times faster than plain PyTorch: float32, bfloat16 (against float32), training.
        compared_in: the type in which gradients are compared. A rounding moves values across the
            corners of ReLUs, and behind BatchNorm the sums that are gradients cancel: SECOND's
            differ by themselves in float32.
    """

    name: str
    config: str
    quick: tuple[str, ...]
    goals: dict[str, float] = field(default_factory=dict)
    compared_in: torch.dtype = torch.float32

    def build(self, quick: bool) -> VoxelDetector:
        """The network, untrained, with the same weights each time."""
        torch.manual_seed(0)
        overrides = list(self.quick) if quick else []
        return build_detector(load_config(CONFIGS / f"{self.config}.yaml", overrides))

    def goal(self, what: str) -> dict[str, float]:
        """What a case is held to."""
        return {"plain PyTorch": self.goals[what]} if what in self.goals else {}


NARROW = ("rpn.channels=[16,16,16]", "rpn.upsample_channels=[16,16,16]", "rpn.layers=[1,1,1]")
VOXELNET = Subject(
    "VoxelNet",
    "voxelnet_car",
    (
        "grid.range=[0,-12.8,-3,25.6,12.8,1]",
        "vfe.channels=[8,16]",
        "vfe.out_channels=16",
        "middle.channels=[8,8,8]",
        *NARROW,
    ),
    {"float32": 3.0, "bfloat16": 8.0, "training": 2.0},
)
SECOND = Subject(
    "SECOND",
    "second_car",
    (
        "grid.range=[0,-12.8,-3,25.6,12.8,1]",
        "middle.channels=[4,4,8,8,8]",
        "rpn.channels=[16,16]",
        "rpn.upsample_channels=[16,16]",
        "rpn.layers=[1,1]",
    ),
    compared_in=torch.float64,
)
POINTPILLARS = Subject(
    "PointPillars",
    "pointpillars_car",
    ("grid.range=[0,-10.24,-3,20.48,10.24,1]", "vfe.out_channels=16", *NARROW),
    {"float32": 1.5},
)
ROUNDING = 1e-4
# In float64 the gradients agree to 1e-9 (tests/benchmarks). In float32 torch's statistics of maps
# with the channels innermost are less exact, and BatchNorm after BatchNorm amplifies it.
GRADIENT_ROUNDING = 0.1
GRADIENT_ROUNDING_FLOAT64 = 1e-6
BFLOAT16_ROUNDING = 0.1  # the facts of the case say what this makes of boxes and scores
CENTRE, SCORE = "a box moves by, m, at most", "a score changes by, at most"


def detector(subject: Subject, points: Tensor, quick: bool) -> VoxelDetector:
    """The network, on the device of the points, its statistics those of the sweep."""
    net = subject.build(quick).to(points.device).train()
    norms = [
        module for module in net.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)
    ]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # the mean over all batches seen: of this one
    with torch.no_grad():
        net(points)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    return net.eval()


def inference(net: nn.Module, points: Tensor, half: bool) -> Callable[[], Sequence[Tensor]]:
    """A forward pass that gives scores and residuals."""

    def run() -> Sequence[Tensor]:
        with torch.inference_mode(), torch.autocast(points.device.type, torch.bfloat16, half):
            return [out.float() for out in net(points)[:2]]

    return run


def forward(
    subject: Subject, setting: Setting, net: VoxelDetector, points: Tensor, kind: str
) -> Iterator[Case]:
    """Float32, and the fastest mode."""
    plain = PlainDetector(net)
    title = f"{subject.name} forward, {kind} sweep of {len(points):,} points"
    exact = inference(net, points, False)
    peers = {
        "plain PyTorch": inference(plain, points, False),
        "plain PyTorch, bfloat16": inference(plain, points, True),
    }
    yield Case(
        f"{title}, float32",
        [
            Contender(OURS, exact, list),
            Contender("plain PyTorch", peers["plain PyTorch"], list, ROUNDING),
        ],
        goals=subject.goal("float32"),
        facts=peaks(subject, setting),
    )
    fastest = inference(net, points, True)
    yield Case(
        f"{title}, bfloat16",
        [
            Contender(f"{OURS}, bfloat16", fastest, list),
            Contender("plain PyTorch", peers["plain PyTorch"], list, BFLOAT16_ROUNDING, "float32"),
            Contender(
                "plain PyTorch, bfloat16",
                peers["plain PyTorch, bfloat16"],
                list,
                BFLOAT16_ROUNDING,
            ),
        ],
        goals=subject.goal("bfloat16"),
        limit_ms=5.0 if setting.device == "cuda" and subject is VOXELNET else None,
        facts=deviations(net, exact(), fastest()),
    )


def deviations(
    net: VoxelDetector, exact: Sequence[Tensor], rough: Sequence[Tensor]
) -> dict[str, float]:
    """What rounding makes of the boxes: the worst of all anchors, each taken for a detection."""
    anchors = net.anchors.reshape(-1, 7)
    centres = [decode(residuals[0], anchors)[:, :3] for _, residuals in (exact, rough)]
    scores = [logits.sigmoid() for logits, _ in (exact, rough)]
    return {
        CENTRE: float((centres[0] - centres[1]).norm(dim=1).max()),
        SCORE: float((scores[0] - scores[1]).abs().max()),
    }


def peaks(subject: Subject, setting: Setting) -> dict[str, float]:
    """What the process grows by in a forward pass, MB."""
    if setting.device != "cpu" or setting.quick:
        return {}
    names = ("voxelpool", "plain PyTorch")
    return {
        f"peak MB, {name}": peak_memory(_prepare, subject, name, setting.threads, setting.quick)
        for name in names
    }


def _prepare(
    subject: Subject, name: str, threads: int, quick: bool
) -> Callable[[], Sequence[Tensor]]:
    torch.set_num_threads(threads)
    points, _ = sweep(True, 800 if quick else 19_000)
    net = subject.build(quick).eval()
    return inference(net if name == "voxelpool" else PlainDetector(net), points, False)


def training(subject: Subject, net: VoxelDetector, points: Tensor, kind: str) -> Case:
    """Forward, loss and backward."""
    weights = list(net.parameters())
    objects = boxes(8, 20.0).to(points.device)
    classes = torch.zeros(len(objects), dtype=torch.int64, device=points.device)

    def step(module: nn.Module) -> Callable[[], list[Tensor]]:
        def run() -> list[Tensor]:
            module.train()
            loss = net.loss(module(points), [objects], [classes])["loss"]
            return list(torch.autograd.grad(loss, weights))

        return run

    title = f"{subject.name} training step, {kind} sweep of {len(points):,} points, float32"
    facts, tolerance = {}, GRADIENT_ROUNDING
    if subject.compared_in == torch.float64:
        facts["in float64 gradients differ by, relative"] = exact_difference(title, net, points)
        tolerance = math.inf
    return Case(
        title,
        [
            Contender(OURS, step(net), list),
            Contender("plain PyTorch", step(PlainDetector(net)), list, tolerance),
        ],
        goals=subject.goal("training"),
        facts=facts,
    )


def exact_difference(title: str, net: VoxelDetector, points: Tensor) -> float:
    """How far both networks' gradients are apart in float64, relative to the largest."""
    net = copy.deepcopy(net).double().train()
    voxels, doubles = net.voxelize(points), points.double()

    def gradients(predictions: Predictions) -> list[Tensor]:
        parts = [part.square().mean() for part in predictions if part is not None]
        return list(torch.autograd.grad(torch.stack(parts).sum(), list(net.parameters())))

    ours = gradients(net.predict(doubles, voxels))
    theirs = gradients(PlainDetector(net)(doubles))
    return require_agreement(
        title, (OURS, ours), ("plain PyTorch", theirs), GRADIENT_ROUNDING_FLOAT64
    )


def cases(setting: Setting, subjects: Sequence[Subject]) -> Iterator[Case]:
    """Of each detector, forward in both precisions, then a training step."""
    points, kind = sweep(True, setting.size(19_000, 800))
    points = points.to(setting.device)
    for subject in subjects:
        net = detector(subject, points, setting.quick)
        yield from forward(subject, setting, net, points, kind)
        yield training(subject, net, points, kind)


voxelnet_cases = partial(cases, subjects=[VOXELNET])
family_cases = partial(cases, subjects=[SECOND, POINTPILLARS])


if __name__ == "__main__":
    main("detectors", partial(cases, subjects=[VOXELNET, SECOND, POINTPILLARS]), __doc__)
