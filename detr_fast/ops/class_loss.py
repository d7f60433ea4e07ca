"""Class losses of sigmoid scores, and the focal matching cost, in plain PyTorch.

With p the sigmoid of a logit z, 1 - p is computed as sigmoid(-z), and -log(p) as -logsigmoid(z): a difference would
cancel, and logits of -inf, which mask a class, would give NaN.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from detr_fast.ops.weights import LossWeights, MatchWeights


def focal_loss(logits: Tensor, positive: Tensor, weights: LossWeights) -> Tensor:
    """Compute the sigmoid focal loss (https://arxiv.org/abs/1708.02002) of each logit.

    ``positive`` says which logits have the target 1.
    """
    signed = torch.where(positive, logits, -logits)
    loss = (-signed).sigmoid() ** weights.focal_gamma * -logsigmoid(signed)
    return torch.where(positive, weights.focal_alpha * loss, (1 - weights.focal_alpha) * loss)


def varifocal_loss(logits: Tensor, positive: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    """Compute the varifocal loss (https://arxiv.org/abs/2008.13367, equation 2); a positive's target is its IoU."""
    p = logits.sigmoid().detach()
    of_negative = weights.focal_alpha * p**weights.focal_gamma * -logsigmoid(-logits)
    return torch.where(positive, iou * _cross_entropy(logits, iou), of_negative)


def ia_bce_loss(logits: Tensor, positive: Tensor, iou: Tensor, weights: LossWeights) -> Tensor:
    """Compute the IoU-aware cross-entropy (https://arxiv.org/abs/2304.07527).

    The target of a positive is a geometric mean of its score and its box's IoU.
    """
    alpha = weights.focal_alpha
    quality = (logits.sigmoid() ** alpha * iou ** (1 - alpha)).clamp(min=0.01).detach()
    negative = torch.where(positive, 0.0, logits)  # 0 where it is not used, whose gradient is finite
    of_negative = negative.sigmoid() ** weights.focal_gamma * -logsigmoid(-negative)
    return torch.where(positive, _cross_entropy(logits, quality), of_negative)


def focal_class_cost(logits: Tensor, weights: MatchWeights) -> Tensor:
    """Compute Deformable DETR's class cost (https://arxiv.org/abs/1708.02002): [...] to [...].

    It is the focal loss of each entry as a positive, less that as a negative.
    """
    p, complement = logits.sigmoid(), (-logits).sigmoid()
    alpha, gamma, eps = weights.focal_alpha, weights.focal_gamma, weights.focal_eps
    if eps > 0:
        positive, negative = -(p + eps).log(), -(complement + eps).log()
    else:
        positive, negative = -logsigmoid(logits), -logsigmoid(-logits)
    return alpha * complement**gamma * positive - (1 - alpha) * p**gamma * negative


def _cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Compute the binary cross-entropy of a target in [0,1]."""
    return -(target * logsigmoid(logits) + (1 - target) * logsigmoid(-logits))
