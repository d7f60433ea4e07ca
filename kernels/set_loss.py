"""Class, L1 and GIoU losses of all layers and their gradients: two launches forward, one backward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detr_fast.ops.boxes import compute_dtype
from detr_fast.ops.faults import INDEX_OUT_OF_RANGE, LABEL_OUT_OF_RANGE, NOT_A_TARGET, REPEATED_INDEX, status_word

from .box import box_iou, box_iou_grad, corners, l1, load_box
from .class_loss import cross_entropy, cross_entropy_grad, load_logits, sigmoid_loss, sigmoid_loss_grad
from .faults import report_fault
from .launch import launch_on, triton_dtype

if TYPE_CHECKING:
    from detr_fast.ops.targets import Targets
    from detr_fast.ops.weights import LossWeights

_LABEL_OUT_OF_RANGE: tl.constexpr = tl.constexpr(LABEL_OUT_OF_RANGE)
_INDEX_OUT_OF_RANGE: tl.constexpr = tl.constexpr(INDEX_OUT_OF_RANGE)
_NOT_A_TARGET: tl.constexpr = tl.constexpr(NOT_A_TARGET)
_REPEATED_INDEX: tl.constexpr = tl.constexpr(REPEATED_INDEX)
_CHUNK: tl.constexpr = tl.constexpr(32)  # targets that are compared with the queries at a time
_COUNTS = ["num_images", "num_queries", "num_classes", "num_targets", "num_groups"]


@triton.jit
def _load_divisors(num_boxes, class_normalizer, SOFTMAX: tl.constexpr, ON_DEVICE: tl.constexpr, COMPUTE: tl.constexpr):
    """The divisors of the class loss and of the box losses."""
    if ON_DEVICE:
        box_divisor = tl.load(num_boxes).to(COMPUTE)
        class_divisor = tl.load(class_normalizer).to(COMPUTE)
    else:
        box_divisor = tl.full([], num_boxes, COMPUTE)
        class_divisor = tl.full([], class_normalizer, COMPUTE)
    if not SOFTMAX:
        class_divisor = box_divisor
    return class_divisor, box_divisor


@triton.jit
def _matched_target(
    query, num_queries, index_ptr, first_target, last_target, num_targets, num_groups, BLOCK: tl.constexpr
):
    """The target of each query of an image, -1 for none: int32 [BLOCK].

    Besides, the number of targets that have one of these queries, and the first row of [G,T] whose index is out of
    range, G * T for none.
    """
    target = tl.full([BLOCK], -1, tl.int32)
    num_matches = tl.zeros([_CHUNK], tl.int32)
    first_bad = tl.full([_CHUNK], num_groups * num_targets, tl.int32)
    for group in range(num_groups):
        for start in range(first_target, last_target, _CHUNK):
            candidate = start + tl.arange(0, _CHUNK)
            row = group * num_targets + candidate
            index = tl.load(index_ptr + row, mask=candidate < last_target, other=-1)
            bad = (index < -1) | (index >= num_queries)
            first_bad = tl.minimum(first_bad, tl.where(bad, row, num_groups * num_targets))
            index = tl.where(bad, -1, index)
            here = index[None, :] == query[:, None]  # [BLOCK,_CHUNK]
            target = tl.maximum(target, tl.max(tl.where(here, candidate[None, :], -1), 1))
            num_matches += ((index >= tl.min(query, 0)) & (index <= tl.max(query, 0))).to(tl.int32)
    return target, tl.sum(num_matches, 0), tl.min(first_bad, 0)


@triton.jit
def _matches(
    query,
    num_queries,
    layer,
    image,
    labels_ptr,
    offsets_ptr,
    index_ptr,
    status_ptr,
    num_targets,
    num_groups,
    REPORT: tl.constexpr,
    BLOCK_Q: tl.constexpr,
):
    """The image's first target; the target of each query, whether there is one, and its label, -1 for none."""
    first_target = tl.load(offsets_ptr + image)
    last_target = tl.load(offsets_ptr + image + 1)
    index_ptr += layer.to(tl.int64) * num_groups * num_targets
    target, num_matches, first_bad = _matched_target(
        query, num_queries, index_ptr, first_target, last_target, num_targets, num_groups, BLOCK_Q
    )
    matched = target >= 0
    if REPORT:
        if first_bad < num_groups * num_targets:
            bad_target = first_bad % num_targets - first_target
            report_fault(status_ptr, layer, first_bad // num_targets, image, bad_target, _INDEX_OUT_OF_RANGE)
        if num_matches != tl.sum(matched.to(tl.int32), 0):
            report_fault(status_ptr, layer, 0, image, _NOT_A_TARGET, _REPEATED_INDEX)
    label = tl.load(labels_ptr + target, mask=matched, other=-1).to(tl.int32)
    return first_target, target, matched, label


@triton.jit
def _load_pair(box_ptr, target_box_ptr, matched, COMPUTE: tl.constexpr):
    """The boxes of queries and of their targets."""
    cx, cy, w, h = load_box(box_ptr, matched, COMPUTE)
    target_cx, target_cy, target_w, target_h = load_box(target_box_ptr, matched, COMPUTE)
    return cx, cy, w, h, target_cx, target_cy, target_w, target_h


@triton.jit
def _scaled_corners(cx, cy, width, height, BOX_SCALE: tl.constexpr):
    x0, y0, x1, y1 = corners(cx, cy, width, height)
    return x0 * BOX_SCALE, y0 * BOX_SCALE, x1 * BOX_SCALE, y1 * BOX_SCALE


@triton.jit
def _rows(num_images, num_queries, BLOCK_Q: tl.constexpr):
    """The layer, image and queries of a program, and the rows of the queries in [L,B,Q]."""
    layer = tl.program_id(0) // num_images
    image = tl.program_id(0) % num_images
    query = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return layer, image, query, tl.program_id(0).to(tl.int64) * num_queries + query


@triton.jit
def _iou_of_match(
    box_ptr,
    target_box_ptr,
    matched,
    CLASS_LOSS: tl.constexpr,
    BOX_SCALE: tl.constexpr,
    GIOU_EPS: tl.constexpr,
    COMPUTE: tl.constexpr,
):
    """The IoU of each query and its target where the class loss depends on it: [BLOCK_Q]."""
    iou = tl.zeros(matched.shape, COMPUTE)
    if CLASS_LOSS != "focal":
        cx, cy, w, h, target_cx, target_cy, target_w, target_h = _load_pair(box_ptr, target_box_ptr, matched, COMPUTE)
        x0, y0, x1, y1 = _scaled_corners(cx, cy, w, h, BOX_SCALE)
        target_x0, target_y0, target_x1, target_y1 = _scaled_corners(
            target_cx, target_cy, target_w, target_h, BOX_SCALE
        )
        iou = box_iou(x0, y0, x1, y1, target_x0, target_y0, target_x1, target_y1, "iou", GIOU_EPS)
    return iou


@triton.jit(do_not_specialize=_COUNTS)
def set_loss_fwd_kernel(
    logits_ptr,  # [L,B,Q,C]
    boxes_ptr,  # [L,B,Q,4]
    labels_ptr,  # int64 [T]
    target_boxes_ptr,  # [T,4]
    offsets_ptr,  # int32 [B+1]
    index_ptr,  # int64 [L,G,T]
    partial_ptr,  # [L,3,B*blocks]
    status_ptr,  # int64 [1]
    num_images,
    num_queries,
    num_classes,
    num_targets,
    num_groups,
    CLASS_LOSS: tl.constexpr,
    NO_OBJECT: tl.constexpr,
    FOCAL_ALPHA: tl.constexpr,
    FOCAL_GAMMA: tl.constexpr,
    GIOU_EPS: tl.constexpr,
    BOX_SCALE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of the three losses over a block of an image's queries, before the division."""
    SOFTMAX: tl.constexpr = CLASS_LOSS == "softmax"
    layer, image, query, row = _rows(num_images, num_queries, BLOCK_Q)
    first_target, target, matched, label = _matches(
        query, num_queries, layer, image, labels_ptr, offsets_ptr, index_ptr, status_ptr, num_targets, num_groups,
        True, BLOCK_Q,
    )  # fmt: skip

    out_of_range = matched & ((label < 0) | (label >= num_classes - SOFTMAX))
    first_bad = tl.min(tl.where(out_of_range, target, num_targets), 0)
    if first_bad < num_targets:
        report_fault(status_ptr, layer, 0, image, first_bad - first_target, _LABEL_OUT_OF_RANGE)

    col = tl.arange(0, BLOCK_C)
    inside = (query[:, None] < num_queries) & (col[None, :] < num_classes)
    logits = load_logits(
        logits_ptr + row[:, None] * num_classes, col, query[:, None] < num_queries, num_classes, COMPUTE
    )
    if SOFTMAX:
        label = tl.where(matched, label, num_classes - 1)
        class_loss = cross_entropy(logits, col[None, :] == label[:, None])
        class_loss = tl.where(query < num_queries, tl.where(matched, class_loss, NO_OBJECT * class_loss), 0)
    else:
        iou = _iou_of_match(
            boxes_ptr + row * 4, target_boxes_ptr + target * 4, matched, CLASS_LOSS, BOX_SCALE, GIOU_EPS, COMPUTE
        )
        loss = sigmoid_loss(logits, col[None, :] == label[:, None], iou[:, None], CLASS_LOSS, FOCAL_ALPHA, FOCAL_GAMMA)
        class_loss = tl.sum(tl.where(inside, loss, 0), 1)

    cx, cy, w, h, target_cx, target_cy, target_w, target_h = _load_pair(
        boxes_ptr + row * 4, target_boxes_ptr + target * 4, matched, COMPUTE
    )
    box_l1 = l1(cx, cy, w, h, target_cx, target_cy, target_w, target_h)
    x0, y0, x1, y1 = _scaled_corners(cx, cy, w, h, BOX_SCALE)
    target_x0, target_y0, target_x1, target_y1 = _scaled_corners(target_cx, target_cy, target_w, target_h, BOX_SCALE)
    giou = box_iou(x0, y0, x1, y1, target_x0, target_y0, target_x1, target_y1, "giou", GIOU_EPS)
    giou_loss = tl.where(matched, 1 - giou, 0)

    num_partials = num_images * tl.num_programs(1)
    partial_ptr += layer.to(tl.int64) * 3 * num_partials + image * tl.num_programs(1) + tl.program_id(1)
    tl.store(partial_ptr, tl.sum(class_loss, 0))
    tl.store(partial_ptr + num_partials, tl.sum(box_l1, 0))
    tl.store(partial_ptr + 2 * num_partials, tl.sum(giou_loss, 0))


@triton.jit(do_not_specialize=["num_layers", "num_partials"])
def set_loss_reduce_kernel(
    partial_ptr,  # [L,3,P]
    num_boxes,  # a number, or [] on the device
    class_normalizer,  # the same
    losses_ptr,  # [3,L]
    total_ptr,  # []
    num_layers,
    num_partials,
    LOSS_CE: tl.constexpr,
    LOSS_BBOX: tl.constexpr,
    LOSS_GIOU: tl.constexpr,
    SOFTMAX: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program sums the partial sums, always in the same order."""
    row = tl.arange(0, BLOCK_L)
    kind, layer = row % 3, row // 3
    inside = layer < num_layers
    sums = tl.zeros([BLOCK_L, BLOCK_P], COMPUTE)
    for start in range(0, num_partials, BLOCK_P):
        partial = start + tl.arange(0, BLOCK_P)
        within = inside[:, None] & (partial < num_partials)[None, :]
        sums += tl.load(partial_ptr + row[:, None] * num_partials + partial[None, :], mask=within, other=0.0)
    class_divisor, box_divisor = _load_divisors(num_boxes, class_normalizer, SOFTMAX, ON_DEVICE, COMPUTE)
    losses = tl.sum(sums, 1) / tl.where(kind == 0, class_divisor, box_divisor)
    tl.store(losses_ptr + kind * num_layers + layer, losses, mask=inside)
    weights = tl.where(kind == 0, LOSS_CE, tl.where(kind == 1, LOSS_BBOX, LOSS_GIOU)).to(COMPUTE)
    tl.store(total_ptr, tl.sum(tl.where(inside, weights * losses, 0.0), 0))


@triton.jit
def _upstream(grad_loss_ptr, grad_total_ptr, WEIGHT: tl.constexpr, FROM_LOSSES: tl.constexpr, FROM_TOTAL: tl.constexpr):
    """The gradient of one loss of one layer: its own, and that through the total."""
    grad = 0.0
    if FROM_LOSSES:
        grad += tl.load(grad_loss_ptr)
    if FROM_TOTAL:
        grad += WEIGHT * tl.load(grad_total_ptr)
    return grad


@triton.jit(do_not_specialize=["num_layers", *_COUNTS])
def set_loss_bwd_kernel(
    logits_ptr,  # [L,B,Q,C]
    boxes_ptr,  # [L,B,Q,4]
    labels_ptr,  # int64 [T]
    target_boxes_ptr,  # [T,4]
    offsets_ptr,  # int32 [B+1]
    index_ptr,  # int64 [L,G,T]
    num_boxes,  # a number, or [] on the device
    class_normalizer,  # the same
    grad_losses_ptr,  # [3,L], read if FROM_LOSSES
    grad_total_ptr,  # [], read if FROM_TOTAL
    grad_logits_ptr,  # [L,B,Q,C]
    grad_boxes_ptr,  # [L,B,Q,4]
    num_layers,
    num_images,
    num_queries,
    num_classes,
    num_targets,
    num_groups,
    FROM_LOSSES: tl.constexpr,
    FROM_TOTAL: tl.constexpr,
    LOSS_CE: tl.constexpr,
    LOSS_BBOX: tl.constexpr,
    LOSS_GIOU: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    CLASS_LOSS: tl.constexpr,
    NO_OBJECT: tl.constexpr,
    FOCAL_ALPHA: tl.constexpr,
    FOCAL_GAMMA: tl.constexpr,
    GIOU_EPS: tl.constexpr,
    BOX_SCALE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Both gradients of a block of an image's queries, each element stored once."""
    SOFTMAX: tl.constexpr = CLASS_LOSS == "softmax"
    layer, image, query, row = _rows(num_images, num_queries, BLOCK_Q)
    _, target, matched, label = _matches(
        query, num_queries, layer, image, labels_ptr, offsets_ptr, index_ptr, None, num_targets, num_groups,
        False, BLOCK_Q,
    )  # fmt: skip
    class_divisor, num_boxes = _load_divisors(num_boxes, class_normalizer, SOFTMAX, ON_DEVICE, COMPUTE)
    grad_loss_ptr = grad_losses_ptr + layer
    grad_ce = _upstream(grad_loss_ptr, grad_total_ptr, LOSS_CE, FROM_LOSSES, FROM_TOTAL) / class_divisor
    grad_loss_ptr += num_layers
    grad_bbox = _upstream(grad_loss_ptr, grad_total_ptr, LOSS_BBOX, FROM_LOSSES, FROM_TOTAL) / num_boxes
    grad_loss_ptr += num_layers
    grad_giou = _upstream(grad_loss_ptr, grad_total_ptr, LOSS_GIOU, FROM_LOSSES, FROM_TOTAL) / num_boxes

    col = tl.arange(0, BLOCK_C)
    inside = (query[:, None] < num_queries) & (col[None, :] < num_classes)
    logits = load_logits(
        logits_ptr + row[:, None] * num_classes, col, query[:, None] < num_queries, num_classes, COMPUTE
    )
    if SOFTMAX:
        label = tl.where(matched, label, num_classes - 1)
        grad = cross_entropy_grad(logits, col[None, :] == label[:, None])
        grad *= tl.where(matched, grad_ce, NO_OBJECT * grad_ce)[:, None]
    else:
        iou = _iou_of_match(
            boxes_ptr + row * 4, target_boxes_ptr + target * 4, matched, CLASS_LOSS, BOX_SCALE, GIOU_EPS, COMPUTE
        )
        is_label = col[None, :] == label[:, None]
        grad = sigmoid_loss_grad(logits, is_label, iou[:, None], CLASS_LOSS, FOCAL_ALPHA, FOCAL_GAMMA) * grad_ce
    tl.store(grad_logits_ptr + row[:, None] * num_classes + col[None, :], grad, mask=inside)

    cx, cy, w, h, target_cx, target_cy, target_w, target_h = _load_pair(
        boxes_ptr + row * 4, target_boxes_ptr + target * 4, matched, COMPUTE
    )
    x0, y0, x1, y1 = _scaled_corners(cx, cy, w, h, BOX_SCALE)
    target_x0, target_y0, target_x1, target_y1 = _scaled_corners(target_cx, target_cy, target_w, target_h, BOX_SCALE)
    grad_x0, grad_y0, grad_x1, grad_y1 = box_iou_grad(
        -grad_giou * BOX_SCALE, x0, y0, x1, y1, target_x0, target_y0, target_x1, target_y1, "giou", GIOU_EPS
    )
    pointers = grad_boxes_ptr + row * 4
    inside = query < num_queries
    _store_box_grad(pointers, inside, matched, grad_bbox, cx - target_cx, grad_x0 + grad_x1)
    _store_box_grad(pointers + 1, inside, matched, grad_bbox, cy - target_cy, grad_y0 + grad_y1)
    _store_box_grad(pointers + 2, inside, matched, grad_bbox, w - target_w, (grad_x1 - grad_x0) * 0.5)
    _store_box_grad(pointers + 3, inside, matched, grad_bbox, h - target_h, (grad_y1 - grad_y0) * 0.5)


@triton.jit
def _store_box_grad(pointers, inside, matched, grad_bbox, difference, giou_grad):
    """One coordinate's gradient: the L1 loss's, signed as the difference, and the GIoU loss's."""
    l1_grad = tl.where(difference > 0, grad_bbox, tl.where(difference < 0, -grad_bbox, 0))
    tl.store(pointers, tl.where(matched, l1_grad + giou_grad, 0), mask=inside)


def set_loss(
    logits: Tensor,  # [L,B,Q,C]
    boxes: Tensor,  # [L,B,Q,4]
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Tensor | float,
    class_normalizer: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Compute the losses of each layer [3,L], and their weighted sum []."""
    dtype = compute_dtype(logits, boxes)
    num_layers, num_images = logits.shape[:2]
    options = _launch_options(logits.shape[2], logits.shape[3], weights, dtype)
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
            COMPUTE=options["COMPUTE"],
            **_loss_weights(weights),
            **_reduce_options(num_layers),
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
    """Compute the gradients of logits and boxes."""
    dtype = compute_dtype(logits, boxes)
    grad_losses, grad_total = grads
    grad_logits, grad_boxes = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (logits, boxes))
    if not grad_boxes.numel():
        return grad_logits, grad_boxes
    options = _launch_options(logits.shape[2], logits.shape[3], weights, dtype)
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
            **_loss_weights(weights),
            **options,
        )
    return grad_logits, grad_boxes


def _inputs(logits: Tensor, boxes: Tensor, targets: Targets, query_index: Tensor) -> tuple[Tensor, ...]:
    packed = targets.labels, targets.boxes, targets.offsets
    return logits.contiguous(), boxes.contiguous(), *packed, query_index.contiguous()


def _counts(logits: Tensor, query_index: Tensor) -> tuple[int, ...]:
    """Images, queries, classes, targets and groups."""
    return *logits.shape[1:], query_index.shape[2], query_index.shape[1]


def _loss_weights(weights: LossWeights) -> dict[str, float]:
    """The weights of the sum, compile-time constants."""
    return {"LOSS_CE": weights.loss_ce, "LOSS_BBOX": weights.loss_bbox, "LOSS_GIOU": weights.loss_giou}


def _as_launched(
    num_boxes: Tensor | float, class_normalizer: Tensor | float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor] | tuple[float, float]:
    """Two tensors; or two numbers, which become arguments of the launch, where they are rounded to float32."""
    if dtype == torch.float32 and not isinstance(num_boxes, Tensor) and not isinstance(class_normalizer, Tensor):
        return float(num_boxes), float(class_normalizer)
    return _on_device(num_boxes, dtype, device), _on_device(class_normalizer, dtype, device)


def _on_device(value: Tensor | float, dtype: torch.dtype, device: torch.device) -> Tensor:
    if isinstance(value, Tensor):
        return value.detach().to(device, non_blocking=True)
    return torch.full((), value, dtype=dtype, device=device)


def _launch_options(num_queries: int, num_classes: int, weights: LossWeights, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time constants of the forward and the backward kernel."""
    block_c = triton.next_power_of_2(num_classes)
    return {
        "CLASS_LOSS": weights.class_loss,
        "NO_OBJECT": weights.no_object,
        "FOCAL_ALPHA": weights.focal_alpha,
        "FOCAL_GAMMA": weights.focal_gamma,
        "GIOU_EPS": weights.giou_eps,
        "BOX_SCALE": weights.box_scale,
        "COMPUTE": triton_dtype(dtype),
        "BLOCK_Q": min(64, triton.next_power_of_2(num_queries), max(1, 2048 // block_c)),
        "BLOCK_C": block_c,
        "num_warps": min(16, max(4, block_c // 512)),
    }


def _reduce_options(num_layers: int) -> dict[str, int]:
    """Block sizes and warps of the reducing kernel, which sums the losses of all layers at a time."""
    block_l = triton.next_power_of_2(max(1, 3 * num_layers))
    return {"BLOCK_L": block_l, "BLOCK_P": max(1, min(256, 4096 // block_l)), "num_warps": 8}
