"""Batches of images that share a padded size, of which there are a few."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from detr_fast.data.coco import CocoDetection, PaddedIndex

# (height, width) in pixels
_Size = tuple[int, int]


def smallest_holding(size: _Size, padded_sizes: Sequence[_Size]) -> _Size | None:
    """Return the padded size of the smallest area that holds an image; None if there is none.

    Args:
        size: (height, width) of the image.
        padded_sizes: (height, width) of the batches.
    """
    return next((p for p in _ascending(padded_sizes) if size[0] <= p[0] and size[1] <= p[1]), None)


class PaddedBatchSampler(Sampler[list[PaddedIndex]]):
    """Draws the batches of an epoch such that the images of a batch share one of a few padded sizes.

    The batches depend on the seed and the epoch only. A step takes ``batch_size * num_ranks`` images of the same padded
    size, so that the shapes of all ranks are equal, and a rank takes every ``num_ranks``-th of them. Each image is
    drawn once in an epoch; as without padded sizes, those of an incomplete last batch are left out, unless it is the
    only one.

    Nothing is drawn otherwise than without padded sizes: the size of an image after its augmentation is computed
    before it is loaded, and the image goes to the smallest padded size that holds it. The images of an incomplete batch
    move to the next larger size that holds them. An image is scaled down to fit, keeping its aspect ratio, where no
    padded size holds it, or its size is not known in advance (the annotation file states none or a wrong one, or the
    file is reduced while it is decoded), or where it is one of the last images: for each size without a larger one,
    fewer than ``batch_size * num_ranks`` images remain, of which batches are made together.

    Args:
        dataset: The data set. Its transform has a method ``draw_size``, as :class:`Augmentation` has.
        padded_sizes: (height, width) of the batches in pixels.
        batch_size: Images per batch on each rank.
        seed: Seed of the order of the images and the batches.
        rank: The rank.
        num_ranks: Number of ranks.
    """

    def __init__(
        self,
        dataset: CocoDetection,
        padded_sizes: Sequence[_Size],
        batch_size: int,
        *,
        seed: int,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        self._dataset = dataset
        self._padded_sizes = _ascending(padded_sizes)
        self._per_step = batch_size * num_ranks
        self._seed, self._rank, self._num_ranks = seed, rank, num_ranks
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch whose batches are drawn; call also :meth:`CocoDetection.set_epoch`."""
        self._epoch = epoch

    def describe_exceeding(self) -> str | None:
        """Describe the images of the current epoch that do not fit in one line; None if there are none.

        They are those that no padded size holds, and those whose size the annotation file does not state.
        """
        sizes, described = self._dataset.draw_sizes(), []
        exceeding = [size for size in sizes if size and not smallest_holding(size, self._padded_sizes)]
        if exceeding:
            height, width = (max(sides) for sides in zip(*exceeding, strict=True))
            described.append(
                f"none of them holds {len(exceeding)} of {len(sizes)} images, which reach {height}x{width} pixels and "
                "are scaled down; add larger sizes, or lower the scales of the augmentation"
            )
        if unknown := sizes.count(None):
            height, width = self._padded_sizes[-1]
            described.append(
                f"the size of {unknown} of {len(sizes)} images is not stated, which are padded to {height}x{width} and "
                "scaled down where they exceed it; add their width and height to the annotation file"
            )
        return "; ".join(described) or None

    def __len__(self) -> int:
        return max(1, len(self._dataset) // self._per_step)

    def __iter__(self) -> Iterator[list[PaddedIndex]]:
        generator = torch.Generator().manual_seed(self._seed + self._epoch)
        order = torch.randperm(len(self._dataset), generator=generator).tolist()
        if len(order) < self._per_step:
            order = (order * self._num_ranks)[: -(-len(order) // self._num_ranks) * self._num_ranks]
        batches = _make_batches(
            order[: len(self) * self._per_step],
            self._dataset.draw_sizes(),
            self._padded_sizes,
            min(self._per_step, len(order)),
        )
        for number in torch.randperm(len(batches), generator=generator).tolist():
            padded_size, indices = batches[number]
            yield [PaddedIndex(index, padded_size) for index in indices[self._rank :: self._num_ranks]]


def make_eval_batches(
    dataset: CocoDetection, indices: Sequence[int], padded_sizes: Sequence[_Size], batch_size: int
) -> list[list[int]]:
    """Put together batches for an evaluation, each of images with the same smallest padded size that holds them.

    Images that no padded size holds, or whose size is not stated, are in batches of their own. None is scaled down.

    Args:
        dataset: The data set. Its transform has a method ``draw_size``, as :class:`Resize` has.
        indices: The indices of the images.
        padded_sizes: (height, width) of the batches in pixels.
        batch_size: Images per batch; the last batch of each size may have fewer.

    Returns:
        The indices of the images of each batch.
    """
    sizes = dataset.draw_sizes() if padded_sizes else [None] * len(dataset)
    groups: dict[_Size | None, list[int]] = {}
    for index in indices:
        size = sizes[index]
        groups.setdefault(size and smallest_holding(size, padded_sizes), []).append(index)
    return [group[i : i + batch_size] for group in groups.values() for i in range(0, len(group), batch_size)]


def _make_batches(
    order: Sequence[int], sizes: Sequence[_Size | None], padded_sizes: Sequence[_Size], batch_size: int
) -> list[tuple[_Size, list[int]]]:
    """Divide images into batches of a padded size; their number is a multiple of the batch size.

    Args:
        order: The indices of the images.
        sizes: (height, width) of each image of the data set; None if it is unknown.
        padded_sizes: (height, width) of the batches, in ascending order.
        batch_size: Images per batch.

    Returns:
        The padded size and the indices of each batch.
    """
    groups: dict[_Size, list[int]] = {padded: [] for padded in padded_sizes}
    for index in order:
        size = sizes[index]
        padded = size and smallest_holding(size, padded_sizes)
        groups[padded or _fittest([size], padded_sizes)].append(index)
    batches: list[tuple[_Size, list[int]]] = []
    rest: list[int] = []
    for number, padded in enumerate(padded_sizes):
        group = groups[padded]
        complete = len(group) - len(group) % batch_size
        batches += [(padded, group[i : i + batch_size]) for i in range(0, complete, batch_size)]
        for index in group[complete:]:
            size = sizes[index]
            larger = size and smallest_holding(size, padded_sizes[number + 1 :])
            (groups[larger] if larger else rest).append(index)
    for begin in range(0, len(rest), batch_size):
        chunk = rest[begin : begin + batch_size]
        batches.append((_fittest([sizes[index] for index in chunk], padded_sizes), chunk))
    return batches


def _fittest(sizes: Sequence[_Size | None], padded_sizes: Sequence[_Size]) -> _Size:
    """Return the padded size to which images are scaled down the least, the smallest of several.

    Images of unknown size count for the largest padded size.
    """
    known = [padded_sizes[-1] if size is None else size for size in sizes]
    return max(padded_sizes, key=lambda padded: sum(min(1, padded[0] / h, padded[1] / w) for h, w in known))


def _ascending(padded_sizes: Sequence[_Size]) -> list[_Size]:
    return sorted(padded_sizes, key=lambda size: (size[0] * size[1], size))
