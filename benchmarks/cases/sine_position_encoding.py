"""The sine encoding of positions on the feature map."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.clock import Times, copy_bandwidth
from benchmarks.registry import Case, Goal, backends, default_backend
from detr_fast import ops

SIZES = [(2, 25, 34), (16, 32, 32), (32, 48, 48), (64, 64, 64)]
SMALL = [(2, 3, 20, "bchw"), (2, 3, 20, "blc")]


def case(device: torch.device, images: int, height: int, width: int, layout: str = "bchw") -> Case:
    def inputs() -> Tensor:
        mask = torch.zeros(images, height, width, dtype=torch.bool, device=device)
        mask[: images // 2, height * 3 // 4 :] = True
        mask[images // 2 :, :, width * 3 // 4 :] = True
        return mask

    def compute(mask: Tensor, backend: str) -> Tensor:
        return ops.sine_position_encoding(mask, layout=layout, backend=backend)

    def expected(mask: Tensor) -> Tensor:
        return ops.sine_position_encoding(mask, layout=layout, dtype=torch.float64, backend="reference")

    def bandwidth(mask: Tensor, times: Times) -> float:
        written = expected(mask).float().nbytes
        return (written + mask.nbytes) / (times.median / 1e6) / copy_bandwidth(device)

    goals, on_cuda = (Goal("ratio", 10, "reference"),), device.type == "cuda"
    if images == 64:
        goals += (Goal("bandwidth", 0.7),)
    return Case(
        f"masks {images}x{height}x{width}, 256 channels, {layout}",
        default_backend("sine_position_encoding", device),
        inputs,
        backends("sine_position_encoding", device, compute),
        expected,
        rtol=0,
        goals=goals if on_cuda else (),
        numbers={"bandwidth": bandwidth} if on_cuda else {},
    )
