"""Launches every Triton kernel once, on small inputs: what compute-sanitizer is run over."""

from __future__ import annotations

import torch

from benchmarks.conftest import coco_like_targets
from benchmarks.integration_steps import predictions
from detr_fast import LossWeights, MatchWeights, ops, use_backend
from detr_fast.ops.dispatch import OPS


def launch_kernels(device: torch.device) -> None:
    """Run each op's Triton backend, forward and backward, in its main variants."""
    targets = coco_like_targets(2).to(device)
    logits, boxes = predictions(1, 2, 20, 92, device)
    with use_backend(**dict.fromkeys(OPS, "triton")):
        mask = torch.zeros(1, 3, 20, dtype=torch.bool, device=device)
        for layout in ("bchw", "blc"):
            ops.sine_position_encoding(mask, 16, layout=layout)
        leaf = boxes[0].clone().requires_grad_()
        ops.sine_coordinate_embedding(leaf, 16).sum().backward()
        (ops.pairwise_box_iou(leaf, leaf, kind="giou").sum() + ops.pairwise_box_l1(leaf, leaf).sum()).backward()
        for preset in ("detr", "deformable"):
            leaves = logits.clone().requires_grad_(), boxes.clone().requires_grad_()
            cost = ops.match_cost(*leaves, targets, weights=getattr(MatchWeights, preset)())
            index = ops.batch_linear_sum_assignment(cost, targets)
            total, _ = ops.weighted_set_loss(*leaves, targets, index, weights=getattr(LossWeights, preset)())
            total.backward()
    from detr_fast.ops import faults

    faults.raise_faults()


if __name__ == "__main__":
    launch_kernels(torch.device("cuda"))
    torch.cuda.synchronize()
