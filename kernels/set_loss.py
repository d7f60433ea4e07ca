"""Class, L1 and GIoU losses of all layers and their gradients: two launches forward, one backward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.autograd.function import once_differentiable

from detr_fast.kernels import launch_on
from detr_fast.kernels.box import box_iou, box_iou_grad, corners, l1, load_box
from detr_fast.kernels.class_loss import cross_entropy, cross_entropy_grad, focal_loss, focal_loss_grad
from detr_fast.kernels.faults import LABEL_OUT_OF_RANGE, report_fault, status_word

if TYPE_CHECKING:
    from detr_fast.ops.targets import Targets
    from detr_fast.ops.weights import LossWeights

_LABEL_OUT_OF_RANGE: tl.constexpr = tl.constexpr(LABEL_OUT_OF_RANGE)
_CHUNK: tl.constexpr = tl.constexpr(32)  # of targets looked through at a time


_COUNTS = ["num_images", "num_queries", "num_classes", "num_targets", "num_groups"]


@triton.jit
def _load_divisors(num_boxes, class_normalizer, SOFTMAX: tl.constexpr, ON_DEVICE: tl.constexpr, DTYPE: tl.constexpr):
    """What the class loss and what the box losses are divided by."""
    if ON_DEVICE:
        box_divisor = tl.load(num_boxes).to(DTYPE)
        class_divisor = tl.load(class_normalizer).to(DTYPE)
    else:
        box_divisor = tl.full([], num_boxes, DTYPE)
        class_divisor = tl.full([], class_normalizer, DTYPE)
    if not SOFTMAX:
        class_divisor = box_divisor
    return class_divisor, box_divisor


@triton.jit
def _matched_target(query, index_ptr, first_target, last_target, num_targets, num_groups, BLOCK: tl.constexpr):
    """The target each query of an image was matched to, -1 for none: int32 [BLOCK]."""
    target = tl.full([BLOCK], -1, tl.int32)
    for group in range(num_groups):
        for start in range(first_target, last_target, _CHUNK):
            candidate = start + tl.arange(0, _CHUNK)
            index = tl.load(index_ptr + group * num_targets + candidate, mask=candidate < last_target, other=-1)
            here = index[None, :] == query[:, None]  # [BLOCK,_CHUNK]
            target = tl.maximum(target, tl.max(tl.where(here, candidate[None, :], -1), 1))
    return target


@triton.jit
def _scaled_corners(cx, cy, width, height, SCALE: tl.constexpr):
    x0, y0, x1, y1 = corners(cx, cy, width, height)
    return x0 * SCALE, y0 * SCALE, x1 * SCALE, y1 * SCALE


@triton.jit
def _rows(num_images, num_queries, BLOCK_Q: tl.constexpr):
    """The layer, image and queries of a program, and the queries' rows in [L,B,Q]."""
    layer = tl.program_id(0) // num_images
    image = tl.program_id(0) % num_images
    query = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
    return layer, image, query, tl.program_id(0).to(tl.int64) * num_queries + query


@triton.jit
def _load_logits(logits_ptr, row, col, inside, num_classes, DTYPE: tl.constexpr):
    logits = tl.load(logits_ptr + row[:, None] * num_classes + col[None, :], mask=inside, other=-float("inf"))
    return logits.to(DTYPE)  # [BLOCK_Q,BLOCK_C]


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
    SOFTMAX: tl.constexpr,
    NO_OBJECT: tl.constexpr,
    ALPHA: tl.constexpr,
    GAMMA: tl.constexpr,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of the three losses over a block of an image's queries, not yet divided."""
    layer, image, query, row = _rows(num_images, num_queries, BLOCK_Q)
    first_target = tl.load(offsets_ptr + image)
    last_target = tl.load(offsets_ptr + image + 1)
    index_ptr += layer.to(tl.int64) * num_groups * num_targets
    target = _matched_target(query, index_ptr, first_target, last_target, num_targets, num_groups, BLOCK_Q)
    matched = target >= 0
    label = tl.load(labels_ptr + target, mask=matched, other=-1).to(tl.int32)

    out_of_range = matched & ((label < 0) | (label >= num_classes - SOFTMAX))
    first_bad = tl.min(tl.where(out_of_range, target, num_targets), 0)
    if first_bad < num_targets:
        report_fault(status_ptr, layer, 0, image, first_bad - first_target, _LABEL_OUT_OF_RANGE)

    col = tl.arange(0, BLOCK_C)
    inside = (query[:, None] < num_queries) & (col[None, :] < num_classes)
    logits = _load_logits(logits_ptr, row, col, inside, num_classes, DTYPE)
    if SOFTMAX:
        label = tl.where(matched, label, num_classes - 1)
        class_loss = cross_entropy(logits, col[None, :] == label[:, None])
        class_loss = tl.where(query < num_queries, tl.where(matched, class_loss, NO_OBJECT * class_loss), 0)
    else:
        loss = focal_loss(logits, col[None, :] == label[:, None], ALPHA, GAMMA)
        class_loss = tl.sum(tl.where(inside, loss, 0), 1)

    cx, cy, w, h = load_box(boxes_ptr + row * 4, matched, DTYPE)
    target_cx, target_cy, target_w, target_h = load_box(target_boxes_ptr + target * 4, matched, DTYPE)
    box_l1 = l1(cx, cy, w, h, target_cx, target_cy, target_w, target_h)
    x0, y0, x1, y1 = _scaled_corners(cx, cy, w, h, SCALE)
    target_x0, target_y0, target_x1, target_y1 = _scaled_corners(target_cx, target_cy, target_w, target_h, SCALE)
    giou = box_iou(x0, y0, x1, y1, target_x0, target_y0, target_x1, target_y1, True, EPS)
    giou_loss = tl.where(matched, 1 - giou, 0)

    num_partials = num_images * tl.num_programs(1)
    partial_ptr += layer.to(tl.int64) * 3 * num_partials + image * tl.num_programs(1) + tl.program_id(1)
    tl.store(partial_ptr, tl.sum(class_loss, 0))
    tl.store(partial_ptr + num_partials, tl.sum(box_l1, 0))
    tl.store(partial_ptr + 2 * num_partials, tl.sum(giou_loss, 0))


@triton.jit
def _sum_in_order(ptr, count, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], DTYPE)
    for start in range(0, count, BLOCK):
        place = start + tl.arange(0, BLOCK)
        total += tl.load(ptr + place, mask=place < count, other=0.0)
    return tl.sum(total, 0)


@triton.jit(do_not_specialize=["num_partials"])
def set_loss_reduce_kernel(
    partial_ptr,  # [L,3,P]
    num_boxes,  # a number, or [] on the device
    class_normalizer,  # the same
    loss_ce_ptr,  # [L]
    loss_bbox_ptr,  # [L]
    loss_giou_ptr,  # [L]
    num_partials,
    SOFTMAX: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    layer = tl.program_id(0)
    partial_ptr += layer.to(tl.int64) * 3 * num_partials
    class_divisor, num_boxes = _load_divisors(num_boxes, class_normalizer, SOFTMAX, ON_DEVICE, DTYPE)
    tl.store(loss_ce_ptr + layer, _sum_in_order(partial_ptr, num_partials, DTYPE, BLOCK) / class_divisor)
    tl.store(loss_bbox_ptr + layer, _sum_in_order(partial_ptr + num_partials, num_partials, DTYPE, BLOCK) / num_boxes)
    tl.store(
        loss_giou_ptr + layer, _sum_in_order(partial_ptr + 2 * num_partials, num_partials, DTYPE, BLOCK) / num_boxes
    )


@triton.jit(do_not_specialize=[*_COUNTS, "grad_ce_stride", "grad_bbox_stride", "grad_giou_stride"])
def set_loss_bwd_kernel(
    logits_ptr,  # [L,B,Q,C]
    boxes_ptr,  # [L,B,Q,4]
    labels_ptr,  # int64 [T]
    target_boxes_ptr,  # [T,4]
    offsets_ptr,  # int32 [B+1]
    index_ptr,  # int64 [L,G,T]
    num_boxes,  # a number, or [] on the device
    class_normalizer,  # the same
    grad_ce_ptr,  # [L]
    grad_bbox_ptr,  # [L]
    grad_giou_ptr,  # [L]
    grad_logits_ptr,  # [L,B,Q,C]
    grad_boxes_ptr,  # [L,B,Q,4]
    grad_ce_stride,
    grad_bbox_stride,
    grad_giou_stride,
    num_images,
    num_queries,
    num_classes,
    num_targets,
    num_groups,
    ON_DEVICE: tl.constexpr,
    SOFTMAX: tl.constexpr,
    NO_OBJECT: tl.constexpr,
    ALPHA: tl.constexpr,
    GAMMA: tl.constexpr,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Both gradients of a block of an image's queries, each element written once."""
    layer, image, query, row = _rows(num_images, num_queries, BLOCK_Q)
    first_target = tl.load(offsets_ptr + image)
    last_target = tl.load(offsets_ptr + image + 1)
    index_ptr += layer.to(tl.int64) * num_groups * num_targets
    target = _matched_target(query, index_ptr, first_target, last_target, num_targets, num_groups, BLOCK_Q)
    matched = target >= 0
    label = tl.load(labels_ptr + target, mask=matched, other=-1).to(tl.int32)
    class_divisor, num_boxes = _load_divisors(num_boxes, class_normalizer, SOFTMAX, ON_DEVICE, DTYPE)
    grad_ce = tl.load(grad_ce_ptr + layer * grad_ce_stride) / class_divisor
    grad_bbox = tl.load(grad_bbox_ptr + layer * grad_bbox_stride) / num_boxes
    grad_giou = tl.load(grad_giou_ptr + layer * grad_giou_stride) / num_boxes

    col = tl.arange(0, BLOCK_C)
    inside = (query[:, None] < num_queries) & (col[None, :] < num_classes)
    logits = _load_logits(logits_ptr, row, col, inside, num_classes, DTYPE)
    if SOFTMAX:
        label = tl.where(matched, label, num_classes - 1)
        grad = cross_entropy_grad(logits, col[None, :] == label[:, None])
        grad *= tl.where(matched, grad_ce, NO_OBJECT * grad_ce)[:, None]
    else:
        grad = focal_loss_grad(logits, col[None, :] == label[:, None], ALPHA, GAMMA) * grad_ce
    tl.store(grad_logits_ptr + row[:, None] * num_classes + col[None, :], grad, mask=inside)

    cx, cy, w, h = load_box(boxes_ptr + row * 4, matched, DTYPE)
    target_cx, target_cy, target_w, target_h = load_box(target_boxes_ptr + target * 4, matched, DTYPE)
    x0, y0, x1, y1 = _scaled_corners(cx, cy, w, h, SCALE)
    target_x0, target_y0, target_x1, target_y1 = _scaled_corners(target_cx, target_cy, target_w, target_h, SCALE)
    grad_x0, grad_y0, grad_x1, grad_y1 = box_iou_grad(
        -grad_giou * SCALE, x0, y0, x1, y1, target_x0, target_y0, target_x1, target_y1, True, EPS
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


class _SetLoss(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override]
        ctx: Any,
        logits: Tensor,  # [L,B,Q,C]
        boxes: Tensor,  # [L,B,Q,4]
        targets: Targets,
        query_index: Tensor,  # [L,G,T]
        weights: LossWeights,
        dtype: torch.dtype,
        divisors: tuple[Tensor, Tensor] | tuple[float, float],  # num_boxes, class_normalizer
    ) -> tuple[Tensor, Tensor, Tensor]:
        num_layers, num_images, num_queries, num_classes = logits.shape
        options = launch_options(num_queries, num_classes, weights, dtype)
        blocks = triton.cdiv(num_queries, options["BLOCK_Q"])
        partial = torch.empty(num_layers, 3, num_images * blocks, dtype=dtype, device=logits.device)
        inputs = (
            logits.contiguous(),
            boxes.contiguous(),
            targets.labels,
            targets.boxes,
            targets.offsets,
            query_index.contiguous(),
        )
        sizes = (num_images, num_queries, num_classes, targets.num_targets, query_index.shape[1])
        if partial.numel():
            set_loss_fwd_kernel[(num_layers * num_images, blocks)](
                *inputs, partial, status_word(logits.device), *sizes, **options
            )
        losses = [torch.empty(num_layers, dtype=dtype, device=logits.device) for _ in range(3)]
        if num_layers:
            set_loss_reduce_kernel[(num_layers,)](
                partial,
                *divisors,
                *losses,
                partial.shape[2],
                SOFTMAX=options["SOFTMAX"],
                ON_DEVICE=isinstance(divisors[0], Tensor),
                DTYPE=options["DTYPE"],
                BLOCK=256,
            )
        ctx.save_for_backward(*inputs)
        ctx.divisors, ctx.sizes, ctx.options, ctx.blocks = divisors, sizes, options, blocks
        return losses[0], losses[1], losses[2]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # type: ignore[override]
        logits, boxes = ctx.saved_tensors[:2]
        grad_logits, grad_boxes = (torch.empty(x.shape, dtype=x.dtype, device=x.device) for x in (logits, boxes))
        if grad_boxes.numel():
            set_loss_bwd_kernel[(logits.shape[0] * logits.shape[1], ctx.blocks)](
                *ctx.saved_tensors,
                *ctx.divisors,
                *grads,
                grad_logits,
                grad_boxes,
                *(grad.stride(0) for grad in grads),
                *ctx.sizes,
                ON_DEVICE=isinstance(ctx.divisors[0], Tensor),
                **ctx.options,
            )
        return grad_logits, grad_boxes, None, None, None, None, None


def set_loss_triton(
    logits: Tensor,  # [L,B,Q,C]
    boxes: Tensor,  # [L,B,Q,4]
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Tensor | float,
    class_normalizer: Tensor | float,
) -> dict[str, Tensor]:
    dtype = torch.float64 if logits.dtype == boxes.dtype == torch.float64 else torch.float32
    divisors = _as_launched(num_boxes, class_normalizer, dtype, logits.device)
    with launch_on(logits):
        losses = _SetLoss.apply(logits, boxes, targets, query_index, weights, dtype, divisors)
    return dict(zip(("loss_ce", "loss_bbox", "loss_giou"), losses, strict=True))


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
        "SOFTMAX": weights.class_loss == "softmax",
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
