"""The focal loss of MMDetection and the losses of its DETR head."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from mmdet.models.dense_heads import DETRHead
from mmdet.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, L1Loss
from mmdet.models.task_modules.assigners import HungarianAssigner
from mmdet.registry import MODELS
from mmdet.utils import reduce_mean
from torch import Tensor, nn

from detr_fast import ops
from detr_fast.integrations.evidence import (
    NUM_QUERIES,
    SIZES,
    Finding,
    check_close,
    check_parameters,
    evaluate,
    examine,
    parameter_names,
    random_boxes,
)
from detr_fast.integrations.mmdet.assigner import FastHungarianAssigner, compare_costs
from detr_fast.integrations.mmdet.comparisons import IMAGE, identity, keep_or_leave, random_instances, with_class
from detr_fast.integrations.mmdet.conversions import match_weights, pack
from detr_fast.integrations.mmdet_api.boxes import mean_side
from detr_fast.ops.normalizers import count_class_weight
from detr_fast.ops.weights import LossWeights


@MODELS.register_module()
class FastFocalLoss(FocalLoss):
    """The focal loss of MMDetection, without the compiled op of mmcv on a GPU."""

    def __init__(self, *args: Any, check: bool = True, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if check:
            keep_or_leave(self, FastFocalLoss, find_focal_loss(self))

    def forward(self, pred: Tensor, target: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Compute the loss.

        Args:
            pred: Logits [N,C].
            target: Classes [N], C for no object, or one-hot [N,C].
            *args: As in the base class.
            **kwargs: As in the base class.

        Returns:
            The loss of the base class.
        """
        if target.dim() < pred.dim():
            target = nn.functional.one_hot(target, pred.shape[1] + 1)[:, :-1]
        return super().forward(pred, target, *args, **kwargs)


def find_focal_loss(loss: FocalLoss) -> Finding:
    """Compare a focal loss with that of MMDetection."""
    return examine("the focal loss", partial(_compare_focal_losses, loss), ("focal", FocalLoss.forward, identity(loss)))


def _compare_focal_losses(loss: FocalLoss) -> None:
    generator = torch.Generator().manual_seed(0)
    leaves = {"pred": torch.randn(20, 7, generator=generator).requires_grad_()}
    target, weight = torch.randint(8, (20,), generator=generator), torch.rand(20, generator=generator)
    sides = [with_class(loss, of) for of in (FastFocalLoss, FocalLoss)]
    results = [{"the loss": side(leaves["pred"], target, weight, avg_factor=3.0).sum()} for side in sides]
    check_close(*(evaluate(result, leaves) for result in results))


@MODELS.register_module()
class FastDETRHead(DETRHead):
    """The DETR head of MMDetection, with one call to each op for all decoder layers.

    The losses CrossEntropyLoss (with ``bg_cls_weight``) or FocalLoss, L1Loss and GIoULoss, and the match costs of
    :class:`FastHungarianAssigner` are supported. With other losses or costs the base class computes the losses.
    """

    def __init__(self, *args: Any, loss_cls: Any = None, check: bool = True, **kwargs: Any) -> None:
        loss_cls = dict(loss_cls or {"type": "CrossEntropyLoss", "bg_cls_weight": 0.1, "class_weight": 1.0})
        class_weight = loss_cls.get("class_weight")
        background = loss_cls.pop("bg_cls_weight", class_weight)
        if class_weight is not None:  # the base class does this only if the type is exactly DETRHead
            num_classes = kwargs["num_classes"] if "num_classes" in kwargs else args[0]
            loss_cls["class_weight"] = [float(class_weight)] * num_classes + [float(background)]
        super().__init__(*args, loss_cls=loss_cls, **kwargs)
        if class_weight is not None:
            self.bg_cls_weight = float(background)
        if check and self.train_cfg:
            keep_or_leave(self, FastDETRHead, find_head(self))

    def loss_by_feat(
        self,
        all_layers_cls_scores: Tensor,
        all_layers_bbox_preds: Tensor,
        batch_gt_instances: list[Any],
        batch_img_metas: list[dict[str, Any]],
        batch_gt_instances_ignore: None = None,
    ) -> dict[str, Tensor]:
        """Compute the losses of all decoder layers.

        Args:
            all_layers_cls_scores: Class logits [L,B,Q,C].
            all_layers_bbox_preds: Boxes [L,B,Q,4], cxcywh in [0,1].
            batch_gt_instances: ``labels`` [t] and ``bboxes`` [t,4], xyxy in pixels, of each image.
            batch_img_metas: Meta information of each image with its ``img_shape``.
            batch_gt_instances_ignore: Not supported, as in the base class.

        Returns:
            The losses by the names of MMDetection.
        """
        sizes = [meta["img_shape"] for meta in batch_img_metas]
        match = match_weights(getattr(self.assigner, "match_costs", [None]))
        loss = self._loss_weights(mean_side(sizes))
        if match is None or loss is None:
            return super().loss_by_feat(
                all_layers_cls_scores, all_layers_bbox_preds, batch_gt_instances, batch_img_metas
            )
        logits, boxes = all_layers_cls_scores, all_layers_bbox_preds
        targets = pack(batch_gt_instances, sizes)
        with torch.no_grad():
            cost = ops.match_cost(logits, boxes, targets, weights=replace(match, box_scale=mean_side(sizes)))
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
        if (
            loss.class_loss == "focal"
        ):  # divided by the pairs of this rank, unless the divisor is averaged over the ranks
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
        softmax = (
            type(self.loss_cls) is CrossEntropyLoss and not self.loss_cls.use_sigmoid and not self.loss_cls.use_mask
        )
        if softmax and of_classes is not None and all(weight == 1 for weight in of_classes[:-1]):
            return replace(weights, no_object=self.bg_cls_weight, min_class_normalizer=1.0)
        return None


def find_head(head: DETRHead) -> Finding:
    """Compare the losses of a head, and their gradients, with those of MMDetection."""
    parts = (head.loss_cls, head.loss_bbox, head.loss_iou, *getattr(head.assigner, "match_costs", ()))
    key = ("head", DETRHead.loss_by_feat, head.num_classes, identity(head, *parts))
    return examine("the losses of the head", partial(_compare_heads, head), key)


def _compare_heads(head: DETRHead) -> None:
    check_parameters(DETRHead.loss_by_feat, parameter_names(FastDETRHead.loss_by_feat))
    host, fast = (with_class(head, of) for of in (DETRHead, FastDETRHead))
    compare_costs(getattr(head.assigner, "match_costs", [None]))
    for side in (host, fast):
        if type(side.assigner) is FastHungarianAssigner:
            side.assigner.__class__ = HungarianAssigner
    generator = torch.Generator().manual_seed(0)
    shape = (3, len(SIZES), NUM_QUERIES)
    leaves = {
        "logits": torch.randn(*shape, head.cls_out_channels, generator=generator).requires_grad_(),
        "boxes": random_boxes(*shape, generator=generator).requires_grad_(),
    }
    instances = random_instances(generator, head.num_classes)
    metas = [{"img_shape": IMAGE} for _ in SIZES]
    results = []
    for side in (fast, host):
        losses = side.loss_by_feat(*leaves.values(), instances, metas)
        # Weighted, so that errors of two losses do not cancel out.
        weighted = {name: (1 + i) * losses[name] for i, name in enumerate(sorted(losses))}
        results.append(evaluate(weighted, leaves))
    check_close(*results)
