"""Write tiny_official_pre_norm.npz: outputs of facebookresearch/detr with --pre_norm, which its own code computes.

It runs beside a checkout of facebookresearch/detr, whose directory is the argument, with PyTorch, NumPy and SciPy::

    python tests/golden/make_pre_norm_official.py path/to/detr

All is computed in float64, also the position encoding, which the code casts to float32. The features replace those of a
backbone. torchvision, which the transformer and the heads do not use, is replaced by an empty module.
"""

from __future__ import annotations

import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

CLASSES, QUERIES, CHANNELS, DIM, HEADS, LAYERS, FEED_FORWARD = 5, 7, 12, 16, 2, (2, 3), 24
CELLS = (5, 6)
UNPADDED = ((5, 6), (3, 4), (1, 2))  # cells of each image


class Absent(ModuleType):
    """A module without content."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.__spec__ = ModuleSpec(name, None)
        self.__path__: list[str] = []
        self.__version__ = "1.0"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return sys.modules.get(f"{self.__name__}.{name}")


class InDouble(TorchFunctionMode):
    """Computes in float64 what the code asks for in float32."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        return function(*args, **kwargs)


def main(checkout: str) -> None:
    sys.path.insert(0, checkout)
    for name in (
        "torchvision",
        "torchvision.models",
        "torchvision.models._utils",
        "torchvision.ops",
        "torchvision.ops.boxes",
    ):
        sys.modules[name] = Absent(name)
    from models.detr import DETR  # type: ignore[import-not-found]
    from models.position_encoding import PositionEmbeddingSine  # type: ignore[import-not-found]
    from models.transformer import Transformer  # type: ignore[import-not-found]
    from util.misc import NestedTensor  # type: ignore[import-not-found]

    torch.manual_seed(0)
    features = torch.randn(len(UNPADDED), CHANNELS, *CELLS)
    mask = torch.ones(len(UNPADDED), *CELLS, dtype=torch.bool)
    for image, (height, width) in enumerate(UNPADDED):
        mask[image, :height, :width] = False

    class Backbone(nn.Module):
        num_channels = CHANNELS

        def forward(self, samples: Any) -> Any:
            given = NestedTensor(features.double(), mask)
            return [given], [PositionEmbeddingSine(DIM // 2, normalize=True)(given)]

    transformer = Transformer(
        DIM, HEADS, *LAYERS, FEED_FORWARD, dropout=0.0, normalize_before=True, return_intermediate_dec=True
    )
    model = DETR(Backbone(), transformer, CLASSES, QUERIES, aux_loss=True)
    for parameter in model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    arrays = {"features": features, "mask": mask}
    arrays |= {f"weights/{name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
    model.double()
    with InDouble():
        output = model(NestedTensor(torch.zeros(len(UNPADDED), 3, 160, 192), mask))
    layers = [*output["aux_outputs"], output]
    for name, key in (("logits", "pred_logits"), ("boxes", "pred_boxes")):
        arrays[name] = torch.stack([layer[key] for layer in layers])
        arrays[f"factor/{name}"] = torch.randn(arrays[name].shape)
    loss: Tensor = sum((arrays[name] * arrays[f"factor/{name}"]).sum() for name in ("logits", "boxes"))  # type: ignore
    loss.backward()
    for name, parameter in model.named_parameters():
        arrays[f"grad/{name}"] = parameter.grad
    path = Path(__file__).with_name("tiny_official_pre_norm.npz")
    np.savez_compressed(path, **{name: tensor.detach().numpy() for name, tensor in arrays.items()})


if __name__ == "__main__":
    main(sys.argv[1])
