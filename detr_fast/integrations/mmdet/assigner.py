"""The Hungarian assigner of MMDetection."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from mmdet.models.task_modules.assigners import AssignResult, HungarianAssigner
from mmdet.registry import TASK_UTILS
from mmengine.structures import InstanceData
from torch import Tensor

from detr_fast import ops
from detr_fast.integrations.evidence import (
    NUM_QUERIES,
    Finding,
    check_close,
    check_parameters,
    examine,
    parameter_names,
    random_boxes,
)
from detr_fast.integrations.mmdet.comparisons import IMAGE, identity, keep_or_leave, random_instances, with_class
from detr_fast.integrations.mmdet.conversions import match_weights, normalize, pack
from detr_fast.integrations.mmdet_api.boxes import mean_side
from detr_fast.ops.boxes import box_cxcywh_to_xyxy
from detr_fast.ops.weights import MatchWeights


@TASK_UTILS.register_module()
class FastHungarianAssigner(HungarianAssigner):
    """The Hungarian assigner of MMDetection.

    Class costs (softmax or focal), L1 and GIoU, IoU or IoF are computed in one call; other costs are computed by
    MMDetection.
    """

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if check:
            keep_or_leave(self, FastHungarianAssigner, find_assigner(self))

    @torch.no_grad()
    def assign(self, pred_instances: Any, gt_instances: Any, img_meta: Any = None, **kwargs: Any) -> AssignResult:
        """Assign the queries of an image to its targets.

        Args:
            pred_instances: ``scores`` [Q,C], which are logits, and ``bboxes`` [Q,4], xyxy in pixels.
            gt_instances: ``labels`` [T] and ``bboxes`` [T,4], xyxy in pixels.
            img_meta: Meta information of the image with its ``img_shape``.
            **kwargs: Ignored.

        Returns:
            For each query the one-based index of its target, 0 if it is unassigned, and the label of the target.
        """
        num_targets, num_queries = len(gt_instances), len(pred_instances)
        weights = match_weights(self.match_costs)
        if weights is not None and num_targets and num_queries:
            cost = _match_cost(weights, pred_instances, gt_instances, img_meta["img_shape"])
        elif num_targets and num_queries:
            given = {"pred_instances": pred_instances, "gt_instances": gt_instances, "img_meta": img_meta}
            cost = torch.stack([cost(**given) for cost in self.match_costs]).sum(0).T[None]
        else:
            cost = torch.zeros(1, num_targets, num_queries, device=gt_instances.labels.device)
        query = ops.batch_linear_sum_assignment(cost, [num_targets])[0]  # [T]
        # Unassigned targets are written to an extra row, which is then dropped.
        rows = query.where(query >= 0, num_queries)
        assigned = torch.zeros(num_queries + 1, dtype=torch.int64, device=query.device)
        assigned[rows] = torch.arange(1, num_targets + 1, device=query.device)
        labels = torch.full((num_queries + 1,), -1, dtype=torch.int64, device=query.device)
        labels[rows] = gt_instances.labels
        return AssignResult(num_targets, assigned[:-1], None, labels=labels[:-1])


def _match_cost(weights: MatchWeights, predicted: Any, truth: Any, size: tuple[int, int]) -> Tensor:
    """Return the costs [1,T,Q] of an image of a size, height and width in pixels."""
    boxes = normalize(predicted.bboxes, size)
    weights = replace(weights, box_scale=mean_side([size]))
    return ops.match_cost(predicted.scores[None, None], boxes[None, None], pack([truth], [size]), weights=weights)


def find_assigner(assigner: HungarianAssigner) -> Finding:
    """Compare the assignments of an assigner with those of MMDetection."""
    return examine(
        "the assigner",
        partial(_compare_assigners, assigner),
        ("assigner", HungarianAssigner.assign, identity(*assigner.match_costs)),
    )


def _compare_assigners(assigner: HungarianAssigner) -> None:
    check_parameters(HungarianAssigner.assign, parameter_names(FastHungarianAssigner.assign))
    generator = torch.Generator().manual_seed(0)
    meta = {"img_shape": IMAGE}
    host, fast = (with_class(assigner, of) for of in (HungarianAssigner, FastHungarianAssigner))
    compare_costs(assigner.match_costs)
    for truth in random_instances(generator, num_classes=7):
        predicted = _predictions(generator)
        actual, desired = (side.assign(predicted, truth, meta) for side in (fast, host))
        check_close(*({"gt_inds": found.gt_inds, "labels": found.labels} for found in (actual, desired)))


def compare_costs(match_costs: Sequence[Any]) -> None:
    """Compare the sum of match costs with that of MMDetection; raises :class:`Disagreement`."""
    weights = match_weights(match_costs)
    if weights is None:
        return  # MMDetection computes them
    generator = torch.Generator().manual_seed(0)
    truth, predicted = random_instances(generator, num_classes=7)[0], _predictions(generator)
    desired = [
        cost(pred_instances=predicted, gt_instances=truth, img_meta={"img_shape": IMAGE}) for cost in match_costs
    ]
    actual = _match_cost(weights, predicted, truth, IMAGE)
    check_close({"the cost": actual[0].T}, {"the cost": torch.stack(desired).sum(0)})


def _predictions(generator: torch.Generator) -> InstanceData:
    boxes = box_cxcywh_to_xyxy(random_boxes(NUM_QUERIES, generator=generator)) * torch.tensor([IMAGE[1], IMAGE[0]] * 2)
    return InstanceData(scores=torch.randn(NUM_QUERIES, 8, generator=generator), bboxes=boxes)
