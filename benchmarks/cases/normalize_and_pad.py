"""Normalization and padding of the images of a batch, and the padding mask."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.clock import Times, copy_bandwidth
from benchmarks.registry import Case, Goal, backends, default_backend
from detr_fast import ops
from detr_fast.images import MEAN, STD
from detr_fast.ops import PackedImages

SIZES = [(2, 640, 853), (16, 800, 1066)]
SMALL = [(2, 12, 20)]


def case(device: torch.device, images: int, height: int, width: int) -> Case:
    statistics = {"mean": MEAN, "std": STD, "memory_format": torch.channels_last}

    def inputs() -> PackedImages:
        rng = torch.Generator().manual_seed(0)
        sizes = [(height, width * 3 // 4) if image % 2 else (height * 3 // 4, width) for image in range(images)]
        pixels = [torch.randint(256, (*size, 3), generator=rng, dtype=torch.uint8) for size in sizes]
        return PackedImages.from_list(pixels, [image % 3 == 0 for image in range(images)]).to(device)

    def compute(packed: PackedImages, backend: str) -> tuple[Tensor, Tensor]:
        return ops.normalize_and_pad(packed, **statistics, backend=backend)

    def expected(packed: PackedImages) -> tuple[Tensor, Tensor]:
        return ops.normalize_and_pad(packed, **statistics, dtype=torch.float64, backend="reference")

    def bandwidth(packed: PackedImages, times: Times) -> float:
        moved = packed.pixels.nbytes + images * height * width * (3 * 4 + 1)
        return moved / (times.median / 1e6) / copy_bandwidth(device)

    on_cuda = device.type == "cuda"
    return Case(
        f"images {images}x{height}x{width}, float32, channels last",
        default_backend("normalize_and_pad", device),
        inputs,
        backends("normalize_and_pad", device, compute),
        expected,
        atol=1e-5,
        goals=(Goal("ratio", 5, "reference"),) if not on_cuda or images > 2 else (),
        numbers={"bandwidth": bandwidth} if on_cuda else {},
    )
