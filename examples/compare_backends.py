"""Compare every backend of the matching cost and of the solver that runs on this machine with the reference."""

import torch

from detr_fast import Targets, ops

LAYERS, IMAGES, QUERIES, CLASSES = 6, 4, 100, 20


def compute(backend: str, logits: torch.Tensor, boxes: torch.Tensor, targets: Targets, cost: torch.Tensor):
    """The matching cost, and the assignment of a given cost, from one backend; the reason where it has none."""
    results = []
    for op, arguments in ((ops.match_cost, (logits, boxes, targets)), (ops.batch_linear_sum_assignment, (cost, targets))):
        try:
            results.append(op(*arguments, backend=backend))
        except ops.BackendError as error:
            results.append(str(error))
    return results


def main() -> None:
    torch.manual_seed(0)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    truth = [
        {"labels": torch.randint(CLASSES, (count,)), "boxes": torch.rand(count, 4) * 0.4 + 0.3} for count in (5, 0, 9, 2)
    ]
    targets = Targets.from_list(truth).to(device)
    logits = torch.randn(LAYERS, IMAGES, QUERIES, CLASSES + 1, device=device)
    boxes = torch.rand(LAYERS, IMAGES, QUERIES, 4, device=device) * 0.4 + 0.3
    exact = ops.match_cost(logits.double(), boxes.double(), targets, backend="reference")
    expected = ops.batch_linear_sum_assignment(exact, targets, backend="reference")

    for backend in ("triton", "cpp", "scipy", "reference"):
        cost, index = compute(backend, logits, boxes, targets, exact)
        print(f"{backend}:")
        if isinstance(cost, str):
            print(f"  {cost}")
        else:
            print(f"  match_cost: largest difference from float64 {(cost - exact).abs().max():.2e}")
        if isinstance(index, str):
            print(f"  {index}")
        else:
            print(f"  batch_linear_sum_assignment: indices {'equal' if index.equal(expected) else 'DIFFER'}")


if __name__ == "__main__":
    main()
