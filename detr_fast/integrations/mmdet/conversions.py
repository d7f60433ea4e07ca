"""Boxes, targets and weights of MMDetection in the form of the ops."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from mmdet.models.task_modules.assigners import BBoxL1Cost, ClassificationCost, FocalLossCost, IoUCost
from torch import Tensor

from detr_fast.ops.boxes import box_xyxy_to_cxcywh
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import MatchWeights

IOU_EPS = 1e-6  # smallest area, in squared pixels, in the overlaps of MMDetection


def match_weights(match_costs: Sequence[Any]) -> MatchWeights | None:
    """Convert match costs of MMDetection to :class:`MatchWeights`.

    Args:
        match_costs: The costs of an assigner.

    Returns:
        The weights; None if ``match_cost`` does not support one of the costs.
    """
    weights = MatchWeights(0.0, 0.0, 0.0, giou_eps=IOU_EPS)
    if len({type(cost) for cost in match_costs}) < len(match_costs):
        return None
    for cost in match_costs:
        if type(cost) is ClassificationCost:
            weights = replace(weights, cost_class=cost.weight)
        elif type(cost) is FocalLossCost and not cost.binary_input:
            focal = {"focal_alpha": cost.alpha, "focal_gamma": cost.gamma, "focal_eps": cost.eps}
            weights = replace(weights, cost_class=cost.weight, class_cost="focal", **focal)
        elif type(cost) is BBoxL1Cost:
            weights = replace(
                weights, cost_bbox=cost.weight, l1_format="cxcywh" if cost.box_format == "xywh" else "xyxy"
            )
        elif type(cost) is IoUCost and cost.iou_mode in ("giou", "iou", "iof"):
            weights = replace(weights, cost_giou=cost.weight, iou_kind=cost.iou_mode)
        else:
            return None
    return weights


def normalize(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Convert boxes [N,4] from xyxy in pixels to cxcywh as fractions of the image."""
    height, width = size
    boxes = corners / corners.new_tensor([width, height, width, height])
    return box_xyxy_to_cxcywh(boxes)


def pack(instances: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> Targets:
    """Pack ``labels`` [t] and ``bboxes`` [t,4], xyxy in pixels, of images with the given heights and widths."""
    return Targets.from_list(
        [
            {"labels": image.labels, "boxes": normalize(_as_tensor(image.bboxes), size)}
            for image, size in zip(instances, sizes, strict=True)
        ]
    )


def _as_tensor(boxes: Any) -> Tensor:
    return boxes if isinstance(boxes, Tensor) else boxes.tensor  # a box type of MMDetection that contains a tensor
