"""Installed versions, devices, and the backend of each op."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version

import torch

import detr_fast
from detr_fast.ops.dispatch import OPS, BackendError, Op

PACKAGES = ("torch", "triton", "numpy", "scipy", "accelerate", "hotcoco", "huggingface_hub", "safetensors")


def describe() -> str:
    """List versions and devices, and for each op and device the backend chosen and why the others are not."""
    lines = [f"detr_fast {detr_fast.__version__}, Python {platform.python_version()}, {platform.machine()}"]
    lines += [f"  {name} {package_version(name)}" for name in PACKAGES]
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
        lines.append(f"GPU: {torch.cuda.get_device_name()}")
    else:
        lines.append("GPU: none that torch can use")
    for device in devices:
        lines.append(f"ops on {device.type}:")
        for op in sorted(OPS.values(), key=lambda op: op.name):
            lines += _describe_op(op, device)
    return "\n".join(lines)


def _describe_op(op: Op, device: torch.device) -> list[str]:
    names = ", ".join(op.public_names)
    try:
        chosen = op.choose(device).name
    except BackendError as error:
        return [f"  {names}: {error}"]
    lines = [f"  {names}: {chosen}"]
    for backend in op.backends.values():
        if backend.name != chosen:
            lines.append(f"    {backend.name}: {backend.refusal(device) or 'available'}")
    return lines


def package_version(package: str) -> str:
    """Return the installed version of a package, or "not installed"."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
