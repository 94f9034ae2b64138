"""What is installed, what was compiled and what runs: look here first when something fails."""

from __future__ import annotations

import importlib.util
import platform
from importlib import metadata
from typing import Any

import voxelpool

_REQUIRED = ("torch", "numpy", "lightning", "pydantic", "yaml", "typer", "rich", "tensorboard")
_OPTIONAL = {
    "open3d": "simulation, pictures and windows",
    "spconv": "sparse middle layers on CUDA",
}
_DISTRIBUTIONS = {"yaml": ("PyYAML",), "spconv": ("spconv-cu120", "spconv-cu118", "spconv")}


class ConfigReport(dict[str, Any]):
    """A report as a dict; ``str()`` sets it as a table."""

    def __str__(self) -> str:
        lines = []
        for section, content in self.items():
            if isinstance(content, dict):
                lines.append(f"{section}:")
                lines += [f"  {key:<14} {_text(value)}" for key, value in content.items()]
            else:
                lines.append(f"{section:<16} {_text(content)}")
        return "\n".join(lines)


def show_config() -> ConfigReport:
    """Versions, the compiled part and its CUDA code, the GPUs seen, and which packages are there.

    Returns:
        A dict, readable when printed: ``voxelpool``, ``python``, ``platform`` (str), ``compiled``
        (``present`` bool, ``compiler``, ``cuda_toolkit``, ``cuda_architectures`` list), ``gpu``
        (``devices`` list, ``kernels_run`` bool or None), ``packages`` (version, or None where it is
        missing).
    """
    return ConfigReport(
        voxelpool=voxelpool.__version__,
        python=platform.python_version(),
        platform=platform.platform(),
        compiled=_compiled(),
        gpu=_gpu(),
        packages=_packages(),
    )


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return "not installed" if value is None else str(value)


def _compiled() -> dict[str, Any]:
    try:
        from voxelpool.ops import _native

        native = _native.module()
        reason = _native.missing_because()
    except ImportError as error:
        native, reason = None, str(error)
    if native is None:
        return {
            "present": False,
            "reason": reason,
            "cuda_toolkit": "none",
            "cuda_architectures": [],
        }
    return {
        "present": True,
        "compiler": native.compiler,
        "cuda_toolkit": native.cuda_version or "none",
        "cuda_architectures": native.cuda_architectures.split(),
    }


def _gpu() -> dict[str, Any]:
    try:
        import torch
    except ImportError:
        return {"devices": [], "kernels_run": False}
    devices = []
    if torch.cuda.is_available():
        for index in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(index)
            devices.append(f"{torch.cuda.get_device_name(index)} (sm_{major}{minor})")
    return {
        "devices": devices,
        "torch_cuda": torch.version.cuda or "none (CPU build of torch)",
        "kernels_run": bool(devices) and _kernels_run(),
    }


def _kernels_run() -> bool:
    import torch

    try:
        from voxelpool.ops import _native
    except ImportError:
        return False
    return _native.usable(torch.device("cuda", 0))


def _packages() -> dict[str, str | None]:
    return {name: _version(name) for name in (*_REQUIRED, *_OPTIONAL)}


def _version(name: str) -> str | None:
    """The installed version; found without importing the package."""
    if importlib.util.find_spec(name) is None:
        return None
    for distribution in _DISTRIBUTIONS.get(name, (name,)):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return "unknown version"
