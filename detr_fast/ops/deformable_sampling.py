"""What the deformable attention ops share: spatial shapes, checks, and sampling in plain PyTorch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from detr_fast.ops.tracing import is_tracing


@dataclass(frozen=True)
class SpatialShapes:
    """The height and width of each level, on the host as ``sizes`` or on a device as ``tensor``, which is not read.

    Args:
        sizes: height and width of the levels in turn, 2L numbers; empty where there is a tensor.
        tensor: int64 [L,2], or None.
    """

    sizes: list[int]
    tensor: Tensor | None

    @staticmethod
    def of(spatial_shapes: Sequence[Sequence[int]] | Tensor) -> SpatialShapes:
        """Take what callers pass: a sequence of (height, width), or a tensor [L,2].

        The values of a tensor on the CPU are read, unless the call is traced.

        Raises:
            ValueError: it is neither.
        """
        if isinstance(spatial_shapes, Tensor):
            if spatial_shapes.dim() != 2 or spatial_shapes.shape[1] != 2 or spatial_shapes.dtype != torch.int64:
                raise ValueError(
                    f"spatial_shapes must be int64 [L,2], got {spatial_shapes.dtype} {list(spatial_shapes.shape)}"
                )
            if spatial_shapes.device.type != "cpu" or is_tracing(spatial_shapes):
                return SpatialShapes([], spatial_shapes.contiguous())
            spatial_shapes = spatial_shapes.tolist()
        if any(len(shape) != 2 for shape in spatial_shapes):
            raise ValueError(f"spatial_shapes must have a height and a width for each level, got {spatial_shapes}")
        sizes = [size for shape in spatial_shapes for size in shape]
        if any(size < 0 for size in sizes):
            raise ValueError(f"spatial_shapes must not be negative, got {spatial_shapes}")
        return SpatialShapes(sizes, None)

    @property
    def num_levels(self) -> int:
        """L."""
        return len(self.sizes) // 2 if self.tensor is None else self.tensor.shape[0]

    def on_host(self) -> list[int]:
        """Return the sizes as numbers; a tensor is read."""
        return self.sizes if self.tensor is None else self.tensor.flatten().tolist()

    def levels(self) -> Iterator[tuple[Any, Any, Any]]:
        """Yield height, width and the index of the first value of each level, numbers or tensors of one element."""
        start: Any = 0
        numbers: Sequence[Any] = self.sizes if self.tensor is None else self.tensor.flatten().unbind()
        for height, width in zip(numbers[::2], numbers[1::2], strict=True):
            yield height, width, start
            start = start + height * width


def check_value(value: Tensor, shapes: SpatialShapes) -> None:
    """Raise ValueError where the value is not floating point [B,S,H,D], or S is not the number of cells."""
    if value.dim() != 4 or not value.is_floating_point():
        raise ValueError(f"value must be floating point [B,S,H,D], got {value.dtype} {list(value.shape)}")
    if shapes.num_levels == 0:
        raise ValueError("spatial_shapes must have at least one level")
    if shapes.tensor is not None:
        return
    num_cells = sum(height * width for height, width, _ in shapes.levels())
    if num_cells != value.shape[1]:
        raise ValueError(
            f"value has {value.shape[1]} rows, but the levels of spatial_shapes {shapes.sizes} have {num_cells}"
        )


def flatten_points(
    name: str, points: Tensor, value: Tensor, shapes: SpatialShapes, points_per_level: Sequence[int] | None
) -> tuple[Tensor, list[int]]:
    """Flatten the points of all levels into one axis.

    Args:
        name: name of the argument, for messages.
        points: x and y of each point, [B,Q,H,L,P,2], or [B,Q,H,N,2] if ``points_per_level`` is given.
        value: [B,S,H,D].
        shapes: of L levels.
        points_per_level: L numbers whose sum is N, or None.

    Returns:
        [B,Q,H,N,2], and the number of points of each level.

    Raises:
        ValueError: something does not fit.
    """
    if points_per_level is None and points.dim() == 6:
        points_per_level = [points.shape[4]] * points.shape[3]
        points = points.flatten(3, 4)
    if points_per_level is None or points.dim() != 5 or points.shape[-1] != 2 or not points.is_floating_point():
        raise ValueError(
            f"{name} must be floating point [B,Q,H,L,P,2], or [B,Q,H,N,2] with points_per_level; "
            f"got {points.dtype} {list(points.shape)}"
        )
    counts = list(points_per_level)
    if len(counts) != shapes.num_levels or sum(counts) != points.shape[3] or min(counts, default=0) < 0:
        raise ValueError(
            f"{name} {list(points.shape)} and points_per_level {counts} do not fit {shapes.num_levels} spatial shapes"
        )
    if (points.shape[0], points.shape[2]) != (value.shape[0], value.shape[2]):
        raise ValueError(
            f"{name} {list(points.shape)} and value {list(value.shape)} must have the same B and the same H"
        )
    if points.device != value.device:
        raise ValueError(f"{name} and value must be on one device, got {points.device} and {value.device}")
    return points, counts


def flatten_weights(name: str, weights: Tensor, points: Tensor) -> Tensor:
    """Flatten [B,Q,H,L,P] to [B,Q,H,N], where it is not.

    Args:
        name: name of the argument, for messages.
        weights: a number for each point.
        points: [B,Q,H,N,2].

    Raises:
        ValueError: it does not have one number for each point.
    """
    flat = weights.flatten(3) if weights.dim() == 5 else weights
    if flat.shape != points.shape[:-1] or not flat.is_floating_point() or flat.device != points.device:
        raise ValueError(
            f"{name} must be floating point, with one number for each of {list(points.shape[:-1])} points, on "
            f"{points.device}; got {weights.dtype} {list(weights.shape)} on {weights.device}"
        )
    return flat


def check_method(method: str) -> None:
    """Raise ValueError where there is no such method."""
    if method not in ("default", "discrete"):
        raise ValueError(f"method must be 'default' or 'discrete', got {method!r}")


def is_deterministic(deterministic: bool | None) -> bool:
    """Resolve the argument ``deterministic``: None follows ``torch.use_deterministic_algorithms``."""
    return torch.are_deterministic_algorithms_enabled() if deterministic is None else deterministic


def widest_dtype(*tensors: Tensor) -> torch.dtype:
    """Return the dtype to compute in: the widest of the tensors' dtypes, at least float32."""
    return torch.float64 if any(t.dtype == torch.float64 for t in tensors) else torch.float32


def sample(
    value: Tensor,  # [B,S,H,D]
    locations: Tensor,  # [B,Q,H,N,2]
    weights: Tensor,  # [B,Q,H,N]
    shapes: SpatialShapes,
    points_per_level: list[int],
    method: str,
) -> Tensor:  # [B,Q,H*D]
    """Sum the values sampled at the locations, times the weights; all tensors have the same dtype."""
    batch, num_rows, num_heads, width_of_head = value.shape
    value = torch.cat((value, value.new_zeros(batch, 1, num_heads, width_of_head)), 1)  # what lies outside is zero
    image = torch.arange(batch, device=value.device)[:, None, None, None]
    head = torch.arange(num_heads, device=value.device)[:, None]
    find_cells = _nearest_cell if method == "discrete" else _surrounding_cells
    output = value.new_zeros(batch, locations.shape[1], num_heads, width_of_head)
    levels = zip(shapes.levels(), locations.split(points_per_level, 3), weights.split(points_per_level, 3), strict=True)
    for (height, width, start), level_locations, level_weights in levels:
        x, y = level_locations.unbind(-1)  # [B,Q,H,P]
        for column, row, coefficient in find_cells(x, y, height, width):
            index = start + row * width + column
            inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
            inside = inside & (index >= 0) & (index < num_rows)  # shapes on a device were not checked
            sampled = value[image, index.where(inside, num_rows), head]  # [B,Q,H,P,D]
            output = output + (sampled * (level_weights * coefficient).where(inside, 0)[..., None]).sum(3)
    return output.flatten(2)


def _surrounding_cells(x: Tensor, y: Tensor, height: Any, width: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield column, row and bilinear coefficient of the four cells around each location."""
    x, y = x * width - 0.5, y * height - 0.5
    near = (x >= -1) & (x < width) & (y >= -1) & (y < height)  # not for NaN
    x, y = x.where(near, -2), y.where(near, -2)
    left, top = x.floor(), y.floor()
    for column, along_x in ((left, 1 - (x - left)), (left + 1, x - left)):
        for row, along_y in ((top, 1 - (y - top)), (top + 1, y - top)):
            yield column.long(), row.long(), along_x * along_y


def _nearest_cell(x: Tensor, y: Tensor, height: Any, width: Any) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield column, row and coefficient of the one cell that discrete sampling takes for each location."""
    valid = ~(x.isnan() | y.isnan())
    column = (x * width + 0.5).floor().clamp(min=0).clamp(max=width - 1).where(valid, -1)
    row = (y * height + 0.5).floor().clamp(min=0).clamp(max=height - 1).where(valid, -1)
    never = torch.zeros_like(valid)
    yield column.long(), row.long(), 1 + (x + y).where(never, 0)  # locations have a gradient, which is zero
