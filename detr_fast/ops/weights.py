"""Every number in which the DETR families' matching and losses differ."""

from __future__ import annotations

import sys
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = ("loss_ce", "loss_bbox", "loss_giou")


@dataclass(frozen=True)
class MatchWeights:
    """The costs that decide which query is matched to which target.

    The presets :meth:`detr`, :meth:`mmdet2`, :meth:`mmdet3`, :meth:`deformable`, :meth:`rt_detr` and :meth:`lw_detr`
    are the costs of the implementations that they name.

    Args:
        cost_class: weight of the class cost.
        cost_bbox: weight of the L1 distance of the boxes.
        cost_giou: weight of what iou_kind names.
        class_cost: softmax for the negative probability of the target's class, with no-object as the last logit;
            focal for the focal cost of sigmoids, without such a logit.
        focal_alpha: alpha of the focal cost, the weight of positives.
        focal_gamma: exponent of the focal cost.
        focal_eps: added to a probability before its logarithm; with 0 the logarithm is taken of the logit.
        l1_format: format of the boxes of the L1 distance.
        giou_eps: smallest area to divide by, in squared units of box_scale.
        box_scale: factor of the boxes before the GIoU, such as the pixels of an image; with a giou_eps of 0 it
            changes nothing.
        iou_kind: giou, iou, or iof, the intersection divided by the area of the predicted box.

    Raises:
        ValueError: a number is not finite or out of range, or a name is unknown.
    """

    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    class_cost: Literal["softmax", "focal"] = "softmax"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    focal_eps: float = 1e-8
    l1_format: Literal["cxcywh", "xyxy"] = "cxcywh"
    giou_eps: float = 0.0
    box_scale: float = 1.0
    iou_kind: Literal["giou", "iou", "iof"] = "giou"

    def __post_init__(self) -> None:
        _one_of("class_cost", self.class_cost, ("softmax", "focal"))
        _one_of("iou_kind", self.iou_kind, ("giou", "iou", "iof"))
        _one_of("l1_format", self.l1_format, ("cxcywh", "xyxy"))
        _check_numbers(self)

    @classmethod
    def detr(cls) -> MatchWeights:
        """The costs of facebookresearch/detr: weights 1, 5 and 2, the class probability, and L1 distance in cxcywh."""
        return cls()

    @classmethod
    def mmdet2(cls) -> MatchWeights:
        """The costs of the DETR head of MMDetection 2.11.

        They are those of :meth:`detr`, except that the L1 distance is computed in xyxy, and the GIoU in pixels with a
        smallest area of 1e-6. A box coordinate of 1 is taken as 1333 pixels, the longest side of an image in its test
        pipeline. The GIoU does not depend on this scale, except through the smallest area.
        """
        return cls(l1_format="xyxy", giou_eps=1e-6, box_scale=1333.0)

    @classmethod
    def mmdet3(cls) -> MatchWeights:
        """The costs of MMDetection 3.3's DETR: those of :meth:`mmdet2`, but with the L1 distance in cxcywh."""
        return cls(giou_eps=1e-6, box_scale=1333.0)

    @classmethod
    def deformable(cls) -> MatchWeights:
        """Weights 2, 5 and 2 with the focal class cost (https://arxiv.org/abs/2010.04159, appendix A.4)."""
        return cls(cost_class=2.0, class_cost="focal")

    @classmethod
    def rt_detr(cls) -> MatchWeights:
        """The costs of RT-DETR (https://arxiv.org/abs/2304.08069), equal to :meth:`deformable`."""
        return cls.deformable()

    @classmethod
    def lw_detr(cls) -> MatchWeights:
        """The costs of LW-DETR (https://arxiv.org/abs/2406.03459), equal to :meth:`deformable`."""
        return cls.deformable()


@dataclass(frozen=True)
class LossWeights:
    """The losses of matched and unmatched queries, and what they are divided by.

    The presets have the names of those of :class:`MatchWeights`. The class losses of RT-DETR and LW-DETR train a class
    score towards the box's IoU, or towards a combination of the score and the IoU.

    Args:
        loss_ce: weight of the class loss.
        loss_bbox: weight of the L1 loss of the boxes.
        loss_giou: weight of the GIoU loss.
        class_loss: softmax for the cross-entropy with no-object as the last logit, or focal,
            varifocal or ia_bce of sigmoids, without such a logit.
        no_object: weight of unmatched queries in the cross-entropy, eos_coef of facebookresearch/detr.
        focal_alpha: weight of positives in the focal loss, of negatives in the varifocal loss, and in the IoU-aware
            cross-entropy the exponent of the score in the quality that positives are trained towards.
        focal_gamma: exponent of the class losses of sigmoids.
        normalizer: what the divisor of the box losses and of the class losses of sigmoids counts, the targets or the
            matched pairs, which differ where an image has more targets than queries.
        min_class_normalizer: minimum of the divisor of the cross-entropy, which is the sum of the weights of its
            queries.
        sync_class_normalizer: whether SetCriterion averages that divisor over the ranks of a distributed run,
            as it does for the box losses.
        giou_eps: smallest area to divide by, in squared units of box_scale.
        box_scale: factor of the boxes before the GIoU; with a giou_eps of 0 it changes nothing.

    Raises:
        ValueError: a number is not finite or out of range, or a name is unknown.
    """

    loss_ce: float = 1.0
    loss_bbox: float = 5.0
    loss_giou: float = 2.0
    class_loss: Literal["softmax", "focal", "varifocal", "ia_bce"] = "softmax"
    no_object: float = 0.1
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    normalizer: Literal["targets", "matched"] = "targets"
    min_class_normalizer: float = 0.0
    sync_class_normalizer: bool = True
    giou_eps: float = 0.0
    box_scale: float = 1.0

    def __post_init__(self) -> None:
        _one_of("class_loss", self.class_loss, ("softmax", "focal", "varifocal", "ia_bce"))
        _one_of("normalizer", self.normalizer, ("targets", "matched"))
        _check_numbers(self)

    @classmethod
    def detr(cls) -> LossWeights:
        """The losses of facebookresearch/detr: weights 1, 5 and 2, and 0.1 for no-object."""
        return cls()

    @classmethod
    def mmdet2(cls) -> LossWeights:
        """The losses of the DETR head of MMDetection 2.11.

        They are those of :meth:`detr`, except that box losses are divided by the number of matched pairs, each rank
        divides the class loss by the weights of its own queries, and the GIoU is computed in pixels; see
        :meth:`MatchWeights.mmdet2`.
        """
        return cls(normalizer="matched", sync_class_normalizer=False, giou_eps=1e-6, box_scale=1333.0)

    @classmethod
    def mmdet3(cls) -> LossWeights:
        """The losses of MMDetection 3.3's DETR: those of :meth:`mmdet2`, but the class loss is divided by at least 1.

        MMDetection's ``sync_cls_avg_factor=True`` is ``sync_class_normalizer=True``.
        """
        return replace(cls.mmdet2(), min_class_normalizer=1.0)

    @classmethod
    def deformable(cls) -> LossWeights:
        """Weights 2, 5 and 2, the sigmoid focal loss divided by the number of targets."""
        return cls(loss_ce=2.0, class_loss="focal")

    @classmethod
    def rt_detr(cls) -> LossWeights:
        """Weights 1, 5 and 2, the varifocal loss (https://arxiv.org/abs/2008.13367, equation 2) with alpha 0.75."""
        return cls(class_loss="varifocal", focal_alpha=0.75)

    @classmethod
    def lw_detr(cls) -> LossWeights:
        """Weights 1, 5 and 2, the IoU-aware cross-entropy (https://arxiv.org/abs/2304.07527)."""
        return cls(class_loss="ia_bce")

    @property
    def loss_weights(self) -> tuple[float, float, float]:
        """The weights of the class, L1 and GIoU loss, in the order of :data:`LOSSES`."""
        return self.loss_ce, self.loss_bbox, self.loss_giou

    def weighted_sum(self, losses: Tensor) -> Tensor:
        """Sum the losses [3,L], weighted, over all layers."""
        weighted = (weight * loss.sum() for weight, loss in zip(self.loss_weights, losses, strict=True))
        return sum(weighted, losses.new_zeros(()))


def check_weights(name: str, weights: Any, kind: type[MatchWeights] | type[LossWeights]) -> None:
    """Raise TypeError where ``weights`` are not of the class ``kind``."""
    if not isinstance(weights, kind):
        raise TypeError(
            f"{name} must be {kind.__name__}, got {type(weights).__name__}; build them with {kind.__name__}(...) or "
            f"one of its presets, such as {kind.__name__}.detr()"
        )


def check_agreement(match: MatchWeights, loss: LossWeights) -> None:
    """Check that the costs and the losses read the logits in the same way.

    Args:
        match: Costs of the matching.
        loss: Weights of the losses.

    Raises:
        ValueError: One takes the softmax of logits whose last one is no-object, the other the sigmoid of each logit.
    """
    if (match.class_cost == "softmax") != (loss.class_loss == "softmax"):
        raise ValueError(
            f"class_cost={match.class_cost!r} and class_loss={loss.class_loss!r} do not go together: softmax takes "
            "the last logit as no-object, the others take each logit as a class; use the MatchWeights and LossWeights "
            "of one preset"
        )


_SMALLEST_EPS = 1e-30  # far enough from the smallest normal float32 that no backend rounds with it differently


def _check_numbers(weights: MatchWeights | LossWeights) -> None:
    for field in fields(weights):
        value = getattr(weights, field.name)
        if field.type == "bool" and not isinstance(value, bool):
            raise ValueError(f"{field.name} must be True or False, got {value!r}")
        if field.type != "float":
            continue
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= sys.float_info.max:  # NaN fails the comparison
            raise ValueError(f"{field.name} must be a finite number, got {value!r}")
        if value < 0 or (value == 0 and field.name == "box_scale"):
            raise ValueError(
                f"{field.name} must be {'above' if field.name == 'box_scale' else 'at least'} 0, got {value}"
            )
        if field.name.endswith("_eps") and 0 < value < _SMALLEST_EPS:
            raise ValueError(f"{field.name} must be 0 or at least {_SMALLEST_EPS}, got {value}")


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")
