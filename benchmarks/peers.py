"""Importing what we are measured against."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
from types import ModuleType

import torch

WAYS = {
    "rfdetr": "pip install --no-deps -r tests/integrations/peers.txt",
    "torch_linear_assignment": "pip install torch-hungarian",
    "transformers": "pip install '.[test]'",
}


class PeerMissing(Exception):
    """A peer is not installed; the message says how to have it."""


def import_peer(name: str, module: str | None = None) -> ModuleType:
    """Import a peer, or a module of it.

    Raises:
        PeerMissing: it is not installed.
    """
    if importlib.util.find_spec(name) is None:
        raise PeerMissing(f"{name} is not installed ({WAYS[name]})")
    declare_torchvision()
    return importlib.import_module(module or name)


def declare_torchvision() -> None:
    """Let torchvision's wheel import beside a CPU build of torch: declare the operators that it asks for by name."""
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
