"""The targets and losses of the DETR head of MMDetection 2.11."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from detr_fast import ops
from detr_fast.criterion import loss_divisors
from detr_fast.integrations.mmdet_api.assigner import BBoxL1Cost, ClassificationCost, HungarianAssigner, IoUCost
from detr_fast.integrations.mmdet_api.boxes import (
    ImageMeta,
    check_no_ignored,
    image_factor,
    mean_side,
    scatter_to_queries,
)
from detr_fast.ops.boxes import box_xyxy_to_cxcywh
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights, MatchWeights, check_agreement


def get_targets(
    cls_scores_list: Sequence[Tensor],
    bbox_preds_list: Sequence[Tensor],
    gt_bboxes_list: Sequence[Tensor],
    gt_labels_list: Sequence[Tensor],
    img_metas: Sequence[ImageMeta],
    gt_bboxes_ignore_list: None = None,
    *,
    assigner: HungarianAssigner | None = None,
) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor], int, int]:
    """Match the predictions of a decoder layer to the targets, and return what each of them is trained towards.

    Args:
        cls_scores_list: Class logits [Q,C+1] of each image, no-object last.
        bbox_preds_list: Predicted boxes [Q,4] of each image, cxcywh as fractions of the image.
        gt_bboxes_list: Boxes [t,4] of the targets of each image, xyxy in pixels.
        gt_labels_list: int64 [t] of each image.
        img_metas: A mapping with the ``img_shape`` of each image, height and width first.
        gt_bboxes_ignore_list: Not supported, as in MMDetection.
        assigner: The assigner; by default that of MMDetection's DETR head, whose costs have the weights 1, 5 and 2.

    Returns:
        For each image the labels [Q], which are C for no-object, their weights [Q], the boxes [Q,4] in the format of
        the predictions, and their weights [Q,4], 1 for matched predictions; and the numbers of matched and of
        unmatched predictions in the batch.

    Raises:
        ValueError: The lists do not fit together, or a cost is not finite.
    """
    check_no_ignored(gt_bboxes_ignore_list)
    logits, boxes = torch.stack(list(cls_scores_list)), torch.stack(list(bbox_preds_list))
    targets = _pack(gt_bboxes_list, gt_labels_list, img_metas)
    index = _match(logits[None], boxes[None], targets, gt_bboxes_list, gt_labels_list, img_metas, assigner)[0]
    num_queries, num_classes = logits.shape[1], logits.shape[2] - 1
    images: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for query, truth, labels, meta in zip(
        index.split(targets.sizes), gt_bboxes_list, gt_labels_list, img_metas, strict=True
    ):
        goal = box_xyxy_to_cxcywh(truth / image_factor(truth, meta)).to(boxes.dtype)
        images.append(
            (
                scatter_to_queries(labels, query, num_queries, fill=num_classes),
                truth.new_ones(num_queries),
                scatter_to_queries(goal, query, num_queries, fill=0),
                scatter_to_queries(torch.ones_like(goal), query, num_queries, fill=0),
            )
        )
    columns = [list(column) for column in zip(*images, strict=True)]
    positive = sum(min(size, num_queries) for size in targets.sizes)
    return columns[0], columns[1], columns[2], columns[3], positive, len(images) * num_queries - positive


def loss(
    all_cls_scores: Tensor,
    all_bbox_preds: Tensor,
    gt_bboxes_list: Sequence[Tensor],
    gt_labels_list: Sequence[Tensor],
    img_metas: Sequence[ImageMeta],
    gt_bboxes_ignore: None = None,
    *,
    assigner: HungarianAssigner | None = None,
    weights: LossWeights | None = None,
) -> dict[str, Tensor]:
    """Compute the weighted losses of all decoder layers, whose sum is the loss of the model.

    All layers and images are matched, and their losses computed, in one call to each op.

    Args:
        all_cls_scores: Class logits [L,B,Q,C+1], no-object last.
        all_bbox_preds: Predicted boxes [L,B,Q,4], cxcywh as fractions of each image.
        gt_bboxes_list: Boxes [t,4] of the targets of each image, xyxy in pixels.
        gt_labels_list: int64 [t] of each image.
        img_metas: A mapping with the ``img_shape`` of each image, height and width first.
        gt_bboxes_ignore: Not supported, as in MMDetection.
        assigner: As for :func:`get_targets`.
        weights: The weights of the losses, of which ``no_object`` is MMDetection's ``bg_cls_weight``; by default those
            of :meth:`LossWeights.mmdet2`. The GIoU is computed in pixels of an image of the mean area, whatever
            ``box_scale`` is.

    Returns:
        ``loss_cls``, ``loss_bbox`` and ``loss_iou`` of the last layer, and ``d0.loss_cls``, ``d0.loss_bbox``,
        ``d0.loss_iou``, ``d1.loss_cls`` and so on of the others.

    Raises:
        ValueError: The lists do not fit together, a cost is not finite, or ``weights`` are those of another class loss
            than the softmax cross-entropy.
    """
    check_no_ignored(gt_bboxes_ignore)
    weights = replace(weights or LossWeights.mmdet2(), box_scale=mean_side(meta["img_shape"] for meta in img_metas))
    check_agreement(MatchWeights(), weights)
    targets = _pack(gt_bboxes_list, gt_labels_list, img_metas)
    index = _match(all_cls_scores, all_bbox_preds, targets, gt_bboxes_list, gt_labels_list, img_metas, assigner)
    num_boxes, class_normalizer = loss_divisors(all_cls_scores, targets, weights)
    terms = ops.set_loss(
        all_cls_scores,
        all_bbox_preds,
        targets,
        index,
        weights=weights,
        num_boxes=num_boxes,
        class_normalizer=class_normalizer,
    )
    names = ("loss_cls", "loss_bbox", "loss_iou")  # in the order of the ops
    layers = [
        dict(zip(names, values, strict=True))
        for values in zip(
            *((weight * term).unbind() for weight, term in zip(weights.loss_weights, terms.values(), strict=True)),
            strict=True,
        )
    ]
    losses = layers[-1]
    for number, layer in enumerate(layers[:-1]):
        losses |= {f"d{number}.{name}": value for name, value in layer.items()}
    return losses


def _default_assigner() -> HungarianAssigner:
    return HungarianAssigner(ClassificationCost(1.0), BBoxL1Cost(5.0), IoUCost(weight=2.0))


@torch.no_grad()
def _match(
    logits: Tensor,  # [L,B,Q,C+1]
    boxes: Tensor,  # [L,B,Q,4]
    targets: Targets,
    gt_bboxes: Sequence[Tensor],
    gt_labels: Sequence[Tensor],
    img_metas: Sequence[ImageMeta],
    assigner: HungarianAssigner | None,
) -> Tensor:
    """Return the query that each target is matched to in each layer, -1 for none: int64 [L,T]."""
    assigner = assigner or _default_assigner()
    weights = assigner.match_weights()
    if weights is not None:
        cost = ops.match_cost(
            logits,
            boxes,
            targets,
            weights=replace(weights, box_scale=mean_side(meta["img_shape"] for meta in img_metas)),
        )
        return ops.batch_linear_sum_assignment(cost, targets)
    rows = []
    for layer_logits, layer_boxes in zip(logits, boxes, strict=True):
        row = []
        for image in zip(layer_boxes, layer_logits, gt_bboxes, gt_labels, img_metas, strict=True):
            assigned = assigner.assign(*image)
            queries = torch.arange(assigned.num_preds, device=logits.device)
            # Unassigned queries are written to row 0, which is then dropped.
            row.append(queries.new_full((assigned.num_gts + 1,), -1).scatter(0, assigned.gt_inds, queries)[1:])
        rows.append(torch.cat(row))
    return torch.stack(rows)


def _pack(gt_bboxes: Sequence[Tensor], gt_labels: Sequence[Tensor], img_metas: Sequence[ImageMeta]) -> Targets:
    return Targets.from_list(
        [
            {"labels": labels, "boxes": box_xyxy_to_cxcywh(boxes / image_factor(boxes, meta))}
            for boxes, labels, meta in zip(gt_bboxes, gt_labels, img_metas, strict=True)
        ]
    )
