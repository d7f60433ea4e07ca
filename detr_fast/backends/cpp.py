"""The C++ extension, for tensors on the CPU as NumPy arrays; the solver takes tensors on any device."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.batch_linear_sum_assignment import HostAnswer, describe_failure, solve_on_host
from detr_fast.ops.boxes import compute_dtype
from detr_fast.ops.deformable_sampling import SpatialShapes, widest_dtype
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
        _state = "is not built" if isinstance(error, ModuleNotFoundError) else "cannot be loaded"
        _not_built = (
            f"the extension {_state} ({error}); install a C++17 compiler such as g++, and then the package again from "
            "its sources: pip install --force-reinstall --no-deps --no-cache-dir . (where it is editable: -e .)"
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
    """Always; warns where it would be taken and is not built."""
    if _not_built is not None:
        warnings.warn(f"detr_fast runs on slower backends: {_not_built}", RuntimeWarning, stacklevel=2)
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
        iou_kind=getattr(_C.IouKind, weights.iou_kind),
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
    losses = sums / _divisors(weights, num_boxes, class_normalizer)
    return losses.to(dtype), weights.weighted_sum(losses).to(dtype)


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
    upstream = upstream / _divisors(weights, num_boxes, class_normalizer)
    arguments = _loss_arguments(logits, boxes, targets, query_index, weights)
    grad_logits, grad_boxes = _C.set_loss_backward(*arguments, upstream.contiguous().numpy())
    return torch.from_numpy(grad_logits).to(logits.dtype), torch.from_numpy(grad_boxes).to(boxes.dtype)


def multi_scale_deformable_attention(
    value: Tensor,  # [B,S,H,D]
    sampling_locations: Tensor,  # [B,Q,H,N,2]
    attention_weights: Tensor,  # [B,Q,H,N]
    shapes: SpatialShapes,
    points_per_level: list[int],
    method: str,
    deterministic: bool,  # it always is
) -> Tensor:
    """Compute the attention's output [B,Q,H*D], with as many threads as PyTorch may use."""
    values, locations, weights = _contiguous(value, sampling_locations, attention_weights)
    output = _empty_output(values, locations)
    _C.multi_scale_deformable_attention(
        values.numpy(),
        locations.numpy(),
        weights.numpy(),
        shapes.on_host(),
        list(points_per_level),
        method == "discrete",
        torch.get_num_threads(),
        output.numpy(),
    )
    return output.to(value.dtype)


def multi_scale_deformable_attention_backward(
    grads: Sequence[Tensor],  # [B,Q,H*D]
    needed: Sequence[bool],
    value: Tensor,
    sampling_locations: Tensor,
    attention_weights: Tensor,
    shapes: SpatialShapes,
    points_per_level: list[int],
    method: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the gradients of value, locations and weights."""
    values, locations, weights = _contiguous(value, sampling_locations, attention_weights)
    grad_value = _empty_in_large_pages(values)
    grad_locations, grad_weights = torch.empty_like(locations), torch.empty_like(weights)
    _C.multi_scale_deformable_attention_backward(
        values.numpy(),
        locations.numpy(),
        weights.numpy(),
        shapes.on_host(),
        list(points_per_level),
        method == "discrete",
        torch.get_num_threads(),
        grads[0].to(values.dtype).contiguous().numpy(),
        grad_value.numpy(),
        grad_locations.numpy(),
        grad_weights.numpy(),
    )
    return (
        grad_value.to(value.dtype),
        grad_locations.to(sampling_locations.dtype),
        grad_weights.to(attention_weights.dtype),
    )


def fused_deformable_attention(
    value: Tensor,  # [B,S,H,D]
    reference_points: Tensor,  # [B,Q,L|1,2|4]
    sampling_offsets: Tensor,  # [B,Q,H,N,2]
    attention_logits: Tensor,  # [B,Q,H,N]
    shapes: SpatialShapes,
    points_per_level: list[int],
    offset_scale: float,
    method: str,
    deterministic: bool,  # it always is
) -> Tensor:
    """Compute the attention's output [B,Q,H*D], with as many threads as PyTorch may use."""
    values, points, offsets, logits = _contiguous(value, reference_points, sampling_offsets, attention_logits)
    output = _empty_output(values, points)
    _C.fused_deformable_attention(
        values.numpy(),
        points.numpy(),
        offsets.numpy(),
        logits.numpy(),
        shapes.on_host(),
        list(points_per_level),
        offset_scale,
        method == "discrete",
        torch.get_num_threads(),
        output.numpy(),
    )
    return output.to(value.dtype)


def fused_deformable_attention_backward(
    grads: Sequence[Tensor],  # [B,Q,H*D]
    needed: Sequence[bool],
    value: Tensor,
    reference_points: Tensor,
    sampling_offsets: Tensor,
    attention_logits: Tensor,
    shapes: SpatialShapes,
    points_per_level: list[int],
    offset_scale: float,
    method: str,
    deterministic: bool,
) -> tuple[Tensor, Tensor | None, Tensor, Tensor]:
    """Compute the gradients of value, points, offsets and logits."""
    values, points, offsets, logits = _contiguous(value, reference_points, sampling_offsets, attention_logits)
    grad_value = _empty_in_large_pages(values)
    grad_points, grad_offsets, grad_logits = (torch.empty_like(tensor) for tensor in (points, offsets, logits))
    _C.fused_deformable_attention_backward(
        values.numpy(),
        points.numpy(),
        offsets.numpy(),
        logits.numpy(),
        shapes.on_host(),
        list(points_per_level),
        offset_scale,
        method == "discrete",
        torch.get_num_threads(),
        grads[0].to(values.dtype).contiguous().numpy(),
        grad_value.numpy(),
        grad_points.numpy() if needed[1] else None,
        grad_offsets.numpy(),
        grad_logits.numpy(),
    )
    return (
        grad_value.to(value.dtype),
        grad_points.to(reference_points.dtype) if needed[1] else None,
        grad_offsets.to(sampling_offsets.dtype),
        grad_logits.to(attention_logits.dtype),
    )


def normalize_and_pad(
    pixels: Tensor,  # uint8 [N]
    layout: Tensor,  # [B,4]
    height: int,
    width: int,
    mean: list[float],
    std: list[float],
    dtype: torch.dtype,
    channels_last: bool,
) -> tuple[Tensor, Tensor]:
    """Look the values of the 256 levels of each channel up in a table, with as many threads as PyTorch may use."""
    count, compute = layout.shape[0], torch.float64 if dtype == torch.float64 else torch.float32
    levels = torch.arange(256, dtype=compute) / 255
    means, stds = (torch.tensor(numbers, dtype=compute)[:, None] for numbers in (mean, std))
    table = ((levels - means) / stds).to(dtype)  # [3,256]
    shape = (count, height, width, 3) if channels_last else (count, 3, height, width)
    batch = _empty_in_large_pages(torch.empty(shape, dtype=dtype, device="meta"))
    mask = torch.empty(count, height, width, dtype=torch.bool)
    word = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    _C.normalize_and_pad(
        pixels.contiguous().numpy(),
        layout.contiguous().numpy(),
        table.view(word).numpy(),
        channels_last,
        torch.get_num_threads(),
        batch.view(word).numpy(),
        mask.numpy(),
    )
    return batch, mask


def _contiguous(*tensors: Tensor) -> list[Tensor]:
    """Convert tensors to the widest dtype among them, at least float32, and to contiguous memory."""
    dtype = widest_dtype(*tensors)
    return [tensor.detach().to(dtype).contiguous() for tensor in tensors]


def _empty_output(value: Tensor, points: Tensor) -> Tensor:
    """Allocate the output [B,Q,H*D] of attention to value [B,S,H,D] at points [B,Q,...]."""
    return torch.empty(*points.shape[:2], value.shape[2] * value.shape[3], dtype=value.dtype)


def _empty_in_large_pages(like: Tensor) -> Tensor:
    """Allocate a contiguous tensor through NumPy, which asks Linux for large pages where an array is large.

    PyTorch does not, and most of the time would be spent on page faults. The tensor begins at a cache line, as
    PyTorch's do.
    """
    line, size = 64, like.numel() * like.element_size()
    memory = np.empty(size + line, np.uint8)
    begin = -memory.ctypes.data % line
    return torch.from_numpy(memory[begin : begin + size]).view(like.dtype).view(like.shape)


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


def _divisors(weights: LossWeights, num_boxes: Tensor | float, class_normalizer: Tensor | float) -> Tensor:
    """Return what each of the three losses is divided by, float64 [3,1]."""
    classes = class_normalizer if weights.class_loss == "softmax" else num_boxes
    return torch.tensor([[float(classes)], [float(num_boxes)], [float(num_boxes)]], dtype=torch.float64)
