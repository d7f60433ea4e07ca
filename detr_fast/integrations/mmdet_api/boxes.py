"""Boxes and images as MMDetection describes them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor

ImageMeta: TypeAlias = Mapping[str, Any]  # with the img_shape, height and width first


def image_factor(boxes: Tensor, img_meta: ImageMeta) -> Tensor:
    """Return width, height, width and height of the image, [4]."""
    height, width = img_meta["img_shape"][:2]
    return boxes.new_tensor([width, height, width, height])


def xyxy_to_cxcywh(boxes: Tensor) -> Tensor:
    """Convert boxes [T,4]."""
    return torch.cat(((boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]), -1)


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
