"""MMDetection 3 on our hot paths, by its registries. In a configuration of a DETR::

    custom_imports = dict(imports=["detr_fast.integrations.mmdet"])
    model = dict(type="FastDETR", bbox_head=dict(type="FastDETRHead"),
                 train_cfg=dict(assigner=dict(type="FastHungarianAssigner")))

All settings stay what they are, and so do matches, losses, their names and checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from detr_fast import ops
from detr_fast.integrations.versions import require_version
from detr_fast.ops.normalizers import count_class_weight
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights, MatchWeights

TESTED_VERSIONS = ("3.3",)
require_version("mmdet", TESTED_VERSIONS)

from mmdet.models.dense_heads import DETRHead  # noqa: E402  (once it is known to be one that we know)
from mmdet.models.detectors import DETR  # noqa: E402
from mmdet.models.layers import SinePositionalEncoding  # noqa: E402
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, L1Loss  # noqa: E402
from mmdet.models.task_modules.assigners import (  # noqa: E402
    AssignResult,
    BBoxL1Cost,
    ClassificationCost,
    FocalLossCost,
    HungarianAssigner,
    IoUCost,
)
from mmdet.registry import MODELS, TASK_UTILS  # noqa: E402
from mmdet.utils import reduce_mean  # noqa: E402

__all__ = ["TESTED_VERSIONS", "FastDETR", "FastDETRHead", "FastHungarianAssigner", "FastSinePositionalEncoding"]

IOU_EPS = 1e-6  # smallest area, in squared pixels, of MMDetection's overlaps


def match_weights(match_costs: Sequence[Any]) -> MatchWeights | None:
    """MMDetection's match costs as ours; None where some of them we don't have."""
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
        elif type(cost) is IoUCost and cost.iou_mode == "giou":
            weights = replace(weights, cost_giou=cost.weight)
        else:
            return None
    return weights


@TASK_UTILS.register_module()
class FastHungarianAssigner(HungarianAssigner):
    """MMDetection's assigner; costs of class (softmax or focal), L1 and GIoU in one call, the others its own."""

    @torch.no_grad()
    def assign(self, pred_instances: Any, gt_instances: Any, img_meta: Any = None, **kwargs: Any) -> AssignResult:
        num_targets, num_queries = len(gt_instances), len(pred_instances)
        weights = match_weights(self.match_costs)
        if weights is not None and num_targets and num_queries:
            size = img_meta["img_shape"]
            weights = replace(weights, box_scale=_side([size]))
            targets = _pack([gt_instances], [size])
            boxes = _normalise(pred_instances.bboxes, size)
            cost = ops.match_cost(pred_instances.scores[None, None], boxes[None, None], targets, weights=weights)
        else:
            costs = (
                [
                    cost(pred_instances=pred_instances, gt_instances=gt_instances, img_meta=img_meta)
                    for cost in self.match_costs
                ]
                if num_targets and num_queries
                else []
            )
            device = gt_instances.labels.device
            cost = (
                torch.stack(costs).sum(0).T[None] if costs else torch.zeros(1, num_targets, num_queries, device=device)
            )
        query = ops.batch_linear_sum_assignment(cost, [num_targets])[0]  # [T]
        # One place more than there are queries takes the targets without one.
        places = query.where(query >= 0, num_queries)
        assigned = torch.zeros(num_queries + 1, dtype=torch.int64, device=query.device)
        assigned[places] = torch.arange(1, num_targets + 1, device=query.device)
        labels = torch.full((num_queries + 1,), -1, dtype=torch.int64, device=query.device)
        labels[places] = gt_instances.labels
        return AssignResult(num_targets, assigned[:-1], None, labels=labels[:-1])


@MODELS.register_module()
class FastSinePositionalEncoding(SinePositionalEncoding):
    """MMDetection's sine positional encoding."""

    def forward(self, mask: Tensor | None, input: Tensor | None = None) -> Tensor:
        """Encode a padding mask [B,H,W], not 0 = padding, or without one the cells of a map [B,d,H,W]: [B,2F,H,W]."""
        batch = 1
        if mask is None:
            assert input is not None
            batch = input.shape[0]
            mask = torch.zeros(1, *input.shape[-2:], dtype=torch.bool, device=input.device)
        encoding = ops.sine_position_encoding(
            mask.bool(),
            self.num_feats,
            temperature=self.temperature,
            normalize=self.normalize,
            scale=self.scale,
            eps=self.eps,
            offset=self.offset if self.normalize else 0.0,
        )
        return encoding.expand(batch, -1, -1, -1) if batch > 1 else encoding


@MODELS.register_module()
class FastDETR(DETR):
    """MMDetection's DETR, which builds its positional encoding past the registry, with ours."""

    positional_encoding: Any  # first its options, then the module

    def _init_layers(self) -> None:
        options = dict(self.positional_encoding)
        super()._init_layers()
        self.positional_encoding = FastSinePositionalEncoding(**options)


@MODELS.register_module()
class FastDETRHead(DETRHead):
    """MMDetection's DETR head; all decoder layers are matched and their losses computed in one call to each op.

    Of the losses it takes CrossEntropyLoss (with ``bg_cls_weight``) or FocalLoss, L1Loss and GIoULoss, and of the match
    costs those of :class:`FastHungarianAssigner`; with others it computes as its base class does.
    """

    def __init__(self, *args: Any, loss_cls: Any = None, **kwargs: Any) -> None:
        loss_cls = dict(loss_cls or {"type": "CrossEntropyLoss", "bg_cls_weight": 0.1, "class_weight": 1.0})
        class_weight = loss_cls.get("class_weight")
        background = loss_cls.pop("bg_cls_weight", class_weight)
        if class_weight is not None:  # the base class does this for no class but itself
            num_classes = kwargs["num_classes"] if "num_classes" in kwargs else args[0]
            loss_cls["class_weight"] = [float(class_weight)] * num_classes + [float(background)]
        super().__init__(*args, loss_cls=loss_cls, **kwargs)
        if class_weight is not None:
            self.bg_cls_weight = float(background)

    def loss_by_feat(
        self,
        all_layers_cls_scores: Tensor,  # [L,B,Q,C]
        all_layers_bbox_preds: Tensor,  # [L,B,Q,4]
        batch_gt_instances: list[Any],
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: None = None,
    ) -> dict[str, Tensor]:
        sizes = [meta["img_shape"] for meta in batch_img_metas]
        match = match_weights(getattr(self.assigner, "match_costs", [None]))
        loss = self._loss_weights(_side(sizes))
        if match is None or loss is None:
            return super().loss_by_feat(
                all_layers_cls_scores, all_layers_bbox_preds, batch_gt_instances, batch_img_metas
            )
        logits, boxes = all_layers_cls_scores, all_layers_bbox_preds
        targets = _pack(batch_gt_instances, sizes)
        with torch.no_grad():
            cost = ops.match_cost(logits, boxes, targets, weights=replace(match, box_scale=_side(sizes)))
            index = ops.batch_linear_sum_assignment(cost, targets)
        num_queries = logits.shape[2]
        matched = logits.new_tensor([float(sum(min(size, num_queries) for size in targets.sizes))])
        num_boxes = reduce_mean(matched).clamp(min=1)
        class_normalizer = logits.new_tensor([count_class_weight(targets, num_queries, loss)])
        if self.sync_cls_avg_factor:
            class_normalizer = reduce_mean(class_normalizer)
        terms = ops.set_loss(
            logits,
            boxes,
            targets,
            index,
            weights=loss,
            num_boxes=num_boxes,
            class_normalizer=class_normalizer.clamp(min=1),
        )
        if loss.class_loss == "focal":  # divided by this rank's pairs, unless they are synchronised
            positives = reduce_mean(matched) if self.sync_cls_avg_factor else matched
            terms["loss_ce"] = terms["loss_ce"] * num_boxes / positives.clamp(min=1)
        names = {"loss_cls": ("loss_ce", self.loss_cls), "loss_bbox": ("loss_bbox", self.loss_bbox)}
        names["loss_iou"] = ("loss_giou", self.loss_iou)
        losses = {}
        for name, (term, module) in names.items():
            *auxiliary, final = (terms[term] * module.loss_weight).unbind()
            losses[name] = final
            losses |= {f"d{layer}.{name}": value for layer, value in enumerate(auxiliary)}
        return losses

    def _loss_weights(self, side: float) -> LossWeights | None:
        if type(self.loss_bbox) is not L1Loss or type(self.loss_iou) is not GIoULoss:
            return None
        weights = LossWeights(normalizer="matched", giou_eps=self.loss_iou.eps, box_scale=side)
        if type(self.loss_cls) is FocalLoss and self.loss_cls.use_sigmoid and not self.loss_cls.activated:
            focal = {"focal_alpha": self.loss_cls.alpha, "focal_gamma": self.loss_cls.gamma}
            return replace(weights, class_loss="focal", no_object=0.0, **focal)
        of_classes = self.loss_cls.class_weight
        plain = type(self.loss_cls) is CrossEntropyLoss and not self.loss_cls.use_sigmoid and not self.loss_cls.use_mask
        if plain and of_classes is not None and all(weight == 1 for weight in of_classes[:-1]):
            return replace(weights, no_object=self.bg_cls_weight, min_class_normalizer=1.0)
        return None


def _side(sizes: Sequence[tuple[int, int]]) -> float:
    """Pixels to which the unit of normalised boxes comes, such that areas are those of the mean image."""
    return math.sqrt(sum(height * width for height, width in sizes) / len(sizes))


def _normalise(corners: Tensor, size: tuple[int, int]) -> Tensor:
    """Corners in pixels [N,4] to centres and sizes as fractions of the image."""
    height, width = size
    boxes = corners / corners.new_tensor([width, height, width, height])
    return torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), -1)


def _pack(instances: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> Targets:
    return Targets.from_list(
        [
            {"labels": image.labels, "boxes": _normalise(_as_tensor(image.bboxes), size)}
            for image, size in zip(instances, sizes, strict=True)
        ]
    )


def _as_tensor(boxes: Any) -> Tensor:
    return boxes if isinstance(boxes, Tensor) else boxes.tensor  # MMDetection's own box type holds one
