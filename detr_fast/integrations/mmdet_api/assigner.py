"""The costs and the assigner of MMDetection 2.11."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from detr_fast import ops
from detr_fast.integrations.mmdet_api.boxes import (
    ImageMeta,
    check_no_ignored,
    image_factor,
    scatter_to_queries,
)
from detr_fast.ops.boxes import box_cxcywh_to_xyxy, box_xyxy_to_cxcywh
from detr_fast.ops.weights import MatchWeights

IOU_EPS = 1e-6  # smallest area, in squared pixels, in the overlaps of MMDetection

Cost: TypeAlias = Callable[[Tensor, Tensor], Tensor]
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
            return ops.pairwise_box_l1(bbox_pred, box_xyxy_to_cxcywh(gt_bboxes)) * self.weight
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
        check_no_ignored(gt_bboxes_ignore)
        num_targets, num_queries = len(gt_bboxes), len(bbox_pred)
        if num_targets and num_queries:
            factor = image_factor(gt_bboxes, img_meta)
            cost = (
                self.cls_cost(cls_pred, gt_labels)
                + self.reg_cost(bbox_pred, gt_bboxes / factor)
                + self.iou_cost(box_cxcywh_to_xyxy(bbox_pred) * factor, gt_bboxes)
            )
            query = ops.batch_linear_sum_assignment(cost.T[None], [num_targets])[0]  # [T]
        else:
            query = torch.full((num_targets,), -1, device=bbox_pred.device)
        one_based = torch.arange(1, num_targets + 1, device=query.device)
        gt_inds = scatter_to_queries(one_based, query, num_queries, fill=0)
        return AssignResult(
            num_targets, gt_inds, None, labels=scatter_to_queries(gt_labels, query, num_queries, fill=-1)
        )

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


def _build_cost(cost: Mapping[str, Any] | Cost) -> Cost:
    if not isinstance(cost, Mapping):
        return cost
    options = dict(cost)
    kind = options.pop("type", None)
    if kind not in _COSTS:
        raise ValueError(f"the type of a cost must be one of {', '.join(_COSTS)}, got {kind!r}")
    return _COSTS[kind](**options)
