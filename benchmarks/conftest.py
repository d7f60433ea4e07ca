from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from detr_fast import Targets
from detr_fast.ops.dispatch import OPS

DEVICES = ["cpu", "cuda"]


def backends(column: str) -> list[object]:
    """Each device and backend of a hot path, the ones that cannot run skipped with their reason."""
    parameters = []
    for device in DEVICES:
        for backend in OPS[column].backends.values():
            reason = None if device == "cpu" or torch.cuda.is_available() else "there is no GPU"
            reason = reason or backend.unavailable(torch.device(device))
            marks = [pytest.mark.skip(reason=reason)] if reason else []
            parameters.append(pytest.param(device, backend.name, marks=marks, id=f"{device}-{backend.name}"))
    return parameters


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Ratios between backends on a CPU are taken on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def coco_like_targets(num_images: int, num_classes: int = 91, seed: int = 0) -> Targets:
    """Targets in COCO's numbers: about seven an image, some images with none, some with many."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.empty(num_images).exponential_(1 / 7.3, generator=generator).int().clamp(max=63).tolist()
    return Targets.from_list(
        [
            {
                "labels": torch.randint(num_classes, (n,), generator=generator),
                "boxes": torch.rand(n, 4, generator=generator) * 0.4 + 0.2,
            }
            for n in sizes
        ]
    )


def synchronized(function, device: str):  # type: ignore[no-untyped-def]
    """The function, waiting for the device where there is one to wait for."""
    if device == "cpu":
        return function

    def run() -> None:
        function()
        torch.cuda.synchronize()

    return run
