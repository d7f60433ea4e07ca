"""Metrics that are logged beside the losses; none has a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.targets import Targets


@torch.no_grad()
def cardinality_error(logits: Tensor, targets: Targets, *, softmax: bool) -> Tensor:
    """Compute the mean absolute difference between the predicted and the true number of objects.

    An object is predicted where no-object, the last class, does not score highest; without ``softmax`` where the
    score of a class is above one half.

    Args:
        logits: [L,B,Q,C].
        targets: of the same B images.
        softmax: whether the classes include no-object.

    Returns:
        float32 [L].
    """
    if softmax:
        predicted = logits[..., :-1].amax(-1) >= logits[..., -1]
    else:
        predicted = logits.amax(-1).sigmoid() > 0.5
    return (predicted.sum(-1) - targets.offsets.diff()).abs().float().mean(-1)


@torch.no_grad()
def class_error(logits: Tensor, targets: Targets, query_index: Tensor) -> Tensor:
    """Compute the percentage of matched queries whose highest class is not their target's; 100 if none is matched.

    Args:
        logits: [B,Q,C], of one layer.
        targets: of the same B images.
        query_index: int64 [T] or [G,T].
    """
    query = torch.atleast_2d(query_index)  # [G,T]
    matched = query >= 0
    predicted = logits[targets.image_index(), query.clamp(min=0)].argmax(-1)
    correct = (matched & (predicted == targets.labels)).sum()
    return 100 - 100 * correct / matched.sum().clamp(min=1)
