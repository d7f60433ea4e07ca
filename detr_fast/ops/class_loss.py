"""Class losses of sigmoid scores, in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from detr_fast.ops.weights import LossWeights


def focal_loss(logits: Tensor, positive: Tensor, weights: LossWeights) -> Tensor:
    """Sigmoid focal loss (https://arxiv.org/abs/1708.02002) of each logit; ``positive`` is its 0/1 target."""
    p = logits.sigmoid()
    ce = binary_cross_entropy_with_logits(logits, positive, reduction="none")
    p_of_truth = p * positive + (1 - p) * (1 - positive)
    alpha = weights.focal_alpha * positive + (1 - weights.focal_alpha) * (1 - positive)
    return alpha * (1 - p_of_truth) ** weights.focal_gamma * ce


def varifocal_loss(logits: Tensor, positive: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    """Varifocal loss (https://arxiv.org/abs/2008.13367, equation 2): a positive is to score its box's IoU."""
    p = logits.sigmoid().detach()
    quality = positive * iou
    weight = quality + weights.focal_alpha * p**weights.focal_gamma * (1 - positive)
    return weight * binary_cross_entropy_with_logits(logits, quality, reduction="none")


def ia_bce_loss(logits: Tensor, positive: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    """IoU-aware cross-entropy (https://arxiv.org/abs/2304.07527): a positive is to score a blend of score and IoU."""
    p = logits.sigmoid()
    alpha = weights.focal_alpha
    quality = (p**alpha * iou ** (1 - alpha)).clamp(min=0.01).detach()
    ce_of_positive = binary_cross_entropy_with_logits(logits, quality, reduction="none")
    return torch.where(positive > 0, ce_of_positive, p**weights.focal_gamma * softplus(logits))
