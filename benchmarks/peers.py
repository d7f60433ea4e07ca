"""The import of other libraries that are compared."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from types import ModuleType

import torch

from benchmarks.registry import Unavailable

HOW = {  # to install a module
    "lap": "pip install '.[bench]'",
    "lapcpp": "pip install '.[bench]'",
    "py_lap_solver": "pip install '.[bench]'",
    "rfdetr": "pip install --no-deps -r tests/integrations/peers.txt",
    "scipy": "pip install '.[bench]'",
    "torch_linear_assignment": "pip install '.[bench]'",
    "transformers": "pip install '.[test]'",
}


def import_peer(name: str, module: str | None = None) -> ModuleType:
    """Import a library, or a module of it.

    Raises:
        Unavailable: It is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise Unavailable(f"{name} is not installed ({HOW[name]})")
    declare_torchvision()
    return importlib.import_module(module or name)


def declare_torchvision() -> None:
    """Import torchvision, also a wheel beside a CPU build of torch: declare the operators that it looks up by name."""
    while importlib.util.find_spec("torchvision"):
        try:
            importlib.import_module("torchvision")
            return
        except RuntimeError as error:
            missing = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if missing is None:
                raise
            _TORCHVISION.define(f"{missing[1]}(Tensor x) -> Tensor")
            for module in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
                del sys.modules[module]


_TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")
