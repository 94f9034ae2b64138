"""The face of a trained detector: points in, boxes out."""

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias, get_args, overload

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from voxelpool.config import Config
from voxelpool.datasets.sweeps import find_sweeps, read_ahead, read_lone_sweep
from voxelpool.detection import Detections, looks
from voxelpool.errors import ConfigError
from voxelpool.models import Precision, VoxelDetector, load_detector
from voxelpool.models.weights import find_weights, random_points
from voxelpool.structures import Voxels

#: (N, 3 or more) points: x, y, z in metres in the LiDAR frame, then features; any kind of float.
Sweep: TypeAlias = NDArray[np.floating[Any]] | Tensor
#: What `Detector.stream` takes one by one: a file, a sweep, or a sweep with its name.
StreamItem: TypeAlias = str | os.PathLike[str] | Sweep | tuple[str, Sweep]


class Detector:
    """A trained network, ready to find objects.

    It may be used by several threads at once, which get what one would.

    Args:
        network: what finds; it is copied as it is now, so training it further changes nothing here.
        device: where it computes; None: CUDA where there is one, else the CPU.
        score_threshold: boxes below are dropped; None: as the network has it.
        nms_iou: of two boxes that overlap by more in bird's-eye view, the one with the lower score
            is dropped; None: as the network has it.
        max_detections: best boxes of a sweep that are kept; None: as the network has it.
        votes: looks at a sweep, mirrored, turned and scaled, whose boxes are averaged; each takes
            as long as one detection. None: as the network has it; see `VoxelDetector.detect`.
        precision: of the convolutions. With ``bf16`` boxes differ by a centimetre or so.
        compile: whether `torch.compile` makes one graph of all that follows voxelization, now;
            or its back end. The first batch of several sweeps compiles once more. For GPUs: on the
            CPU a graph computes the whole dense map, where the network itself computes what voxels
            reach, and is slower.

    Raises:
        ConfigError: ``device`` is unknown or not there.
        ValueError: a threshold or ``votes`` is out of range, or ``precision`` is unknown.
    """

    def __init__(
        self,
        network: VoxelDetector,
        *,
        device: torch.device | str | None = None,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        max_detections: int | None = None,
        votes: int | None = None,
        precision: Precision = "32",
        compile: bool | str = False,
    ) -> None:
        if precision not in get_args(Precision):
            known = " or ".join(get_args(Precision))
            raise ValueError(f"precision must be {known}, got {precision!r}")
        self.device = _device(device)
        self.precision: Precision = precision
        given = {
            "score_threshold": score_threshold,
            "nms_iou": nms_iou,
            "max_detections": max_detections,
        }
        self._network = copy.deepcopy(network).to(self.device).eval().requires_grad_(False)
        self._network.zero_grad(set_to_none=True)
        self._network.postprocess = network.postprocess.changed(
            **{name: value for name, value in given.items() if value is not None}
        )
        if votes is not None:
            self._network.looks = looks(votes)
        if compile:
            _compile(self._network, "inductor" if compile is True else compile)
            for sweep in _warm_up(self._network):
                self.detect(sweep)

    @classmethod
    def load(
        cls,
        path_or_name: str | os.PathLike[str],
        *,
        config: Config | None = None,
        device: torch.device | str | None = None,
        score_threshold: float | None = None,
        nms_iou: float | None = None,
        max_detections: int | None = None,
        votes: int | None = None,
        precision: Precision = "32",
        compile: bool | str = False,
    ) -> Detector:
        """Opens weights that came with this package, by name, or those in a file.

        Args:
            path_or_name: one of `voxelpool.models.weights.shipped_weights`, or a checkpoint that
                training or ``tools/export.py --format weights`` wrote. It is read as data: no code
                in it is run.
            config: what it must fit; None takes its own.
            device: this and all below as the class.
            score_threshold: see there.
            nms_iou: see there.
            max_detections: see there.
            votes: see there.
            precision: see there.
            compile: see there.

        Raises:
            CheckpointError: no such file or name, damaged, more than data, a classifier's, or
                trained with another network than ``config`` describes.
            ConfigError: as the class.
            ValueError: as the class.
        """
        return cls(
            load_detector(find_weights(path_or_name), config),
            device=device,
            score_threshold=score_threshold,
            nms_iou=nms_iou,
            max_detections=max_detections,
            votes=votes,
            precision=precision,
            compile=compile,
        )

    @property
    def config(self) -> Config:
        """What the network was built from; thresholds given to this detector are not in it."""
        return self._network.config

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of what it finds, in the order of class ids."""
        return self.config.classes

    @property
    def point_dims(self) -> int:
        """Columns of a point that it looks at: x, y, z and features."""
        return self._network.point_dims

    @property
    def score_threshold(self) -> float:
        """Boxes with a lower score are dropped."""
        return self._network.postprocess.score_threshold

    @property
    def nms_iou(self) -> float:
        """Boxes that overlap a better one by more are dropped."""
        return self._network.postprocess.nms_iou

    @property
    def max_detections(self) -> int:
        """Best boxes of a sweep that are kept."""
        return self._network.postprocess.max_detections

    @property
    def votes(self) -> int:
        """Looks at a sweep whose boxes are averaged."""
        return len(self._network.looks)

    def __repr__(self) -> str:
        config = self.config
        return (
            f"Detector({config.name}: {config.model} of {', '.join(self.classes)}, {self.device})"
        )

    @overload
    def detect(self, points: Sweep, *, seed: int = 0) -> Detections: ...

    @overload
    def detect(self, points: Sequence[Sweep], *, seed: int = 0) -> list[Detections]: ...

    def detect(
        self, points: Sweep | Sequence[Sweep], *, seed: int = 0
    ) -> Detections | list[Detections]:
        """Finds objects in one sweep, or in each of several that are computed together.

        A point with a NaN or infinite value is left out, as is one outside of the network's grid.
        Of a network that was trained on what the camera sees, as KITTI's are, expect little beyond.

        Args:
            points: a sweep (N, C), or a list or tuple of them. Columns that the network does not
                look at are left out. An empty sweep is an ordinary one, in which nothing is.
            seed: decides which points a full voxel keeps.

        Returns:
            `Detections` by descending score, or a list with one for each sweep; tensors on the
            device of the points, for arrays on the CPU. ``.numpy()`` makes arrays of them.

        Raises:
            TypeError: no array or tensor, or not of floats.
            ValueError: another shape, or fewer columns than the network needs.
        """
        if not isinstance(points, list | tuple):
            return self._detect([self._checked(points)], seed)[0].to(_home(points))
        sweeps = [self._checked(sweep, f"sweep {row}: ") for row, sweep in enumerate(points)]
        found = self._detect(sweeps, seed) if sweeps else []
        return [one.to(_home(sweep)) for one, sweep in zip(found, points, strict=True)]

    def stream(
        self,
        source: str | os.PathLike[str] | Iterable[StreamItem],
        *,
        crop: bool | None = None,
        progress: Callable[[int, int | None], None] | None = None,
    ) -> Iterator[tuple[str, Detections]]:
        """Finds objects in one sweep after the other, while a thread reads the next ones.

        Args:
            source: a folder of sweeps, one such file, or anything that gives files, sweeps or
                (name, sweep) one by one; it is iterated in the reading thread.
            crop: keep of a file what the camera sees, where a calibration lies beside it in KITTI's
                layout; None: as the network was trained.
            progress: called after each sweep with how many are done and how many there are, None
                where nobody knows.

        Yields:
            The name of a sweep and what was found in it. A file goes by its name without the
            ending, a sweep without a name by its number, six digits from 000000.

        Raises:
            DataError: a folder holds no sweep, or a file is bad.
            OSError: a file cannot be read.
            TypeError: ``source`` is a sweep, or gives something else than the above.
        """
        if isinstance(source, np.ndarray | Tensor):
            raise TypeError("a stream has many sweeps: pass one to detect, or in a list")
        items = find_sweeps([source]) if isinstance(source, str | os.PathLike) else source
        total = len(items) if hasattr(items, "__len__") else None
        if crop is None:
            crop = self.config.data.crop_to_image

        def results() -> Iterator[tuple[str, Detections]]:
            for done, (name, points) in enumerate(read_ahead(_named_sweeps(items, crop)), 1):
                found = self.detect(points)
                if progress is not None:
                    progress(done, total)
                yield name, found

        return results()

    def _checked(self, points: Any, what: str = "") -> Tensor:
        """The finite points of a sweep, as the network takes them."""
        if not isinstance(points, np.ndarray | Tensor):
            kind = type(points).__name__
            raise TypeError(f"{what}points must be a numpy array or a tensor, got {kind}")
        floats = (
            points.is_floating_point() if isinstance(points, Tensor) else (points.dtype.kind == "f")
        )
        if not floats:
            raise TypeError(f"{what}points must be floats, got {points.dtype}")
        shape, needed = tuple(points.shape), self.point_dims
        if len(shape) != 2:
            raise ValueError(f"{what}points must have shape (N, {needed}), got {shape}")
        if shape[1] < needed:
            raise ValueError(
                f"{what}points have {shape[1]} columns, and {self.config.name} needs {needed}: "
                f"x, y, z and {needed - 3} more"
            )
        points = points[:, :needed]
        if isinstance(points, np.ndarray):
            with np.errstate(over="ignore"):
                points = torch.tensor(points.astype(np.float32))
        points = points.detach().to(self.device, torch.float32)
        return points[points.isfinite().all(dim=1)]

    def _detect(self, sweeps: list[Tensor], seed: int) -> list[Detections]:
        options: dict[str, Any] = {"seed": seed, "precision": self.precision}
        if len(sweeps) == 1:
            return self._network.detect(sweeps[0], **options)
        sizes = torch.tensor([len(sweep) for sweep in sweeps], device=self.device)
        batch = torch.arange(len(sweeps), device=self.device).repeat_interleave(sizes)
        return self._network.detect(torch.cat(sweeps), batch, len(sweeps), **options)


def _device(device: torch.device | str | None) -> torch.device:
    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError as error:
        raise ConfigError(f"device {device!r} is unknown: cpu, cuda, cuda:1, ...") from error
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device {device} is not there: torch sees {count} CUDA devices")
    return place


def _home(points: Sweep) -> torch.device | str:
    return points.device if isinstance(points, Tensor) else "cpu"


def _compile(network: VoxelDetector, backend: str) -> None:
    """Lets `network.predict` run as one graph, for any numbers of points and voxels.

    Sizes of 0 and 1 would each be a graph of their own, so the network itself takes those.
    """
    plain = network.predict
    options = {"isolate_recompiles": True}  # graphs of other detectors do not count; newer torch
    known = inspect.signature(torch.compile).parameters
    graph = torch.compile(
        plain,
        fullgraph=True,
        dynamic=True,
        backend=backend,
        **{name: value for name, value in options.items() if name in known},
    )

    def predict(points: Tensor, voxels: Voxels) -> Any:
        return (plain if voxels.num_voxels < 2 else graph)(points, voxels)

    network.predict = predict  # type: ignore[method-assign]


def _warm_up(network: VoxelDetector) -> list[Tensor]:
    """Sweeps after which no other number of points or voxels asks for another graph."""
    points = random_points(network, 2000)
    return [torch.cat([points[:count], points[: count // 3]]) for count in (2000, 300)]


def _named_sweeps(items: Iterable[StreamItem], crop: bool) -> Iterator[tuple[str, Sweep]]:
    for row, item in enumerate(items):
        if isinstance(item, str | os.PathLike):
            yield Path(item).stem, read_lone_sweep(item, crop=crop).points
        elif isinstance(item, tuple) and len(item) == 2 and isinstance(item[0], str):
            yield item
        else:
            yield f"{row:06d}", item  # type: ignore[misc]
