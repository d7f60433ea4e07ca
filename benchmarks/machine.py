"""The description of the machine that a report begins with."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from detr_fast.info import package_version

PACKAGES = (
    *("torch", "triton", "numpy", "scipy", "transformers", "rfdetr"),
    *("lapx", "lapcpp", "py-lap-solver", "torch-hungarian"),
)


def describe_machine(device: torch.device) -> dict[str, Any]:
    """Return the device, the versions of all that is compared, and the commit."""
    return {
        **(_describe_gpu(device) if device.type == "cuda" else _describe_cpu()),
        "python": platform.python_version(),
        "versions": {package: package_version(package) for package in PACKAGES},
        "commit": _output(["git", "rev-parse", "HEAD"]),
        "dirty": bool(_output(["git", "status", "--porcelain"])),
    }


def slug(device: str) -> str:
    """Return the name of a device as the name of a file."""
    return re.sub(r"[^a-z0-9]+", "_", device.lower()).strip("_")


def _describe_gpu(device: torch.device) -> dict[str, Any]:
    driver = _output(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]).partition("\n")[0]
    return {"device": torch.cuda.get_device_name(device), "driver": driver, "cuda": torch.version.cuda}


def _describe_cpu() -> dict[str, Any]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    try:
        from detr_fast import _C

        instructions = _C.instruction_sets()[0]
    except ImportError:
        instructions = "the extension is not built"
    return {
        "device": names[0] if names else platform.processor() or platform.machine(),
        "cores": len(names),
        "instruction set": instructions,
        "threads": torch.get_num_threads(),
    }


def _output(command: Sequence[str]) -> str:
    if shutil.which(command[0]) is None:
        return ""
    return subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent).stdout.strip()
