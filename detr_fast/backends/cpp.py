"""The C++ extension, for tensors on the CPU as NumPy arrays; the solver takes tensors on any device."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.batch_linear_sum_assignment import HostAnswer, describe_failure, solve_on_host
from detr_fast.ops.boxes import compute_dtype
from detr_fast.ops.linear_sum_assignment import as_float_matrix
from detr_fast.ops.targets import Targets
from detr_fast.ops.weights import LossWeights, MatchWeights

_not_built: str | None = None
if TYPE_CHECKING:
    import detr_fast._C as _C
else:  # without an import statement, which import-linter takes for one of the package
    try:
        _C = import_module("detr_fast._C")
    except ImportError as error:
        _not_built = (
            f"the extension is not built ({error}); install the package with pip (in a source tree: pip install -e .)"
        )

_FROM_ANY_DEVICE = ("linear_sum_assignment", "batch_linear_sum_assignment")  # these copy their arguments to the host


def has(op: str) -> bool:
    """Whether this module has a function of the op's name."""
    return hasattr(sys.modules[__name__], op)


def unavailable(op: str, device: torch.device) -> str | None:
    """Return why the extension cannot run on ``device``, None where it can."""
    if device.type != "cpu" and op not in _FROM_ANY_DEVICE:
        return "it runs on the CPU only"
    return _not_built


def automatic(device: torch.device) -> bool:
    """Always."""
    return True


def load(op: str) -> ModuleType:
    """Return this module."""
    return sys.modules[__name__]


def linear_sum_assignment(cost_matrix: Any, maximize: bool) -> tuple[np.ndarray, np.ndarray]:
    """Solve one matrix [N,M]."""
    answer = None if maximize else _C.solve(cost_matrix)  # which takes arrays of floats only
    if answer is None:
        array = as_float_matrix(cost_matrix)
        answer = _C.solve(-array if maximize else array)
        assert answer is not None  # it takes every matrix of floats
    return answer


@solve_on_host
def batch_linear_sum_assignment(
    cost: np.ndarray, sizes: list[int], groups: int, num_threads: int, return_duals: bool
) -> HostAnswer:
    """Solve every problem of [L,T,Q]."""
    if cost.dtype not in (np.float32, np.float64):
        cost = cost.astype(np.float64)
    index, u, v, failures = _C.solve_batch(cost, sizes, groups, num_threads, return_duals)
    return index, u, v, [describe_failure(*failure) for failure in failures]


def match_cost(logits: Tensor, boxes: Tensor, targets: Targets, weights: MatchWeights) -> Tensor:
    """Compute the matching cost [L,T,Q]."""
    options = _C.MatchOptions(
        focal=weights.class_cost == "focal",
        corners=weights.l1_format == "xyxy",
        cost_class=weights.cost_class,
        cost_bbox=weights.cost_bbox,
        cost_giou=weights.cost_giou,
        focal_alpha=weights.focal_alpha,
        focal_gamma=weights.focal_gamma,
        focal_eps=weights.focal_eps,
        giou_eps=weights.giou_eps,
        box_scale=weights.box_scale,
    )
    return torch.from_numpy(_C.match_cost(*_arrays(logits, boxes, targets), options))


def set_loss(
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Tensor | float,
    class_normalizer: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Compute the losses of each layer [3,L] and their weighted sum []."""
    dtype = compute_dtype(logits, boxes)
    sums = torch.from_numpy(_C.set_loss(*_loss_arguments(logits, boxes, targets, query_index, weights)))
    losses = sums.to(dtype) / _divisors(weights, num_boxes, class_normalizer, dtype)
    return losses, weights.weighted_sum(losses)


def set_loss_backward(
    grads: Sequence[Tensor | None],  # of the losses [3,L] and of their weighted sum []
    needed: Sequence[bool],
    logits: Tensor,
    boxes: Tensor,
    targets: Targets,
    query_index: Tensor,  # [L,G,T]
    weights: LossWeights,
    num_boxes: Tensor | float,
    class_normalizer: Tensor | float,
) -> tuple[Tensor, Tensor]:
    """Compute the gradients of logits and boxes."""
    grad_losses, grad_total = grads
    upstream = torch.zeros(3, logits.shape[0], dtype=torch.float64) if grad_losses is None else grad_losses.double()
    if grad_total is not None:
        upstream = upstream + torch.tensor(weights.loss_weights, dtype=torch.float64)[:, None] * grad_total
    upstream = upstream / _divisors(weights, num_boxes, class_normalizer, torch.float64)
    arguments = _loss_arguments(logits, boxes, targets, query_index, weights)
    grad_logits, grad_boxes = _C.set_loss_backward(*arguments, upstream.contiguous().numpy())
    return torch.from_numpy(grad_logits).to(logits.dtype), torch.from_numpy(grad_boxes).to(boxes.dtype)


def _loss_arguments(
    logits: Tensor, boxes: Tensor, targets: Targets, query_index: Tensor, weights: LossWeights
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray, _C.LossOptions]:
    options = _C.LossOptions(
        class_loss=getattr(_C.ClassLoss, weights.class_loss),
        no_object=weights.no_object,
        focal_alpha=weights.focal_alpha,
        focal_gamma=weights.focal_gamma,
        giou_eps=weights.giou_eps,
        box_scale=weights.box_scale,
    )
    return *_arrays(logits, boxes, targets), query_index.contiguous().numpy(), options


def _arrays(
    logits: Tensor, boxes: Tensor, targets: Targets
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return logits, boxes, labels, target boxes and offsets for the extension."""
    dtype = compute_dtype(logits, boxes)
    labels, target_boxes = targets.labels.contiguous().numpy(), targets.boxes.contiguous().numpy()
    return _rows(logits, dtype), _rows(boxes, dtype), labels, target_boxes, targets.offsets.numpy()


def _rows(predictions: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Return predictions [L,B,Q,C] with a contiguous last axis; the other strides are arbitrary."""
    predictions = predictions.detach().to(dtype)
    return (predictions if predictions.stride(-1) == 1 else predictions.contiguous()).numpy()


def _divisors(
    weights: LossWeights, num_boxes: Tensor | float, class_normalizer: Tensor | float, dtype: torch.dtype
) -> Tensor:
    """Return what each of the three losses is divided by, [3,1]."""
    classes = class_normalizer if weights.class_loss == "softmax" else num_boxes
    return torch.tensor([[float(classes)], [float(num_boxes)], [float(num_boxes)]], dtype=dtype)
