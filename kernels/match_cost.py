"""Class, L1 and overlap cost of every target and query of an image, in one launch without intermediate tensors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from detr_fast.ops.boxes import compute_dtype

from .box import box_iou, corners, l1, load_box
from .class_loss import binary_terms, load_logits, power
from .launch import launch_on, triton_dtype

if TYPE_CHECKING:
    from detr_fast.ops.targets import Targets
    from detr_fast.ops.weights import MatchWeights

_TARGETS_PER_PROGRAM = 64


@triton.jit
def _focal_class_cost(logit, ALPHA: tl.constexpr, GAMMA: tl.constexpr, EPS: tl.constexpr):
    p, rest, positive, negative = binary_terms(logit)
    if EPS > 0:
        positive, negative = -tl.log(p + EPS), -tl.log(rest + EPS)
    return ALPHA * power(rest, GAMMA) * positive - (1 - ALPHA) * power(p, GAMMA) * negative


@triton.jit
def _softmax_terms(row_ptr, NUM_CLASSES: tl.constexpr, COMPUTE: tl.constexpr, BLOCK_C: tl.constexpr):
    """Each row's largest logit and the sum of the exponentials above it; rows are pointers [Q,1]."""
    highest = tl.full(row_ptr.shape, float("-inf"), COMPUTE)
    for start in range(0, NUM_CLASSES, BLOCK_C):
        logits = load_logits(row_ptr, start + tl.arange(0, BLOCK_C), True, NUM_CLASSES, COMPUTE)
        highest = tl.maximum(highest, tl.max(logits, 1, keep_dims=True))
    total = tl.zeros(row_ptr.shape, COMPUTE)
    for start in range(0, NUM_CLASSES, BLOCK_C):
        logits = load_logits(row_ptr, start + tl.arange(0, BLOCK_C), True, NUM_CLASSES, COMPUTE)
        total += tl.sum(tl.exp(logits - highest), 1, keep_dims=True)
    return highest, total


@triton.jit(do_not_specialize=["num_targets"])
def match_cost_kernel(
    logits_ptr,  # [L,B,Q,C]
    boxes_ptr,  # [L,B,Q,4]
    labels_ptr,  # [T]
    target_boxes_ptr,  # [T,4]
    offsets_ptr,  # [B+1]
    out_ptr,  # [L,T,Q]
    num_images,
    num_queries,
    num_targets,
    NUM_CLASSES: tl.constexpr,
    SOFTMAX: tl.constexpr,
    COST_CLASS: tl.constexpr,
    COST_BBOX: tl.constexpr,
    COST_GIOU: tl.constexpr,
    FOCAL_ALPHA: tl.constexpr,
    FOCAL_GAMMA: tl.constexpr,
    FOCAL_EPS: tl.constexpr,
    L1_CORNERS: tl.constexpr,
    IOU_KIND: tl.constexpr,  # "giou", "iou" or "iof"
    GIOU_EPS: tl.constexpr,
    BOX_SCALE: tl.constexpr,
    COMPUTE: tl.constexpr,
    BLOCK_T: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """One program computes BLOCK_Q queries of an image and layer, for each of its blocks of targets.

    The blocks of targets of an image are distributed over the programs of the third axis.
    """
    image_of_layer = tl.program_id(0).to(tl.int64)
    layer, image = image_of_layer // num_images, image_of_layer % num_images
    end = tl.load(offsets_ptr + image + 1)
    start = tl.load(offsets_ptr + image) + tl.program_id(2) * BLOCK_T
    if start < end:
        query = tl.program_id(1) * BLOCK_Q + tl.arange(0, BLOCK_Q)
        inside = (query < num_queries)[None, :]
        row = image_of_layer * num_queries + tl.minimum(query, num_queries - 1)
        class_ptr = logits_ptr + row * NUM_CLASSES
        q0, q1, q2, q3 = load_box(boxes_ptr + row[None, :] * 4, inside, COMPUTE)
        left, top, right, bottom = corners(q0, q1, q2, q3)
        if SOFTMAX:
            highest, total = _softmax_terms(class_ptr[:, None], NUM_CLASSES, COMPUTE, BLOCK_C)
            highest, total = tl.trans(highest), tl.trans(total)  # [1,Q]
        while start < end:
            target = start + tl.arange(0, BLOCK_T)[:, None]
            pair = (target < end) & inside
            label = tl.load(labels_ptr + target, mask=target < end, other=0)
            t0, t1, t2, t3 = load_box(target_boxes_ptr + target * 4, target < end, COMPUTE)
            target_left, target_top, target_right, target_bottom = corners(t0, t1, t2, t3)

            # A label out of range gives a cost of NaN, which the solver reports.
            known = pair & (label >= 0) & (label < NUM_CLASSES - SOFTMAX)
            logit = tl.load(class_ptr[None, :] + label, mask=known, other=float("nan")).to(COMPUTE)
            if SOFTMAX:
                cost_class = -tl.exp(logit - highest) / total
            else:
                cost_class = _focal_class_cost(logit, FOCAL_ALPHA, FOCAL_GAMMA, FOCAL_EPS)
            if L1_CORNERS:
                cost_bbox = l1(left, top, right, bottom, target_left, target_top, target_right, target_bottom)
            else:
                cost_bbox = l1(q0, q1, q2, q3, t0, t1, t2, t3)
            overlap = box_iou(
                left * BOX_SCALE, top * BOX_SCALE, right * BOX_SCALE, bottom * BOX_SCALE,
                target_left * BOX_SCALE, target_top * BOX_SCALE, target_right * BOX_SCALE, target_bottom * BOX_SCALE,
                IOU_KIND, GIOU_EPS,
            )  # fmt: skip
            cost = COST_BBOX * cost_bbox + COST_CLASS * cost_class - COST_GIOU * overlap
            tl.store(out_ptr + (layer * num_targets + target) * num_queries + query[None, :], cost, mask=pair)
            start += BLOCK_T * tl.num_programs(2)


def match_cost(logits: Tensor, boxes: Tensor, targets: Targets, weights: MatchWeights) -> Tensor:
    """Compute the matching cost [L,T,Q]."""
    layers, images, queries, classes = logits.shape
    dtype = compute_dtype(logits, boxes)
    out = torch.empty(layers, targets.num_targets, queries, dtype=dtype, device=logits.device)
    if not out.numel():
        return out
    # The host's maximum decides the number of programs only; the targets are counted on the device.
    split = triton.cdiv(max(targets.max_targets, 1), _TARGETS_PER_PROGRAM)
    options = _launch_options(classes, weights, dtype)
    with launch_on(logits):
        match_cost_kernel[(layers * images, triton.cdiv(queries, options["BLOCK_Q"]), split)](
            logits.contiguous(),
            boxes.contiguous(),
            targets.labels,
            targets.boxes,
            targets.offsets,
            out,
            images,
            queries,
            targets.num_targets,
            **options,
        )
    return out


def _launch_options(num_classes: int, weights: MatchWeights, dtype: torch.dtype) -> dict[str, Any]:
    """Compile-time constants; they depend on the model and its configuration, never on the batch."""
    return {
        "NUM_CLASSES": num_classes,
        "SOFTMAX": weights.class_cost == "softmax",
        "COST_CLASS": weights.cost_class,
        "COST_BBOX": weights.cost_bbox,
        "COST_GIOU": weights.cost_giou,
        "FOCAL_ALPHA": weights.focal_alpha,
        "FOCAL_GAMMA": weights.focal_gamma,
        "FOCAL_EPS": weights.focal_eps,
        "L1_CORNERS": weights.l1_format == "xyxy",
        "IOU_KIND": weights.iou_kind,
        "GIOU_EPS": weights.giou_eps,
        "BOX_SCALE": weights.box_scale,
        "COMPUTE": triton_dtype(dtype),
        "BLOCK_T": 16,
        "BLOCK_Q": 32,
        "BLOCK_C": min(32, triton.next_power_of_2(num_classes)),
    }
