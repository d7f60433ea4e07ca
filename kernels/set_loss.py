"""Class, L1 and GIoU losses of all layers and their gradients: two launches forward, one backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detr_fast.kernels import launch_on
from detr_fast.kernels.faults import status_word
from detr_fast.kernels.set_loss_kernels import set_loss_bwd_kernel, set_loss_fwd_kernel, set_loss_reduce_kernel

if TYPE_CHECKING:
    from detr_fast.ops.targets import Targets
    from detr_fast.ops.weights import LossWeights


def set_loss(
    logits: Tensor,  # [L,B,Q,C]
    boxes: Tensor,  # [L,B,Q,4]
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Tensor | float,
    class_normalizer: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """The losses of each layer [3,L], and their weighted sum []."""
    dtype = _compute_dtype(logits, boxes)
    num_layers, num_images = logits.shape[:2]
    options = launch_options(logits.shape[2], logits.shape[3], weights, dtype)
    blocks = triton.cdiv(logits.shape[2], options["BLOCK_Q"])
    partial = torch.empty(num_layers, 3, num_images * blocks, dtype=dtype, device=logits.device)
    losses = torch.empty(3, num_layers, dtype=dtype, device=logits.device)
    total = torch.empty((), dtype=dtype, device=logits.device)
    divisors = _as_launched(num_boxes, class_normalizer, dtype, logits.device)
    with launch_on(logits):
        if partial.numel():
            set_loss_fwd_kernel[(num_layers * num_images, blocks)](
                *_inputs(logits, boxes, targets, query_index),
                partial,
                status_word(logits.device),
                *_counts(logits, query_index),
                **options,
            )
        set_loss_reduce_kernel[(1,)](
            partial,
            *divisors,
            losses,
            total,
            num_layers,
            partial.shape[2],
            SOFTMAX=weights.class_loss == "softmax",
            ON_DEVICE=isinstance(divisors[0], Tensor),
            DTYPE=options["DTYPE"],
            **loss_weights(weights),
            **reduce_options(num_layers),
        )
    return losses, total


def set_loss_backward(
    grads: Sequence[Tensor | None],  # of the losses [3,L] and of their weighted sum []
    needed: Sequence[bool],
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Tensor | float,
    class_normalizer: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """The gradients of logits and boxes."""
    dtype = _compute_dtype(logits, boxes)
    grad_losses, grad_total = grads
    grad_logits, grad_boxes = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (logits, boxes))
    if not grad_boxes.numel():
        return grad_logits, grad_boxes
    options = launch_options(logits.shape[2], logits.shape[3], weights, dtype)
    divisors = _as_launched(num_boxes, class_normalizer, dtype, logits.device)
    with launch_on(logits):
        set_loss_bwd_kernel[(logits.shape[0] * logits.shape[1], triton.cdiv(logits.shape[2], options["BLOCK_Q"]))](
            *_inputs(logits, boxes, targets, query_index),
            *divisors,
            boxes if grad_losses is None else grad_losses.contiguous(),
            boxes if grad_total is None else grad_total,
            grad_logits,
            grad_boxes,
            logits.shape[0],
            *_counts(logits, query_index),
            FROM_LOSSES=grad_losses is not None,
            FROM_TOTAL=grad_total is not None,
            ON_DEVICE=isinstance(divisors[0], Tensor),
            **loss_weights(weights),
            **options,
        )
    return grad_logits, grad_boxes


def _compute_dtype(logits: Tensor, boxes: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == boxes.dtype == torch.float64 else torch.float32


def _inputs(logits: Tensor, boxes: Tensor, targets: Targets, query_index: Tensor) -> tuple[Tensor, ...]:
    packed = targets.labels, targets.boxes, targets.offsets
    return logits.contiguous(), boxes.contiguous(), *packed, query_index.contiguous()


def _counts(logits: Tensor, query_index: Tensor) -> tuple[int, ...]:
    """Images, queries, classes, targets and groups."""
    return *logits.shape[1:], query_index.shape[2], query_index.shape[1]


def loss_weights(weights: LossWeights) -> dict[str, float]:
    """What the total is made of, as the kernels are compiled for it."""
    return {"LOSS_CE": weights.loss_ce, "LOSS_BBOX": weights.loss_bbox, "LOSS_GIOU": weights.loss_giou}


def _as_launched(
    num_boxes: Tensor | float, class_normalizer: Tensor | float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor] | tuple[float, float]:
    """Two tensors; or two numbers, which go with the launch, where they are rounded to float32."""
    if dtype == torch.float32 and not isinstance(num_boxes, Tensor) and not isinstance(class_normalizer, Tensor):
        return float(num_boxes), float(class_normalizer)
    return _on_device(num_boxes, dtype, device), _on_device(class_normalizer, dtype, device)


def _on_device(value: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(device, non_blocking=True)
    return torch.full((), value, dtype=dtype, device=device)


def launch_options(num_queries: int, num_classes: int, weights: LossWeights, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time numbers of the forward and the backward kernel."""
    block_c = triton.next_power_of_2(num_classes)
    return {
        "CLASS_LOSS": weights.class_loss,
        "NO_OBJECT": weights.no_object,
        "ALPHA": weights.focal_alpha,
        "GAMMA": weights.focal_gamma,
        "EPS": weights.giou_eps,
        "SCALE": weights.box_scale,
        "DTYPE": tl.float64 if dtype == torch.float64 else tl.float32,
        "BLOCK_Q": min(64, triton.next_power_of_2(num_queries), max(1, 2048 // block_c)),
        "BLOCK_C": block_c,
        "num_warps": min(16, max(4, block_c // 512)),
    }


def reduce_options(num_layers: int) -> dict[str, int]:
    """Block sizes and warps of the reducing kernel: all layers' losses at a time."""
    block_l = triton.next_power_of_2(max(1, 3 * num_layers))
    return {"BLOCK_L": block_l, "BLOCK_P": max(1, min(256, 4096 // block_l)), "num_warps": 8}
