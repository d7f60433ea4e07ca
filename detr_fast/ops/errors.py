"""Numbers that are logged beside the losses; none has a gradient."""

from __future__ import annotations

import torch
from torch import Tensor

from detr_fast.ops.targets import Targets


@torch.no_grad()
def cardinality_error(logits: Tensor, targets: Targets, *, softmax: bool) -> Tensor:
    """Mean absolute difference between the predicted and the true number of objects: [L,B,Q,C] to [L].

    An object is predicted where no-object, the last class, is not the highest, or without ``softmax`` where a class
    has more than one half.
    """
    if softmax:
        predicted = logits[..., :-1].amax(-1) >= logits[..., -1]
    else:
        predicted = logits.amax(-1).sigmoid() > 0.5
    return (predicted.sum(-1) - targets.offsets.diff()).abs().float().mean(-1)


@torch.no_grad()
def class_error(logits: Tensor, targets: Targets, query_index: Tensor) -> Tensor:
    """Percentage of matched queries [Q,C] whose highest class is not their target's; 100 without any."""
    query = torch.atleast_2d(query_index)  # [G,T]
    matched = query >= 0
    predicted = logits[targets.image_index(), query.clamp(min=0)].argmax(-1)
    correct = (matched & (predicted == targets.labels)).sum()
    return 100 - 100 * correct / matched.sum().clamp(min=1)
