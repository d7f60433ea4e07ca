"""The kernels of the set loss: two forward, of a block of queries and of all blocks' sums, and one backward."""

from __future__ import annotations

import triton
import triton.language as tl

from detr_fast.kernels.box import box_iou, box_iou_grad, corners, l1, load_box
from detr_fast.kernels.class_loss import cross_entropy, cross_entropy_grad, sigmoid_loss, sigmoid_loss_grad
from detr_fast.kernels.faults import LABEL_OUT_OF_RANGE, report_fault

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


@triton.jit
def _iou_of_match(
    box_ptr,
    target_box_ptr,
    matched,
    CLASS_LOSS: tl.constexpr,
    SCALE: tl.constexpr,
    EPS: tl.constexpr,
    DTYPE: tl.constexpr,
):
    """The IoU of each query and its target where the class loss looks at it: [BLOCK_Q]."""
    iou = tl.zeros(matched.shape, DTYPE)
    if CLASS_LOSS != "focal":
        cx, cy, w, h = load_box(box_ptr, matched, DTYPE)
        target_cx, target_cy, target_w, target_h = load_box(target_box_ptr, matched, DTYPE)
        x0, y0, x1, y1 = _scaled_corners(cx, cy, w, h, SCALE)
        target_x0, target_y0, target_x1, target_y1 = _scaled_corners(target_cx, target_cy, target_w, target_h, SCALE)
        iou = box_iou(x0, y0, x1, y1, target_x0, target_y0, target_x1, target_y1, False, EPS)
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
    ALPHA: tl.constexpr,
    GAMMA: tl.constexpr,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Sums of the three losses over a block of an image's queries, not yet divided."""
    SOFTMAX: tl.constexpr = CLASS_LOSS == "softmax"
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
        iou = _iou_of_match(boxes_ptr + row * 4, target_boxes_ptr + target * 4, matched, CLASS_LOSS, SCALE, EPS, DTYPE)
        loss = sigmoid_loss(logits, col[None, :] == label[:, None], iou[:, None], CLASS_LOSS, ALPHA, GAMMA)
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
    DTYPE: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_P: tl.constexpr,
):
    """One program adds up everything, always in the same order."""
    row = tl.arange(0, BLOCK_L)
    kind, layer = row % 3, row // 3
    inside = layer < num_layers
    sums = tl.zeros([BLOCK_L, BLOCK_P], DTYPE)
    for start in range(0, num_partials, BLOCK_P):
        place = start + tl.arange(0, BLOCK_P)
        within = inside[:, None] & (place < num_partials)[None, :]
        sums += tl.load(partial_ptr + row[:, None] * num_partials + place[None, :], mask=within, other=0.0)
    class_divisor, box_divisor = _load_divisors(num_boxes, class_normalizer, SOFTMAX, ON_DEVICE, DTYPE)
    losses = tl.sum(sums, 1) / tl.where(kind == 0, class_divisor, box_divisor)
    tl.store(losses_ptr + kind * num_layers + layer, losses, mask=inside)
    weights = tl.where(kind == 0, LOSS_CE, tl.where(kind == 1, LOSS_BBOX, LOSS_GIOU)).to(DTYPE)
    tl.store(total_ptr, tl.sum(tl.where(inside, weights * losses, 0.0), 0))


@triton.jit
def _upstream(grad_loss_ptr, grad_total_ptr, WEIGHT: tl.constexpr, FROM_LOSSES: tl.constexpr, FROM_TOTAL: tl.constexpr):
    """The gradient of one loss of one layer: its own, and what comes through the total."""
    grad = 0.0
    if FROM_LOSSES:
        grad += tl.load(grad_loss_ptr)
    if FROM_TOTAL:
        grad += WEIGHT * tl.load(grad_total_ptr)
    return grad


@triton.jit(do_not_specialize=_COUNTS)
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
    ALPHA: tl.constexpr,
    GAMMA: tl.constexpr,
    EPS: tl.constexpr,
    SCALE: tl.constexpr,
    DTYPE: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Both gradients of a block of an image's queries, each element written once."""
    SOFTMAX: tl.constexpr = CLASS_LOSS == "softmax"
    layer, image, query, row = _rows(num_images, num_queries, BLOCK_Q)
    first_target = tl.load(offsets_ptr + image)
    last_target = tl.load(offsets_ptr + image + 1)
    index_ptr += layer.to(tl.int64) * num_groups * num_targets
    target = _matched_target(query, index_ptr, first_target, last_target, num_targets, num_groups, BLOCK_Q)
    matched = target >= 0
    label = tl.load(labels_ptr + target, mask=matched, other=-1).to(tl.int32)
    class_divisor, num_boxes = _load_divisors(num_boxes, class_normalizer, SOFTMAX, ON_DEVICE, DTYPE)
    place = grad_losses_ptr + layer
    grad_ce = _upstream(place, grad_total_ptr, LOSS_CE, FROM_LOSSES, FROM_TOTAL) / class_divisor
    place += num_layers
    grad_bbox = _upstream(place, grad_total_ptr, LOSS_BBOX, FROM_LOSSES, FROM_TOTAL) / num_boxes
    place += num_layers
    grad_giou = _upstream(place, grad_total_ptr, LOSS_GIOU, FROM_LOSSES, FROM_TOTAL) / num_boxes

    col = tl.arange(0, BLOCK_C)
    inside = (query[:, None] < num_queries) & (col[None, :] < num_classes)
    logits = _load_logits(logits_ptr, row, col, inside, num_classes, DTYPE)
    if SOFTMAX:
        label = tl.where(matched, label, num_classes - 1)
        grad = cross_entropy_grad(logits, col[None, :] == label[:, None])
        grad *= tl.where(matched, grad_ce, NO_OBJECT * grad_ce)[:, None]
    else:
        iou = _iou_of_match(boxes_ptr + row * 4, target_boxes_ptr + target * 4, matched, CLASS_LOSS, SCALE, EPS, DTYPE)
        is_label = col[None, :] == label[:, None]
        grad = sigmoid_loss_grad(logits, is_label, iou[:, None], CLASS_LOSS, ALPHA, GAMMA) * grad_ce
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
