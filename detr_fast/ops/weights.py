"""Every number in which the DETR families' matching and losses differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

LOSSES = ("loss_ce", "loss_bbox", "loss_giou")


@dataclass(frozen=True)
class MatchWeights:
    """The costs that decide which query is matched to which target.

    Presets: :meth:`detr` (the original), :meth:`mmdet` (the DETR head of MMDetection 2.11),
    :meth:`deformable` (focal class cost, as Deformable DETR and most that came after).
    """

    cost_class: float = 1.0
    cost_bbox: float = 5.0
    cost_giou: float = 2.0
    class_cost: Literal["softmax", "focal"] = "softmax"
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    focal_eps: float = 1e-8  # added to a probability before its logarithm; with 0 the logarithm is taken of the logit
    l1_format: Literal["cxcywh", "xyxy"] = "cxcywh"
    giou_eps: float = 0.0  # smallest union and enclosure, in squared units of box_scale
    box_scale: float = 1.0  # boxes are multiplied by it before the GIoU; with giou_eps = 0 it changes nothing

    def __post_init__(self) -> None:
        _one_of("class_cost", self.class_cost, ("softmax", "focal"))
        _one_of("l1_format", self.l1_format, ("cxcywh", "xyxy"))

    @classmethod
    def detr(cls) -> MatchWeights:
        """Costs 1/5/2, probability of the class, L1 on centres and sizes."""
        return cls()

    @classmethod
    def mmdet(cls) -> MatchWeights:
        """As the original's, but L1 on corners, and GIoU in pixels with areas of at least 1e-6.

        Pixels are taken as 1333 to the unit, the longest side of its test pipeline: GIoU does not depend on
        the scale, only the smallest area does.
        """
        return cls(l1_format="xyxy", giou_eps=1e-6, box_scale=1333.0)

    @classmethod
    def deformable(cls) -> MatchWeights:
        """Costs 2/5/2 with the focal class cost (https://arxiv.org/abs/2010.04159, appendix A.4)."""
        return cls(cost_class=2.0, class_cost="focal")


@dataclass(frozen=True)
class LossWeights:
    """The losses of matched and unmatched queries, and what they are divided by.

    Presets as in :class:`MatchWeights`; those of RT-DETR and LW-DETR want a class score to be the box's IoU, or a blend
    of the two, and go with ``MatchWeights.deformable()``.
    """

    loss_ce: float = 1.0
    loss_bbox: float = 5.0
    loss_giou: float = 2.0
    class_loss: Literal["softmax", "focal", "varifocal", "ia_bce"] = "softmax"
    no_object: float = 0.1  # cross-entropy weight of the no-object class (the original's eos_coef)
    focal_alpha: float = 0.25
    focal_gamma: float = 2.0
    normalizer: Literal["targets", "matched"] = "targets"  # what num_boxes counts; they differ where T > Q
    min_class_normalizer: float = 0.0
    giou_eps: float = 0.0
    box_scale: float = 1.0

    def __post_init__(self) -> None:
        _one_of("class_loss", self.class_loss, ("softmax", "focal", "varifocal", "ia_bce"))
        _one_of("normalizer", self.normalizer, ("targets", "matched"))

    @classmethod
    def detr(cls) -> LossWeights:
        """Losses 1/5/2, no-object weight 0.1, boxes divided by the number of targets."""
        return cls()

    @classmethod
    def mmdet(cls) -> LossWeights:
        """Boxes divided by the number of matched pairs, the class divisor at least 1, GIoU in pixels."""
        return cls(normalizer="matched", min_class_normalizer=1.0, giou_eps=1e-6, box_scale=1333.0)

    @classmethod
    def deformable(cls) -> LossWeights:
        """Losses 2/5/2, sigmoid focal loss divided by the number of targets."""
        return cls(loss_ce=2.0, class_loss="focal")

    @classmethod
    def rt_detr(cls) -> LossWeights:
        """Losses 1/5/2, varifocal loss (https://arxiv.org/abs/2008.13367, equation 2) with alpha 0.75."""
        return cls(class_loss="varifocal", focal_alpha=0.75)

    @classmethod
    def lw_detr(cls) -> LossWeights:
        """Losses 1/5/2, IoU-aware cross-entropy (https://arxiv.org/abs/2304.07527)."""
        return cls(class_loss="ia_bce")

    @property
    def loss_weights(self) -> tuple[float, float, float]:
        """The weights of the class, L1 and GIoU loss, in the order of :data:`LOSSES`."""
        return self.loss_ce, self.loss_bbox, self.loss_giou

    def weighted_sum(self, losses: Tensor) -> Tensor:
        """Sum the losses [3,L], weighted, over all layers."""
        weighted = (weight * loss.sum() for weight, loss in zip(self.loss_weights, losses, strict=True))
        return sum(weighted, losses.new_zeros(()))


def _one_of(field: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field} must be one of {', '.join(allowed)}, got {value!r}")
