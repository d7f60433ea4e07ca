"""The assigner, costs, encoding, targets and losses of the DETR of MMDetection 2.11, by its names, without MMDetection.

Names, arguments, results and the meaning of each setting are MMDetection's; the values are computed by the ops of this
library. Arguments that MMDetection asserts are checked here with a ValueError or TypeError. The functions
:func:`get_targets` and :func:`loss` are the methods of its DETR head of that name, whose settings are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from detr_fast import ops
from detr_fast.criterion import loss_divisors
from detr_fast.ops.boxes import box_cxcywh_to_xyxy
from detr_fast.ops.sine import check_wavelengths
from detr_fast.ops.sine_position_encoding import check_normalization
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights, MatchWeights, check_agreement

__all__ = [
    "FFN",
    "AssignResult",
    "BBoxL1Cost",
    "ClassificationCost",
    "HungarianAssigner",
    "IoUCost",
    "SinePositionalEncoding",
    "get_targets",
    "loss",
]

IOU_EPS = 1e-6  # smallest area, in squared pixels, in the overlaps of MMDetection

Cost: TypeAlias = Callable[[Tensor, Tensor], Tensor]
ImageMeta: TypeAlias = Mapping[str, Any]
IoUMode = Literal["giou", "iou", "iof"]
BoxFormat = Literal["xyxy", "xywh"]


class AssignResult:
    """The targets that the predictions of an image are assigned to.

    Args:
        num_gts: Number of targets.
        gt_inds: int64 [Q], for each prediction the one-based index of its target, 0 if it has none, -1 to ignore it.
        max_overlaps: [Q], the IoU of each prediction and its target; None where it is not known.
        labels: int64 [Q], the label of the target of each prediction; None where it is not known.
    """

    def __init__(
        self, num_gts: int, gt_inds: Tensor, max_overlaps: Tensor | None, labels: Tensor | None = None
    ) -> None:
        self.num_gts = num_gts
        self.gt_inds = gt_inds
        self.max_overlaps = max_overlaps
        self.labels = labels
        self._extra_properties: dict[str, Any] = {}

    @property
    def num_preds(self) -> int:
        """The number of predictions."""
        return len(self.gt_inds)

    @property
    def info(self) -> dict[str, Any]:
        """All attributes and further properties by name."""
        attributes = ("num_gts", "num_preds", "gt_inds", "max_overlaps", "labels")
        return {name: getattr(self, name) for name in attributes} | self._extra_properties

    def set_extra_property(self, key: str, value: Any) -> None:
        """Store a further property.

        Args:
            key: Its name.
            value: Its value.

        Raises:
            ValueError: There is a property of that name.
        """
        if key in self.info:
            raise ValueError(f"there is a property {key!r} already")
        self._extra_properties[key] = value

    def get_extra_property(self, key: str) -> Any:
        """Return a further property, None if there is none of that name."""
        return self._extra_properties.get(key)

    def add_gt_(self, gt_labels: Tensor) -> None:
        """Put the targets before the predictions, each assigned to itself with an IoU of 1.

        Args:
            gt_labels: int64 [T], the labels of the targets.
        """
        own = torch.arange(1, len(gt_labels) + 1, device=gt_labels.device)
        self.gt_inds = torch.cat([own, self.gt_inds])
        if self.max_overlaps is not None:
            self.max_overlaps = torch.cat([self.max_overlaps.new_ones(len(gt_labels)), self.max_overlaps])
        if self.labels is not None:
            self.labels = torch.cat([gt_labels, self.labels])

    def __repr__(self) -> str:
        parts = [f"num_gts={self.num_gts!r}"]
        for name in ("gt_inds", "max_overlaps", "labels"):
            value = getattr(self, name)
            parts.append(f"{name}={value!r}" if value is None else f"{name}.shape={tuple(value.shape)!r}")
        return f"<{type(self).__name__}({', '.join(parts)})>"


class ClassificationCost:
    """The negative probability of the class of each target.

    Args:
        weight: Factor of the cost.
    """

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    def __call__(self, cls_pred: Tensor, gt_labels: Tensor) -> Tensor:
        """Compute the cost.

        Args:
            cls_pred: Class logits [Q,C].
            gt_labels: int64 [T].

        Returns:
            [Q,T].
        """
        return -cls_pred.softmax(-1)[:, gt_labels] * self.weight


class BBoxL1Cost:
    """The L1 distance of each predicted box and each target.

    Args:
        weight: Factor of the cost.
        box_format: ``"xyxy"`` to compare corners, ``"xywh"`` to compare centers and sizes.

    Raises:
        ValueError: ``box_format`` is another one.
    """

    def __init__(self, weight: float = 1.0, box_format: BoxFormat = "xyxy") -> None:
        if box_format not in get_args(BoxFormat):
            raise ValueError(f"box_format must be 'xyxy' or 'xywh', got {box_format!r}")
        self.weight = weight
        self.box_format = box_format

    def __call__(self, bbox_pred: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Compute the cost.

        Args:
            bbox_pred: Predicted boxes [Q,4], cxcywh as fractions of the image.
            gt_bboxes: Boxes of the targets [T,4], xyxy as fractions of the image.

        Returns:
            [Q,T].
        """
        if self.box_format == "xywh":
            return ops.pairwise_box_l1(bbox_pred, _xyxy_to_cxcywh(gt_bboxes)) * self.weight
        return ops.pairwise_box_l1(box_cxcywh_to_xyxy(bbox_pred), gt_bboxes) * self.weight


class IoUCost:
    """The negative overlap of each predicted box and each target.

    Args:
        iou_mode: ``"giou"``, ``"iou"``, or ``"iof"``, the intersection divided by the area of the predicted box. Areas
            to divide by are at least 1e-6.
        weight: Factor of the cost.

    Raises:
        ValueError: ``iou_mode`` is another one.
    """

    def __init__(self, iou_mode: IoUMode = "giou", weight: float = 1.0) -> None:
        if iou_mode not in get_args(IoUMode):
            raise ValueError(f"iou_mode must be 'giou', 'iou' or 'iof', got {iou_mode!r}")
        self.iou_mode = iou_mode
        self.weight = weight

    def __call__(self, bboxes: Tensor, gt_bboxes: Tensor) -> Tensor:
        """Compute the cost.

        Args:
            bboxes: Predicted boxes [Q,4], xyxy in pixels.
            gt_bboxes: Boxes of the targets [T,4], xyxy in pixels.

        Returns:
            [Q,T].
        """
        return -ops.pairwise_box_iou(bboxes, gt_bboxes, kind=self.iou_mode, eps=IOU_EPS) * self.weight


_COSTS: dict[str, Callable[..., Cost]] = {cost.__name__: cost for cost in (ClassificationCost, BBoxL1Cost, IoUCost)}


class HungarianAssigner:
    """The optimal assignment of predictions to targets by the sum of three costs.

    Args:
        cls_cost: The class cost: a mapping with the ``type``, the name of a class of this module, and its arguments; or
            a function of class logits [Q,C] and labels [T] that returns [Q,T].
        reg_cost: The cost of the distance of boxes, likewise; it takes what :class:`BBoxL1Cost` takes.
        iou_cost: The cost of the overlap of boxes, likewise; it takes what :class:`IoUCost` takes.

    Raises:
        ValueError: There is no cost of that type.
    """

    def __init__(
        self,
        cls_cost: Mapping[str, Any] | Cost = {"type": "ClassificationCost", "weight": 1.0},  # noqa: B006  (read only)
        reg_cost: Mapping[str, Any] | Cost = {"type": "BBoxL1Cost", "weight": 1.0},  # noqa: B006
        iou_cost: Mapping[str, Any] | Cost = {"type": "IoUCost", "iou_mode": "giou", "weight": 1.0},  # noqa: B006
    ) -> None:
        self.cls_cost = _build_cost(cls_cost)
        self.reg_cost = _build_cost(reg_cost)
        self.iou_cost = _build_cost(iou_cost)

    @torch.no_grad()
    def assign(
        self,
        bbox_pred: Tensor,
        cls_pred: Tensor,
        gt_bboxes: Tensor,
        gt_labels: Tensor,
        img_meta: ImageMeta,
        gt_bboxes_ignore: None = None,
    ) -> AssignResult:
        """Assign the predictions of an image to its targets.

        Args:
            bbox_pred: Predicted boxes [Q,4], cxcywh as fractions of the image.
            cls_pred: Class logits [Q,C].
            gt_bboxes: Boxes of the targets [T,4], xyxy in pixels.
            gt_labels: int64 [T].
            img_meta: A mapping with the ``img_shape``, height and width first.
            gt_bboxes_ignore: Not supported, as in MMDetection.

        Returns:
            The assignment; predictions without a target have the label -1.

        Raises:
            ValueError: A cost is not finite, or ``gt_bboxes_ignore`` is given.
        """
        _check_no_ignored(gt_bboxes_ignore)
        num_targets, num_queries = len(gt_bboxes), len(bbox_pred)
        if num_targets and num_queries:
            factor = _factor(gt_bboxes, img_meta)
            cost = (
                self.cls_cost(cls_pred, gt_labels)
                + self.reg_cost(bbox_pred, gt_bboxes / factor)
                + self.iou_cost(box_cxcywh_to_xyxy(bbox_pred) * factor, gt_bboxes)
            )
            query = ops.batch_linear_sum_assignment(cost.T[None], [num_targets])[0]  # [T]
        else:
            query = torch.full((num_targets,), -1, device=bbox_pred.device)
        one_based = torch.arange(1, num_targets + 1, device=query.device)
        gt_inds = _scatter(one_based, query, num_queries, fill=0)
        return AssignResult(num_targets, gt_inds, None, labels=_scatter(gt_labels, query, num_queries, fill=-1))

    def match_weights(self) -> MatchWeights | None:
        """Return the costs as weights of :func:`detr_fast.ops.match_cost`, None if one is a function of one's own."""
        classes, distance, overlap = self.cls_cost, self.reg_cost, self.iou_cost
        if type(classes) is not ClassificationCost or type(distance) is not BBoxL1Cost or type(overlap) is not IoUCost:
            return None
        return MatchWeights(
            classes.weight,
            distance.weight,
            overlap.weight,
            l1_format="xyxy" if distance.box_format == "xyxy" else "cxcywh",
            iou_kind=overlap.iou_mode,
            giou_eps=IOU_EPS,
        )


class SinePositionalEncoding(nn.Module):
    """The sine encoding of positions in the unpadded part of a feature map.

    Args:
        num_feats: Number of features F per axis, even.
        temperature: Base of the geometric sequence of wavelengths.
        normalize: Whether each axis of the unpadded part is mapped to ``[0, scale]``.
        scale: Length of a normalized axis, in radians.
        eps: Added to the divisor of the normalization.

    Raises:
        TypeError: ``temperature``, ``scale`` or ``eps`` is not a number.
        ValueError: ``num_feats`` or ``temperature`` is out of range.
    """

    def __init__(
        self,
        num_feats: int,
        temperature: float = 10000,
        normalize: bool = False,
        scale: float = 2 * math.pi,
        eps: float = 1e-6,
    ) -> None:
        super().__init__()
        check_wavelengths(num_feats, temperature)
        check_normalization(scale, eps, 0.0)
        self.num_feats = num_feats
        self.temperature = temperature
        self.normalize = normalize
        self.scale = scale
        self.eps = eps

    def forward(self, mask: Tensor) -> Tensor:
        """Encode the cells of a feature map.

        Args:
            mask: Padding mask [B,H,W], bool or of another dtype, nonzero where padded.

        Returns:
            The encoding, float32 [B,2F,H,W].
        """
        return ops.sine_position_encoding(
            mask.bool(),
            self.num_feats,
            temperature=self.temperature,
            normalize=self.normalize,
            scale=self.scale,
            eps=self.eps,
        )

    def extra_repr(self) -> str:
        """Return the arguments."""
        return (
            f"num_feats={self.num_feats}, temperature={self.temperature}, normalize={self.normalize}, "
            f"scale={self.scale}, eps={self.eps}"
        )


_ACTIVATIONS: dict[str, type[nn.Module]] = {
    activation.__name__: activation
    for activation in (nn.ReLU, nn.LeakyReLU, nn.RReLU, nn.ReLU6, nn.ELU, nn.Sigmoid, nn.Tanh, nn.GELU)
}


class FFN(nn.Module):
    """A feed-forward network with a residual connection; its parameters have MMDetection's names.

    Args:
        embed_dims: Number of features d of the input and the output.
        feedforward_channels: Number of hidden features.
        num_fcs: Number of linear layers, at least 2.
        act_cfg: The activation function between them: a mapping with the ``type``, the name of a class of ``torch.nn``,
            and its arguments. The types are ReLU, LeakyReLU, RReLU, ReLU6, ELU, Sigmoid, Tanh and GELU.
        dropout: Dropout probability of the hidden features and of the output.
        add_residual: Whether the residual is added to the output.

    Raises:
        ValueError: ``num_fcs`` is below 2, or there is no such activation function.
    """

    def __init__(
        self,
        embed_dims: int,
        feedforward_channels: int,
        num_fcs: int = 2,
        act_cfg: Mapping[str, Any] = {"type": "ReLU", "inplace": True},
        dropout: float = 0.0,
        add_residual: bool = True,
    ) -> None:
        super().__init__()
        if num_fcs < 2:
            raise ValueError(f"num_fcs must be at least 2, got {num_fcs}")
        options = dict(act_cfg)
        kind = options.pop("type", None)
        if kind not in _ACTIVATIONS:
            raise ValueError(f"the type in act_cfg must be one of {', '.join(_ACTIVATIONS)}, got {kind!r}")
        self.embed_dims = embed_dims
        self.feedforward_channels = feedforward_channels
        self.num_fcs = num_fcs
        self.act_cfg = dict(act_cfg)
        self.add_residual = add_residual
        widths = [embed_dims] + [feedforward_channels] * (num_fcs - 1)
        hidden = [
            nn.Sequential(nn.Linear(width, feedforward_channels), _ACTIVATIONS[kind](**options), nn.Dropout(dropout))
            for width in widths[:-1]
        ]
        self.layers = nn.Sequential(*hidden, nn.Linear(feedforward_channels, embed_dims))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """Apply the network.

        Args:
            x: [...,d].
            residual: [...,d], what is added to the output; None for the input. It is not used without ``add_residual``.

        Returns:
            [...,d].
        """
        out: Tensor = self.layers(x)
        if not self.add_residual:
            return out
        return (x if residual is None else residual) + self.dropout(out)

    def __repr__(self) -> str:
        return (
            f"{type(self).__name__}(embed_dims={self.embed_dims}, feedforward_channels={self.feedforward_channels}, "
            f"num_fcs={self.num_fcs}, act_cfg={self.act_cfg}, dropout={self.dropout}, add_residual={self.add_residual})"
        )


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
    _check_no_ignored(gt_bboxes_ignore_list)
    logits, boxes = torch.stack(list(cls_scores_list)), torch.stack(list(bbox_preds_list))
    targets = _pack(gt_bboxes_list, gt_labels_list, img_metas)
    index = _match(logits[None], boxes[None], targets, gt_bboxes_list, gt_labels_list, img_metas, assigner)[0]
    num_queries, num_classes = logits.shape[1], logits.shape[2] - 1
    images: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for query, truth, labels, meta in zip(
        index.split(targets.sizes), gt_bboxes_list, gt_labels_list, img_metas, strict=True
    ):
        goal = _xyxy_to_cxcywh(truth / _factor(truth, meta)).to(boxes.dtype)
        images.append(
            (
                _scatter(labels, query, num_queries, fill=num_classes),
                truth.new_ones(num_queries),
                _scatter(goal, query, num_queries, fill=0),
                _scatter(torch.ones_like(goal), query, num_queries, fill=0),
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
    _check_no_ignored(gt_bboxes_ignore)
    weights = replace(weights or LossWeights.mmdet2(), box_scale=_side(img_metas))
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


def _build_cost(cost: Mapping[str, Any] | Cost) -> Cost:
    if not isinstance(cost, Mapping):
        return cost
    options = dict(cost)
    kind = options.pop("type", None)
    if kind not in _COSTS:
        raise ValueError(f"the type of a cost must be one of {', '.join(_COSTS)}, got {kind!r}")
    return _COSTS[kind](**options)


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
        cost = ops.match_cost(logits, boxes, targets, weights=replace(weights, box_scale=_side(img_metas)))
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


def _scatter(values: Tensor, query: Tensor, num_queries: int, *, fill: int) -> Tensor:
    """Scatter the values of targets [T,...] to the queries [T] they are matched to; the other queries get ``fill``."""
    # Unmatched targets are written to an additional row, which is then dropped.
    scattered = values.new_full((num_queries + 1, *values.shape[1:]), fill)
    scattered[query.where(query >= 0, num_queries)] = values
    return scattered[:-1]


def _pack(gt_bboxes: Sequence[Tensor], gt_labels: Sequence[Tensor], img_metas: Sequence[ImageMeta]) -> Targets:
    return Targets.from_list(
        [
            {"labels": labels, "boxes": _xyxy_to_cxcywh(boxes / _factor(boxes, meta))}
            for boxes, labels, meta in zip(gt_bboxes, gt_labels, img_metas, strict=True)
        ]
    )


def _factor(boxes: Tensor, img_meta: ImageMeta) -> Tensor:
    """Return width, height, width and height of the image, [4]."""
    height, width = img_meta["img_shape"][:2]
    return boxes.new_tensor([width, height, width, height])


def _side(img_metas: Sequence[ImageMeta]) -> float:
    """Return the side in pixels of a square with the mean area of the images, the scale of normalized boxes."""
    areas = [math.prod(meta["img_shape"][:2]) for meta in img_metas]
    return math.sqrt(sum(areas) / len(areas))


def _xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    return torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), -1)


def _check_no_ignored(boxes: object) -> None:
    if boxes is not None:
        raise ValueError("boxes to ignore are not supported, as in MMDetection's DETR; leave them out of the targets")
