"""Boxes and images as MMDetection describes them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from torch import Tensor

ImageMeta: TypeAlias = Mapping[str, Any]  # with the img_shape, height and width first


def image_factor(boxes: Tensor, img_meta: ImageMeta) -> Tensor:
    """Return width, height, width and height of the image, [4]."""
    height, width = img_meta["img_shape"][:2]
    return boxes.new_tensor([width, height, width, height])


def mean_side(sizes: Iterable[Sequence[int]]) -> float:
    """Return the side of a square with the mean area of images, the scale of normalized boxes.

    Args:
        sizes: Height and width of each image in pixels; what follows is left out.
    """
    areas = [height * width for height, width, *_ in sizes]
    return math.sqrt(sum(areas) / len(areas))


def check_no_ignored(boxes: object) -> None:
    """Raise ValueError for boxes to ignore."""
    if boxes is not None:
        raise ValueError("boxes to ignore are not supported, as in MMDetection's DETR; leave them out of the targets")


def scatter_to_queries(values: Tensor, query: Tensor, num_queries: int, *, fill: int) -> Tensor:
    """Scatter the values of targets [T,...] to the queries [T] they are matched to; the other queries get ``fill``."""
    # Unmatched targets are written to an additional row, which is then dropped.
    scattered = values.new_full((num_queries + 1, *values.shape[1:]), fill)
    scattered[query.where(query >= 0, num_queries)] = values
    return scattered[:-1]
