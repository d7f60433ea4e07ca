"""Compare every backend of the matching cost and of the solver that runs on this machine with the reference."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from detr_fast import Targets, ops

LAYERS, IMAGES, QUERIES, CLASSES = 6, 4, 100, 20


def describe(op: Callable[..., Tensor], *arguments: Any, backend: str, expected: Tensor) -> str:
    """Compare what a backend computes with the expected values; the reason where it cannot run."""
    try:
        result = op(*arguments, backend=backend)
    except ops.BackendError as error:
        return str(error)
    if result.is_floating_point():
        return f"{op.__name__}: largest difference from float64 {(result - expected).abs().max():.2e}"
    return f"{op.__name__}: indices {'equal' if result.equal(expected) else 'DIFFER'}"


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    counts = (5, 0, 9, 2)  # targets of each image
    truth = [{"labels": torch.randint(CLASSES, (n,)), "boxes": torch.rand(n, 4) * 0.4 + 0.3} for n in counts]
    targets = Targets.from_list(truth).to(device)
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES + 1, device=device)
    boxes = torch.rand(LAYERS, IMAGES, QUERIES, 4, device=device) * 0.4 + 0.3
    cost = ops.match_cost(logits.double(), boxes.double(), targets, backend="reference")
    index = ops.batch_linear_sum_assignment(cost, targets, backend="reference")

    for backend in ("triton", "cpp", "scipy", "reference"):
        print(f"{backend}:")
        print(" ", describe(ops.match_cost, logits, boxes, targets, backend=backend, expected=cost))
        print(" ", describe(ops.batch_linear_sum_assignment, cost, targets, backend=backend, expected=index))


if __name__ == "__main__":
    main()
