"""Class losses of sigmoid scores, and the focal matching cost, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, logsigmoid

from detr_fast.ops.weights import LossWeights, MatchWeights


def focal_loss(logits: Tensor, positive: Tensor, weights: LossWeights) -> Tensor:
    """Compute the sigmoid focal loss (https://arxiv.org/abs/1708.02002) of each logit; ``positive`` is its target."""
    p = logits.sigmoid()
    ce = binary_cross_entropy_with_logits(logits, positive, reduction="none")
    p_of_target = p * positive + (1 - p) * (1 - positive)
    alpha = weights.focal_alpha * positive + (1 - weights.focal_alpha) * (1 - positive)
    return alpha * (1 - p_of_target) ** weights.focal_gamma * ce


def varifocal_loss(logits: Tensor, positive: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    """Compute the varifocal loss (https://arxiv.org/abs/2008.13367, equation 2); a positive's target is its IoU."""
    p = logits.sigmoid().detach()
    quality = positive * iou
    weight = quality + weights.focal_alpha * p**weights.focal_gamma * (1 - positive)
    return weight * binary_cross_entropy_with_logits(logits, quality, reduction="none")


def ia_bce_loss(logits: Tensor, positive: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    """Compute the IoU-aware cross-entropy (https://arxiv.org/abs/2304.07527).

    The target of a positive is a geometric mean of its score and its box's IoU.
    """
    p = logits.sigmoid()
    alpha = weights.focal_alpha
    quality = (p**alpha * iou ** (1 - alpha)).clamp(min=0.01).detach()
    ce_of_positive = binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return torch.where(positive > 0, ce_of_positive, p**weights.focal_gamma * -logsigmoid(-logits))


def focal_class_cost(logits: Tensor, weights: MatchWeights) -> Tensor:
    """Compute Deformable DETR's class cost (https://arxiv.org/abs/1708.02002): [...] to [...].

    It is the focal loss of each entry as a positive, less that as a negative.
    """
    p = logits.sigmoid()
    alpha, gamma, eps = weights.focal_alpha, weights.focal_gamma, weights.focal_eps
    if eps > 0:
        positive, negative = -(p + eps).log(), -(1 - p + eps).log()
    else:
        positive, negative = -logsigmoid(logits), -logsigmoid(-logits)  # softplus is linear beyond 20
    return alpha * (1 - p) ** gamma * positive - (1 - alpha) * p**gamma * negative
