"""Matches in the form that DETR's matcher returns: tuples of index tensors, image by image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from detr_fast.ops.batch_linear_sum_assignment import as_sizes
from detr_fast.ops.targets import Targets


def matched_pairs(index: Tensor, targets_or_sizes: Targets | Sequence[int]) -> list[list[tuple[Tensor, Tensor]]]:
    """Convert matches to the form that DETR's matcher returns.

    Args:
        index: int64 [L,T] or [L,G,T], as :func:`batch_linear_sum_assignment` returns it, on the CPU.
        targets_or_sizes: the targets, or the number of targets of each image.

    Returns:
        For each layer and image the matched queries, ascending, and the target of each, counted within the
        image; with groups, those of all groups.
    """
    sizes = np.array(as_sizes(targets_or_sizes), dtype=np.int64)
    query = index.numpy()
    layers, num_images, num_targets = len(query), len(sizes), query.shape[-1]
    image = np.arange(num_images).repeat(sizes)  # [T]
    target = np.arange(num_targets) - (sizes.cumsum() - sizes)[image]
    problem = image + num_images * np.arange(layers).reshape(-1, *[1] * (query.ndim - 1))  # [L,(1,)T]
    problem, target = (np.broadcast_to(x, query.shape).ravel() for x in (problem, target))
    query = query.ravel()
    order = (problem * (query.max(initial=0) + 1) + query).argsort()
    order = order[query[order] >= 0]
    counts = np.bincount(problem[order], minlength=layers * num_images).tolist()
    pairs = list(zip(*(torch.from_numpy(x[order]).split(counts) for x in (query, target)), strict=True))
    return [pairs[layer * num_images : (layer + 1) * num_images] for layer in range(layers)]
